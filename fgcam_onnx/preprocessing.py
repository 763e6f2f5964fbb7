"""From a picture to the array that the model takes: where the recipe comes from.

One formula for all of them, ``v`` the pixel in 0..255, channel by channel in the stated colour order::

    x = (v * scale - mean) / std

Sources, first found first taken:

1. the model's own metadata: the key ``preprocessing`` (a JSON object with the fields of :class:`Preprocessing`), or the
   ``Image.*`` keys of the ONNX metadata standard
2. ``preprocessor_config.json`` beside the model file, as Hugging Face Optimum writes it
3. ``config.json`` beside the model file, as timm writes it
4. the published ImageNet recipe: stretched to the model's size, bilinear with antialias, /255, ImageNet mean and std

Over that lie the fields of ``preprocess``, and over these the single ``options``. Whatever a source says, a height and
width that are fixed in the model win. Nothing here is evaluated or unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgcam_onnx import huggingface, presets, timm_config
from fgcam_onnx.errors import FgcamError, InputError, ModelError, OptionError, nearest
from fgcam_onnx.folder import beside
from fgcam_onnx.recipe import (
    COLORS,
    CROP,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    LAYOUTS,
    RESIZES,
    SHORT_SIDE,
    STRETCH,
    Preprocessing,
    channels_of,
    choice,
    pair,
    rescaled,
)
from fgcam_onnx.sidecars import NEXT, Found, as_record, parse, read_record

__all__ = ["COLORS", "IMAGENET_MEAN", "IMAGENET_STD", "INTERPOLATIONS", "RESIZES", "Preprocessing", "choose"]

Shape = Sequence[int | str | None]
Sides = tuple[int | None, int | None]
# With these a recipe stands on its own: a source that cannot be read need not stop it.
ARITHMETIC = ("scale", "mean", "std")


def choose(
    options: Mapping[str, Any] | None = None,
    *,
    preprocess: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    path: str | Path | None = None,
    input_shape: Shape = (None, 3, None, None),
    layout: str = "NCHW",
    input_dtype: str = "float32",
) -> Preprocessing:
    """The recipe for a model: the first source that there is, single fields replaced.

    ``path`` is the model file, ``metadata`` its ``metadata_props``, ``input_shape`` and ``layout`` the model's.
    ``preprocess``: fields, a preset, ``key=value`` words or a JSON file (see :mod:`fgcam_onnx.presets`). ``options``:
    single fields, which win over it; None is one that is not given. What a source asks for and a recipe cannot do is in
    ``recipe.notes``.

    Raises :class:`OptionError` for an option that is unknown, out of range, or against the model's fixed size, layout
    or channels; :class:`ModelError` for metadata or a configuration file that is malformed, naming file and key;
    :class:`InputError` for a model that does not take pictures.
    """
    given = {key: value for key, value in (options or {}).items() if value is not None}
    for key in given:
        if key not in presets.FIELDS:
            raise OptionError(
                f"no preprocessing option {key!r}",
                known=", ".join(presets.FIELDS),
                next=nearest(key, presets.FIELDS) or None,
            )
    said = None if preprocess is None else presets.read(preprocess)
    stated = given.get("layout", None if said is None else said.fields.get("layout"))
    read_as = layout
    if stated is not None:
        layout = _stated_layout(choice("layout", stated, LAYOUTS), layout, input_shape)
    channels, fixed = _picture_axes(input_shape, layout)

    if said is not None and said.whole:
        found, said = said, None
    else:
        found = _source(metadata or {}, Path(path) if path is not None else None, fixed, said)
    if not found.fields:
        default, source = _default(channels, input_dtype)
        found = Found(default, source, notes=found.notes)
    fields = {key: value for key, value in found.fields.items() if key != "layout"}
    if channels is not None and not any("color" in each for each in (fields, said.fields if said else {}, given)):
        fields["color"] = "GRAY" if channels == 1 else "RGB"

    recipe = _sized(_recipe(found, fields, layout), fixed, fields)
    over = [said] if said is not None else []
    if given:
        over.append(Found(given, f"options ({', '.join(given)})"))
    for each in over:
        recipe = _over(recipe, each, fixed, _axes(input_shape, layout))
    if layout != read_as:
        told = f"layout {layout} is as stated; the graph reads its input as {read_as}"
        recipe = replace(recipe, notes=(*recipe.notes, told))
    if channels is not None and recipe.channels != channels:
        raise OptionError(
            f"color {recipe.color} gives {channels_of(recipe.channels)}, the model takes {channels}",
            known=f"{_axes(input_shape, layout)}; the recipe is from {recipe.source}",
            next="--color GRAY" if channels == 1 else "--color RGB or --color BGR",
        )
    return recipe


def _recipe(found: Found, fields: Mapping[str, Any], layout: str) -> Preprocessing:
    """The recipe of a source; an error in one of its fields names the source instead of an option."""
    notes = found.notes
    told = found.fields.get("layout")
    if isinstance(told, str) and told.upper() in LAYOUTS and told.upper() != layout:
        notes = (*notes, f"{found.source} says layout {told}, the model's input is {layout}: {layout} is taken")
    file = None if found.file is None else str(found.file)
    try:
        return Preprocessing(**fields, layout=layout, source=found.source, file=file, sha256=found.sha256, notes=notes)
    except OptionError as error:
        raise ModelError(f"{found.source}: {error.what}", known=error.known, next=NEXT) from None


def _sized(recipe: Preprocessing, fixed: Sides, found: Mapping[str, Any]) -> Preprocessing:
    """The recipe at the size that is fixed in the model."""
    size = (fixed[0] or recipe.size[0], fixed[1] or recipe.size[1])
    if size == recipe.size:
        return recipe
    side = None if recipe.short_side is None else rescaled(recipe.short_side, recipe.size, size)
    had = f" (size {size[0]}x{size[1]} from the model)" if "size" in found else ""
    return replace(recipe, size=size, short_side=side, source=recipe.source + had)


def _over(recipe: Preprocessing, said: Found, fixed: Sides, axes: str) -> Preprocessing:
    """The recipe with the fields of ``said`` in place of its own."""
    given = {key: value for key, value in said.fields.items() if key != "layout"}
    at = None if said.file is None else str(said.file)
    try:
        if "size" in given:
            size = pair("size", given["size"])
            _fits(size, fixed, axes, said)
            if "short_side" not in given and recipe.short_side is not None:
                given["short_side"] = rescaled(recipe.short_side, recipe.size, size)
        if "resize" in given:
            kind = choice("resize", given["resize"], RESIZES)
            if kind in (STRETCH, CROP):
                given["short_side"] = None
            elif kind == SHORT_SIDE and "short_side" not in said.fields:  # a source that states both sides
                side = given.get("short_side", recipe.short_side)
                given["short_side"] = min(side) if isinstance(side, tuple) else side
        elif given.get("short_side") is not None and recipe.resize == STRETCH:
            given["resize"] = SHORT_SIDE
        _recolor(recipe, given)
        if said.file is not None:
            given |= {"file": str(said.file), "sha256": said.sha256}
        return replace(recipe, **given, source=f"{said.source} over {recipe.source}")
    except OptionError as error:
        if at is None or error.at is not None:
            raise
        raise OptionError(error.what, at=at, known=error.known, next=error.next) from None


def _fits(size: tuple[int, int], fixed: Sides, axes: str, said: Found) -> None:
    if all(side is None or side == want for side, want in zip(fixed, size, strict=True)):
        return
    option = "--size" if said.source.startswith("options") else "size"
    raise OptionError(
        f"size {size[0]}x{size[1]} does not fit the model",
        known=axes,
        next=f"leave {option} out: the model's own size is taken",
    )


def _recolor(recipe: Preprocessing, given: dict[str, Any]) -> None:
    """Mean and deviation of another number of channels, where they are the same for all of them."""
    if (color := given.get("color")) is None:
        return
    channels = 1 if choice("color", color, COLORS) == "GRAY" else 3
    for name in ("mean", "std"):
        have = getattr(recipe, name)
        if name not in given and len(have) != channels:
            if len(set(have)) > 1:
                raise OptionError(
                    f"color {color} makes {channels_of(channels)}, and {name} has {len(have)} values",
                    known=f"{name} is from {recipe.source}",
                    next=f"give --{name} too",
                )
            given[name] = have[:1]


# ---------------------------------------------------------------------------------------------------- the model's input


def _stated_layout(stated: str, layout: str, shape: Shape) -> str:
    """A layout that the user states, if the model's input can have it."""
    if stated == layout:
        return stated
    channels = shape[stated.index("C")] if len(shape) == 4 else 0
    if channels not in (None, 1, 3) and not isinstance(channels, str):
        raise OptionError(
            f"layout {stated} contradicts the model, whose input is {layout}",
            known=f"{_axes(shape, layout)}; as {stated} it would have {channels_of(int(channels or 0))}",
            next="leave layout out: the model's own is taken",
        )
    return stated


