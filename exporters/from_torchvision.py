"""torchvision's classifiers, with the preprocessing and the class names that belong to their weights."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from fgcam_onnx.errors import OptionError, nearest
from fgcam_onnx.exporters import from_torch, packages
from fgcam_onnx.exporters import weights as weight_words
from fgcam_onnx.exporters.base import Source
from fgcam_onnx.exporters.from_torch import seed

__all__ = ["load", "names", "seed"]

NEEDS = ("torchvision", "onnxscript", "torch")


def names() -> list[str]:
    """Every classifier of torchvision."""
    _load()
    models = import_module("torchvision.models")
    return list(models.list_models(module=models))


def load(
    name: str,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    classes: int | None = None,
) -> Source:
    """A source from a name such as ``resnet18``.

    ``weights``: ``DEFAULT`` (also if None) or a name such as ``IMAGENET1K_V2``, fetched by torchvision; ``none`` for
    random ones; or a file, see :func:`~fgcam_onnx.exporters.from_torch.load_state`. ``classes``: of a file with another
    classifier. ``size``: the preprocessing's own if None.

    Raises:
        OptionError: a name that torchvision does not have, of a network or of its weights.
        ExportError: weights that cannot be fetched or do not fit; and as from_torch.load.
    """
    known = names()
    if name not in known:
        what, many = f"torchvision has no classifier {name!r}", f"{len(known)} names, such as resnet18, vgg16_bn"
        raise OptionError(what, known=many, next=nearest(name, known) or None)
    models = import_module("torchvision.models")
    published = models.get_model_weights(name)
    own = weight_words.random(weights) or weight_words.is_file(weights)
    chosen = None if own or classes is not None else _published(published, weights, name)
    if classes is not None and not own:
        raise OptionError("published weights have their own classes", next="leave --classes out, or give a file")

    if chosen is not None:
        with weight_words.downloading(f"{chosen} of torchvision:{name}"):
            chosen.get_state_dict(progress=True, check_hash=True)  # cached: the builder finds it there
    with packages.captured():  # some builders warn about their own initialisation
        module = models.get_model(name, weights=chosen, **({} if classes is None else {"num_classes": classes}))
    if weight_words.is_file(weights):
        assert weights is not None
        from_torch.load_state(module, weights)

    recipe = _recipe((chosen or published.DEFAULT).transforms(), f"torchvision {chosen or published.DEFAULT}")
    notes = () if chosen is not None else (f"preprocessing is that of {published.DEFAULT}: are these weights used so?",)
    word = weights if own and weights is not None else str(weights or "DEFAULT")
    return from_torch.load(
        module,
        input_shape=(3, *(size or recipe["size"])),
        opset=opset,
        name=f"torchvision:{name} weights={Path(word).name}",
        needs=NEEDS,
        recipe=recipe,
        labels=None if chosen is None else list(chosen.meta["categories"]),
        notes=notes,
    )


def _load() -> None:
    packages.load("torch")
    packages.load("torchvision", beside="torch")


def _published(published: Any, word: str | None, name: str) -> Any:
    if word is None or word.upper() == "DEFAULT":
        return published.DEFAULT
    found = {each.name.lower(): each for each in published}
    key = word.rpartition(".")[2].lower()
    if key not in found:
        known = ", ".join(["DEFAULT", *(each.name for each in published), "none", "or a file"])
        raise OptionError(f"torchvision:{name} has no weights {word!r}", known=known)
    return found[key]


def _recipe(transforms: Any, source: str) -> dict[str, Any]:
    """The fields of Preprocessing from ``ImageClassification``: shorter side, centre crop, /255, mean and std."""
    (crop,), (short, *_) = transforms.crop_size, transforms.resize_size
    return {
        "size": (crop, crop),
        "resize": "short_side_then_center_crop",
        "short_side": short,
        "interpolation": transforms.interpolation.value,
        "color": "RGB",
        "scale": 1 / 255,
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
        "source": source,
    }