def _picture_axes(shape: Shape, layout: str) -> tuple[int | None, Sides]:
    """Channels and (height, width) of the model's input; None where the model leaves them open."""
    if layout not in LAYOUTS or len(shape) != 4:
        raise InputError(
            "the model does not take pictures",
            known=_axes(shape, layout),
            next="make the array yourself and call Explainer.explain",
        )
    axis = {name: shape[layout.index(name)] for name in "CHW"}
    c, h, w = (side if isinstance(side, int) and side > 0 else None for side in (axis["C"], axis["H"], axis["W"]))
    if c not in (None, 1, 3):
        raise InputError(
            f"the model takes {c} channels, and a picture has 1 or 3",
            known=_axes(shape, layout),
            next="make the array yourself and call Explainer.explain",
        )
    return c, (h, w)


def _axes(shape: Shape, layout: str) -> str:
    sides = ", ".join("?" if side is None else str(side) for side in shape)
    return f"its input [{', '.join(layout.lower())}] = [{sides}]"


# ---------------------------------------------------------------------------------------------------- sources


def _source(metadata: Mapping[str, str], path: Path | None, fixed: Sides, said: Found | None) -> Found:
    """The first source that there is; without fields where there is none.

    One that cannot be read is an error, unless what the user says stands on its own: then it is a note.
    """
    try:
        return _first(metadata, path, fixed)
    except FgcamError as error:
        if said is None or any(key not in said.fields for key in ARITHMETIC):
            raise
        return Found({}, "", notes=(f"preprocessing passed over: {error.what}",))


def _first(metadata: Mapping[str, str], path: Path | None, fixed: Sides) -> Found:
    if "preprocessing" in metadata:
        return Found(_from_own_key(metadata["preprocessing"]), "the model's metadata")
    if any(key in metadata for key in ("Image.BitmapPixelFormat", "Image.NominalPixelRange")):
        return Found(_from_image_keys(metadata), "the model's Image metadata")
    if path is None:
        return Found({}, "")
    processor, config = beside(path, "preprocessor_config.json"), beside(path, "config.json")
    if processor is not None:
        record, sha256 = read_record(processor)
        if not timm_config.is_timm(record):
            return huggingface.find(record, processor, sha256, _model_type(config))
        return timm_config.find(record, processor, sha256, fixed)
    if config is not None:
        record, sha256 = read_record(config)
        if timm_config.is_timm(record):
            return timm_config.find(record, config, sha256, fixed)
    return Found({}, "")


def _model_type(config: Path | None) -> str | None:
    """What ``config.json`` calls the model. One that cannot be read says nothing, and the labels have a note on it."""
    try:
        found = None if config is None else read_record(config)[0].get("model_type")
    except ModelError:
        return None
    return found if isinstance(found, str) else None


def _default(channels: int | None, input_dtype: str) -> tuple[dict[str, Any], str]:
    if "int" in input_dtype:  # the model scales inside its graph
        return {"scale": 1.0, "mean": 0.0, "std": 1.0}, f"the {input_dtype} input of the model"
    if channels == 1:
        return {"color": "GRAY", "mean": 0.0, "std": 1.0}, "the plain default for one channel"
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}, "the ImageNet default"


def _from_own_key(text: str) -> dict[str, Any]:
    where = "the model's metadata key 'preprocessing'"
    record = as_record(parse(text, where), where)
    known = (*presets.FIELDS, *presets.ABOUT)
    for key in record:
        if key not in known and key not in presets.REMARKS:
            near = nearest(key, known)
            raise ModelError(f"{where} has an unknown field {key!r}", known=", ".join(known), next=near or NEXT)
    return {key: value for key, value in record.items() if key in presets.FIELDS}


def _from_image_keys(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The ``Image.*`` keys of ONNX's own metadata standard (docs/MetadataProps.md)."""
    out: dict[str, Any] = {}
    if (pixel := metadata.get("Image.BitmapPixelFormat")) is not None:
        colors = {"Gray8": "GRAY", "Rgb8": "RGB", "Bgr8": "BGR"}
        out["color"] = colors[_choice_in_model("Image.BitmapPixelFormat", pixel, colors)]
    span = metadata.get("Image.NominalPixelRange", "NominalRange_0_255")
    ranges = {"NominalRange_0_255": (1.0, 0.0), "Normalized_0_1": (1 / 255, 0.0), "Normalized_1_1": (2 / 255, 1.0)}
    out["scale"], out["mean"] = ranges[_choice_in_model("Image.NominalPixelRange", span, ranges)]
    out["std"] = 1.0
    return out


def _choice_in_model(key: str, value: str, known: Mapping[str, Any]) -> str:
    if value not in known:
        raise ModelError(f"the model's metadata key {key!r} is {value!r}", known=", ".join(known), next=NEXT)
    return value
