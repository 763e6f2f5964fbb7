"""``fgcam explain MODEL IMAGE...``: a map for each picture, what was chosen along the way, and a folder of results.

Several classes of a picture are a strip of overlays here; several methods or layers are ``fgcam_onnx.cli.compare``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgcam_onnx.cli import picture_options, say
from fgcam_onnx.errors import ImageError, InputError, OptionError, OutputError, TargetError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.progress import Progress

    from fgcam_onnx import Explainer, Explanation
    from fgcam_onnx.feeds import Feeds
    from fgcam_onnx.imaging import Pixels
    from fgcam_onnx.preprocessing import Preprocessing

_SHOW, _RUN = "What is drawn and printed", "Where it runs"
# The longer side of a cell of a comparison grid, in pixels.
TILE = 128
# A network of many classes that gives its favourite less than this many times an equal share does not know the picture:
# more often than not the picture did not become the input as in training.
KNOWN, MANY = 5, 100
_ENDS = "A model of several inputs or outputs"


def explain(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="The ONNX file, or a folder with model.onnx.", show_default=False),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="Pictures, or folders of pictures. With --engine ray also trees of folders, lists, Parquet and "
            "addresses such as s3://bucket/pictures.",
            show_default=False,
        ),
    ],
    method: Annotated[
        str,
        typer.Option(
            "--method", "-m", help="A method of fgcam methods. Several, a,b,c or all, are drawn as a comparison grid."
        ),
    ] = "fg-grad-cam",
    layer: Annotated[
        str | None,
        typer.Option(
            help='Where the map is wanted: "input", or a layer of fgcam inspect. Several, input,relu4 or all, are the '
            "columns of a grid.",
            show_default=False,
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="The layer L that the method starts from, instead of the default.", show_default=False),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="The class: an index or a label, once for all or once a picture. Default: the model's answer. "
            "Several at once: top3, or 281,285. Of a "
            'dense output a place such as "3,10,12", or "3,:,:" for a sum, in the order of its own axes.',
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="Explain why the class and not this one.", show_default=False),
    ] = None,
    denoise: Annotated[
        bool, typer.Option("--denoise", help="Keep the strongest tenth of the components at L.")
    ] = False,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-O",
            metavar="NAME=VALUE",
            help="An option of the method: a number, true, false or a word. fgcam methods lists them.",
            show_default=False,
        ),
    ] = None,
    composite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which rules walk down: paper, epsilon_plus, epsilon_gamma_box ... of LRP and the fine-grained "
            "methods.",
            show_default=False,
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            metavar="SELECTOR=RULE",
            help='A rule for some layers, before the composite: Conv=z_plus, "dense & last=gamma(gamma=0.5)", '
            "node:*/conv1=z_box. The first that fits a layer serves it.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="The folder for the results.")] = Path("fgcam_maps"),
    input: Annotated[
        str | None,
        typer.Option("--input", help="Which input is the picture.", rich_help_panel=_ENDS, show_default=False),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", help="Which output to explain; the first.", rich_help_panel=_ENDS, show_default=False),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--inputs",
            metavar="NAME=FILE.npy",
            help="An array for another input: one row for all pictures or a row for each.",
            rich_help_panel=_ENDS,
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="A file of class names, a class a line or JSON.", show_default=False)
    ] = None,
    preprocess: picture_options.Preprocess = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Height and width: 224 or 224x320.", rich_help_panel=picture_options.PANEL, show_default=False
        ),
    ] = None,
    resize: picture_options.Resize = None,
    short_side: picture_options.ShortSide = None,
    interpolation: picture_options.Interpolation = None,
    color: picture_options.Color = None,
    scale: picture_options.Scale = None,
    mean: picture_options.Mean = None,
    std: picture_options.Std = None,
    backend: Annotated[str, typer.Option(help="auto, cupy, ort or numpy.", rich_help_panel=_RUN)] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="float32; float64 with numpy or cupy; fast with cupy: z+ and z^B on tensor cores.",
            rich_help_panel=_RUN,
        ),
    ] = "float32",
    provider: Annotated[
        list[str] | None,
        typer.Option(help="An onnxruntime execution provider.", rich_help_panel=_RUN, show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures at a time; masks, for Score-CAM.", rich_help_panel=_RUN, show_default=False),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="local; or ray: on a Ray cluster, maps as Parquet instead of panels, and the same again goes on.",
            rich_help_panel=_RUN,
        ),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Workers of the ray engine.", rich_help_panel=_RUN, show_default=False),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="With ray: begin anew, remove the maps.", rich_help_panel=_RUN)
    ] = False,
    colormap: Annotated[
        str, typer.Option(help="ember, jet, gray, or bwr with signs.", rich_help_panel=_SHOW)
    ] = "ember",
    alpha: Annotated[
        float | None,
        typer.Option(help="Mix map and picture evenly, 0 to 1.", rich_help_panel=_SHOW, show_default=False),
    ] = None,
    cap: Annotated[
        float, typer.Option(help="Percentile of the map at which its colours end.", rich_help_panel=_SHOW)
    ] = 99.5,
    top: Annotated[int, typer.Option(min=1, help="Print so many classes.", rich_help_panel=_SHOW)] = 3,
    json: say.Json = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=_SHOW)
    ] = False,
    debug: say.Debug = False,
) -> None:
    """Show what a model saw in pictures: a panel and a signed map for each, and a manifest.

    With several methods or layers, --method all --layer all: a comparison grid for each picture, and every map.
    """
    from fgcam_onnx.cli import bulk

    many = bulk.pictures(images) if bulk.wanted(engine, workers, fresh) else None
    pictures = _gather(images) if many is None else []
    names = _stems(pictures, folder)
    count = len(pictures if many is None else many.samples)
    given = picture_options.fields(resize, short_side, interpolation, color, scale, mean, std)
    given["size"] = None if size is None else picture_options.sides(size)
    look = Look(colormap, alpha, cap, top)
    options = dict(_option(word) for word in option or [])
    if composite is not None:
        options["composite"] = composite
    if rule:
        options["rules"] = _rules(rule)

    from fgcam_onnx.cli import compare

    compared = compare.methods_of(method) if compare.wanted(method, layer) else None
    if compared is not None and many is not None:
        raise OptionError("--engine ray takes one method and one layer", next="one run, and one folder, for each")

    from fgcam_onnx import Explainer
    from fgcam_onnx.preprocessing import choose

    arrays = dict(_array(word) for word in inputs or [])
    explainer = Explainer(model, backend=backend, precision=precision, providers=provider, input=input, output=output)
    recipe = choose(
        given,
        preprocess=preprocess,
        metadata=explainer.metadata,
        path=explainer.path,
        input_shape=explainer.input_shape,
        layout=explainer.layout,
        input_dtype=explainer.input_dtype,
    )
    words, source = _labels(explainer, labels)
    targets = _targets(target, words, explainer, count)
    run = Run(explainer, recipe, words, source, look, quiet or json, frozenset(path.resolve() for path in pictures))
    shared: dict[str, Any] = {}
    if against is not None:
        shared["against"] = _against(against, words, explainer)
    if batch_size is not None:
        shared["batch_size"] = batch_size
    others = explainer.feeds(arrays, count)
    if compared is None:
        call = {"method": method, "layer": layer, "start": start, "denoise": denoise, **options, **shared}
        several = any(isinstance(each, (list, str)) for each in targets or [])
        batch = 1 if several else _batch(explainer, batch_size)
        if many is None:
            record = run(pictures, names, targets, folder, call, batch, others)
        else:
            words_of_engine = {
                "backend": backend, "precision": precision, "providers": provider, "input": input, "output": output
            }  # fmt: skip
            record = bulk.explain(
                explainer, recipe, words, many, call, engine=words_of_engine, targets=targets, others=others,
                batch=batch, folder=folder, workers=workers, fresh=fresh, silent=quiet or json,
            )  # fmt: skip
    else:
        calls = compare.options_of(compared, options, start=start, denoise=denoise)
        comparison = compare.Comparison(run, compared, compare.layers_of(explainer, layer))
        record = comparison(pictures, names, targets, folder, shared, calls, others)
    if json:
        say.as_json(record)


# ---------------------------------------------------------------------------------------------------- words


def _gather(images: Sequence[Path]) -> list[Path]:
    """Files as they are named, folders as the pictures in them by name."""
    from fgcam_onnx.imaging import PICTURE_ENDINGS

    found: list[Path] = []
    for path in images:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_ENDINGS and p.is_file())
            inside = [p for p in inside if not p.name.startswith(".")]
            if not inside:
                raise ImageError(f"the folder {str(path)!r} holds no pictures", known=" ".join(PICTURE_ENDINGS))
            found += inside
        elif not path.exists():
            raise ImageError(f"there is no picture {str(path)!r}", next="check the path")
        else:
            found.append(path)
    return found


def _stems(pictures: Sequence[Path], folder: Path) -> list[str]:
    """A name for each picture's results: its stem, numbered from the second that has it."""
    taken: set[str] = set()
    names = []
    for path in pictures:
        name, count = path.stem, 1
        while name.casefold() in taken:
            count += 1
            name = f"{path.stem}_{count}"
        taken.add(name.casefold())
        names.append(name)
    sources = {path.resolve() for path in pictures}
    for name in names:
        _spare(folder / f"{name}.png", sources)
    return names


def _spare(result: Path, sources: Collection[Path]) -> None:
    """Results never overwrite the pictures."""
    if result.resolve() in sources:
        raise OutputError(
            f"the result {str(result)!r} would overwrite the picture of that name",
            next="choose another folder: -o DIR",
        )


def _option(text: str) -> tuple[str, Any]:
    import json

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise OptionError(f"--option {text!r} is not NAME=VALUE", next="for example: -O ratio=0.2")
    try:
        return name.replace("-", "_"), json.loads(value)
    except (ValueError, RecursionError):
        return name.replace("-", "_"), value


def _rules(words: Sequence[str]) -> dict[str, str]:
    """``SELECTOR=RULE`` in the order of the command."""
    rules: dict[str, str] = {}
    for text in words:
        selector, equals, formula = (word.strip() for word in text.partition("="))
        if not selector or not equals or not formula:
            raise OptionError(
                f"--rule {text!r} is not SELECTOR=RULE", next='for example: --rule "Conv=gamma(gamma=0.5)"'
            )
        if selector in rules:
            raise OptionError(f"--rule has two rules for {selector!r}", known=f"{rules[selector]} and {formula}")
        rules[selector] = formula
    return rules


def _array(text: str) -> tuple[str, Any]:
    import numpy as np

    name, equals, file = text.partition("=")
    if not name or not equals:
        raise OptionError(f"--inputs {text!r} is not NAME=FILE.npy", next="for example: --inputs age=age.npy")
    try:
        return name, np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"the array for input {name!r} cannot be read from {file!r}", known=str(error)) from None


def _labels(explainer: Explainer, file: Path | None) -> tuple[list[str] | None, str]:
    if file is None:
        return explainer.labels, explainer.labels_source or ""
    from fgcam_onnx.labels import read_labels

    return read_labels(file, explainer.num_classes or None), file.name


def _targets(target: Sequence[str] | None, labels: list[str] | None, explainer: Explainer, n: int) -> list[Any] | None:
    """A class for each picture, or several: "top3" or a list; of a dense output a place, which the library checks."""

    if not target:
        return None
    if len(target) not in (1, n):
        raise TargetError(
            f"{len(target)} targets for {n} picture{'s' * (n > 1)}", next="give --target once, or once for each picture"
        )
    classes = explainer.num_classes
    if explainer.dense or not classes:
        explainer.labels = labels
        found: list[Any] = [tuple(w.strip(" ()").split(",")) if explainer.dense else w for w in target]
    else:
        found = [_classes(word, labels, classes) for word in target]
    return found * (n if len(target) == 1 else 1)


def _classes(word: str, labels: list[str] | None, classes: int) -> int | list[int] | str:
    """One class; or "top3"; or the classes between commas, where the word as a whole names none."""
    from fgcam_onnx.labels import resolve_class

    try:
        return resolve_class(word, labels, classes)
    except TargetError:
        if re.fullmatch(r"top-?\d{1,9}", word.strip().lower()):
            return word.strip().lower()
        parts = [part for part in word.split(",") if part.strip()]
        if len(parts) < 2:
            raise
        return [resolve_class(part, labels, classes) for part in parts]


def _against(word: str, labels: list[str] | None, explainer: Explainer) -> Any:
    from fgcam_onnx.labels import resolve_class

    classes = explainer.num_classes
    return word if explainer.dense or not classes else resolve_class(word, labels, classes)


def _batch(explainer: Explainer, wanted: int | None) -> int:
    """Pictures at a time: one, so that results come early, unless the model or the user says otherwise."""
    fixed = explainer.input_shape[0]
    if not isinstance(fixed, int) or fixed <= 0:
        return wanted or 1
    if wanted not in (None, fixed):
        raise OptionError(f"--batch-size {wanted} does not fit the model", known=f"its batch is fixed at {fixed}")
    return fixed


# ---------------------------------------------------------------------------------------------------- the run


@dataclass(frozen=True)
class Look:
    """What is drawn and printed."""

    colormap: str
    alpha: float | None
    cap: float
    top: int

    def __post_init__(self) -> None:  # a word that is wrong is told before anything runs
        import numpy as np

        from fgcam_onnx.imaging import draw

        dot = np.zeros((1, 1, 3), np.uint8)
        draw(dot, dot[..., 0], colormap=self.colormap, alpha=self.alpha, cap=self.cap)


@dataclass(frozen=True)
class Run:
    """A model with its preprocessing and labels. ``sources``: the pictures' own files."""

    explainer: Explainer
    recipe: Preprocessing
    labels: list[str] | None
    labels_source: str
    look: Look
    silent: bool
    sources: frozenset[Path] = frozenset()

    def __call__(
        self,
        pictures: Sequence[Path],
        names: Sequence[str],
        targets: Sequence[Any] | None,
        output: Path,
        call: dict[str, Any],
        batch: int,
        others: Feeds,
    ) -> dict[str, Any]:
        """Explain, draw and write batch by batch; returns the manifest with the paths of what was written."""
        import numpy as np

        from fgcam_onnx.explanation import Folder

        records: list[dict[str, Any]] = []
        common: dict[str, Any] = {}
        with Folder(output, keep=True) as folder, _progress(len(pictures), call["method"]) as step:
            for first in range(0, len(pictures), batch):
                chunk = slice(first, first + batch)
                wanted: Any = None if targets is None else list(targets[chunk])
                if wanted is not None and isinstance(wanted[0], str) and self.explainer.num_classes:
                    wanted = wanted[0]  # "top3": the library knows what that is
                files, read = pictures[chunk], [self.read(path) for path in pictures[chunk]]
                x = np.stack([x for x, _, _ in read])
                beside = others.part(first, first + batch)
                e = self.explainer.explain(x, target=wanted, inputs=beside, progress=step.inner, **call)
                if not common:
                    common = self.common(e, call)
                    if not self.silent:
                        with step.aside():
                            self._print_common(e)
                for i, (path, (_, view, digest)) in enumerate(zip(files, read, strict=True)):
                    record = self.one(e, i, path, digest)
                    record["files"] = {"panel": f"{names[first + i]}.png", "relevance": f"{names[first + i]}.npy"}
                    if "classes" in record:
                        self._write_several(folder, e, i, view, record, names[first + i])
                    else:
                        self._write(folder, e, i, view, record)
                    records.append(record)
                    step.outer()
                    if not self.silent:
                        with step.aside():
                            self._print_one(record, folder.path)
            manifest = {**common, "images": records}
            folder.finish(manifest)
        if not self.silent:
            typer.echo(f"wrote {len(records)} panel{'s' * (len(records) > 1)}, maps and manifest.json to {output}")
        return {**manifest, "output": str(output)}

    def read(self, path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], str]:
        from fgcam_onnx import imaging

        picture = imaging.read(path)
        return self.recipe.apply(picture)[0], self.recipe.view(picture), hashlib.sha256(path.read_bytes()).hexdigest()

    def notes(self, e: Explanation) -> list[str]:
        """What is to be known about this run: of the model, and of how the pictures become its input."""
        return [*e.provenance.get("notes", self.explainer.notes), *self.recipe.notes]

    def common(self, e: Explanation, call: dict[str, Any]) -> dict[str, Any]:
        from fgcam_onnx.explanation import SCHEMA_VERSION, plain_json

        record: dict[str, Any] = plain_json(
            {
                "schema_version": SCHEMA_VERSION,
                "model": None if self.explainer.path is None else self.explainer.path.name,
                "method": e.method,
                "layer": e.layer,
                "start": e.start,
                "options": {"denoise": call["denoise"], **e.options},
                "preprocessing": self.recipe.to_dict(),
                "labels": self.labels_source or None,
                "notes": self.notes(e),
                "provenance": e.provenance,
            }
        )
        return record

    def one(self, e: Explanation, i: int, path: Path, digest: str) -> dict[str, Any]:
        """The record of image i; of several classes with a list of them."""
        from fgcam_onnx.explanation import plain_json

        if len(e.rows) == 1:
            seen = self._seen(e, (i,))
        else:
            seen = {"top": self._top(e, i), "classes": [self._seen(e, (i, j)) for j in range(e.rows[1])]}
            for each in seen["classes"]:
                del each["top"]
        if e.classes is not None and (doubt := self._doubt(e, i)):
            seen["doubt"] = doubt
        record: dict[str, Any] = plain_json({"image": str(path), "sha256": digest, **seen})
        return record

    def _doubt(self, e: Explanation, i: int) -> str | None:
        """What to check where no class stands out."""
        n, best = e.probabilities.shape[1], float(e.probabilities[i].max())
        if n < MANY or best * n >= KNOWN:
            return None
        return (
            f"no class stands out: the most likely of {n} has p = {best:.4f}. Does the picture become the input as in "
            "training? --preprocess says how: caffe, tf, torch ..."
        )

    def _seen(self, e: Explanation, index: tuple[int, ...]) -> dict[str, Any]:
        """Of one map: what it explains, its sums and its books."""
        r = e.relevance[index].astype("float64")
        row = index[0] if len(index) == 1 else index[0] * e.rows[1] + index[1]
        leaked, in_map, residual = account(e, row)
        aside = {f"to {name}": share for name, share in _aside(e, row).items()}
        return {
            **(self._place(e, index[0]) if e.classes is None else self._class(e, index)),
            "relevance": {"shape": list(r.shape), "sum": r.sum(), "positive": r.clip(min=0).sum(), "max": r.max()},
            "ledger": {"leaked": leaked, "in_map": in_map, "residual": residual, **aside},
        }

    def _class(self, e: Explanation, index: tuple[int, ...]) -> dict[str, Any]:
        assert e.classes is not None
        i, target = index[0], int(e.classes[index])
        record = {
            "target": target,
            "label": self._name(target),
            "probability": e.probabilities[i, target],
            "logit": e.logits[i, target],
            "top": self._top(e, i),
        }
        if e.against is not None:
            other = int(e.against[index])
            record |= {"against": other, "against_label": self._name(other), "score": e.score[index]}
        return record

    def _top(self, e: Explanation, i: int) -> list[dict[str, Any]]:
        p = e.probabilities[i]
        best = p.argsort(kind="stable")[::-1][: self.look.top]
        return [{"class": int(k), "label": self._name(int(k)), "probability": p[k]} for k in best]

    def _place(self, e: Explanation, i: int) -> dict[str, Any]:
        """Of a dense output: its place, the class's name where the axes tell, and the score."""
        target = dict(zip(self.explainer.output_axes, e.target[i], strict=True))
        index = target.get("class")
        return {"target": target, "label": self._name(index) if isinstance(index, int) else None, "score": e.score[i]}

    def _name(self, index: int) -> str | None:
        from fgcam_onnx.labels import short

        return short(self.labels[index]) if self.labels else None

    def overlay(self, view: Pixels, relevance: npt.NDArray[np.float32]) -> Pixels:
        """A map over the photo, as it is in a panel and in a cell of a grid."""
        from fgcam_onnx import imaging

        look = self.look
        shown = imaging.fit(view, TILE)
        return imaging.draw(shown, relevance, colormap=look.colormap, alpha=look.alpha, cap=look.cap).overlay

    def made_by(self) -> list[str]:
        """Model and package, for the foot of a picture."""
        from fgcam_onnx import __version__

        x = self.explainer
        return [f"{x.path.name if x.path else 'model'} {x.sha256[:12]}", f"fgcam_onnx {__version__}"]

    def _write_several(
        self, folder: Any, e: Explanation, i: int, view: Pixels, record: dict[str, Any], name: str
    ) -> None:
        """Several classes of a picture: a strip, an overlay for each, and their maps as one array."""
        from fgcam_onnx import imaging
        from fgcam_onnx.explanation import npy, png

        look = self.look
        tiles = [imaging.Cell(imaging.fit(view, 240), "picture")]
        files: dict[str, bytes] = {}
        record["files"]["overlays"] = []
        for j, seen in enumerate(record["classes"]):
            drawn = imaging.draw(view, e.relevance[i, j], colormap=look.colormap, alpha=look.alpha, cap=look.cap)
            file = f"{name}_class{seen['target']}.png"
            _spare(folder.path / file, self.sources)
            record["files"]["overlays"].append(file)
            files[file] = png(drawn.overlay)
            fitted = imaging.fit(view, 240)
            tile = imaging.draw(fitted, e.relevance[i, j], colormap=look.colormap, alpha=look.alpha, cap=look.cap)
            words = f"{described(seen)}\n{strength(seen, 3)}   leaked {_share(seen['ledger']['leaked'])}"
            tiles.append(imaging.Cell(tile.overlay, words, tile.bar))
        picture = imaging.grid(
            [imaging.Row(tiles)],
            title=f"{Path(record['image']).name}: {len(record['classes'])} classes",
            lines=[f"{e.method} · map at {e.layer} {list(e.relevance.shape[2:])} · L = {e.start}"],
            footer=" · ".join(self.made_by()),
        )
        folder.write(
            {record["files"]["panel"]: png(picture), record["files"]["relevance"]: npy(e.relevance[i]), **files}
        )

    def _write(self, folder: Any, e: Explanation, i: int, view: npt.NDArray[np.uint8], record: dict[str, Any]) -> None:
        from fgcam_onnx import imaging
        from fgcam_onnx.explanation import npy, png

        provenance = e.provenance
        picture = imaging.panel(
            view,
            e.relevance[i],
            title=f"{described(record)}   {strength(record, 3)}",
            lines=[
                f"{e.method} · map at {e.layer} {list(e.relevance.shape[1:])} · L = {e.start}",
                f"relevance leaked {_share(record['ledger']['leaked'])}"
                f" · in the map {_share(record['ledger']['in_map'])}"
                f" · residual {record['ledger']['residual']:.1e}",
            ],
            footer=" · ".join(
                [
                    f"{Path(record['image']).name}",
                    f"{self.explainer.path.name if self.explainer.path else 'model'} {self.explainer.sha256[:12]}",
                    f"fgcam_onnx {provenance.get('fgcam_onnx', '')}".strip(),
                ]
            ),
            colormap=self.look.colormap,
            alpha=self.look.alpha,
            cap=self.look.cap,
        )
        folder.write({record["files"]["panel"]: png(picture), record["files"]["relevance"]: npy(e.relevance[i])})

    def _print_common(self, e: Explanation) -> None:
        from fgcam_onnx.methods import METHODS

        x = self.explainer
        summary = METHODS[e.method].summary if e.method in METHODS else ""
        say.facts(
            [
                ("model", f"{x.path.name if x.path else ''}   sha256 {x.sha256[:12]}"),
                ("numbers", "" if x.model_precision == "float32" else x.model_precision),
                ("input", f"{x.input_name} {say.shape(x.input_shape)}   {self.recipe.describe()}"),
                ("method", f"{e.method}   {summary}".rstrip()),
                ("layer", f"{e.layer} {list(e.relevance.shape[len(e.rows) :])}"),
                ("L", e.start),
                ("labels", self.labels_source or "none found: --labels FILE"),
                ("backend", _backend(x)),
                *(("note", note) for note in self.notes(e)),
            ]
        )

    def _print_one(self, record: dict[str, Any], folder: Path) -> None:
        if "classes" in record:
            typer.echo(f"\n{record['image']} -> {folder / record['files']['panel']}")
            say.facts(
                (
                    "  class",
                    f"{described(seen)}   {strength(seen, 4)}   leaked {_share(seen['ledger']['leaked'])}"
                    f"   in the map {_share(seen['ledger']['in_map'])}",
                )
                for seen in record["classes"]
            )
            say.facts(doubts(record))
            return
        others = [t for t in record.get("top", []) if t["class"] != record["target"]]
        also = ", ".join(f"{t['class']} {t['label'] or ''}".rstrip() + f" {t['probability']:.3f}" for t in others)
        ledger = record["ledger"]
        typer.echo(f"\n{record['image']} -> {folder / record['files']['panel']}")
        say.facts(
            [
                (
                    "  class" if "top" in record else "  target",
                    f"{described(record)}   {strength(record, 4)}" + (f"   then {also}" if also else ""),
                ),
                (
                    "  ledger",
                    f"leaked {_share(ledger['leaked'])}   in the map {_share(ledger['in_map'])}"
                    + "".join(f"   {name} {_share(ledger[name])}" for name in ledger if name.startswith("to "))
                    + f"   residual {ledger['residual']:.1e}",
                ),
                *doubts(record),
            ]
        )


def doubts(record: dict[str, Any]) -> list[tuple[str, str]]:
    """A line for the terminal where there is something to check."""
    return [("  check", record["doubt"])] if "doubt" in record else []


def account(e: Explanation, i: int) -> tuple[float, float, float]:
    """The books of row i, an image and a class, as shares of the start's sum of |relevance|.

    What leaked, the sum of |map|, and a node's largest residual. The first two need not add up to one: where positive
    and negative relevance meet they cancel, which is no loss.
    """
    whole = float(e.ledger.start_absolute[i])
    if whole == 0:
        return 0.0, 0.0, 0.0
    maps = e.relevance.reshape(-1, *e.relevance.shape[len(e.rows) :])
    in_map = float(abs(maps[i].astype("float64")).sum())
    dropped = sum(float(row.dropped[i]) for row in e.ledger.rows)
    residual = max((float(row.residual[i]) for row in e.ledger.rows), default=0.0)
    return dropped / whole, in_map / whole, residual / whole


def _aside(e: Explanation, i: int) -> dict[str, float]:
    """What went to other inputs of the model, as shares of the start's sum of |relevance|."""
    whole = float(e.ledger.start_absolute[i])
    return {name: float(a[i]) / whole if whole else 0.0 for name, a in e.ledger.aside_absolute.items()}


def _backend(explainer: Explainer) -> str:
    """Where the walk runs, how precisely, and where the forward pass does."""
    parts = [explainer.backend, explainer.precision if explainer.precision != "float32" else ""]
    return "   ".join([*(part for part in parts if part), ", ".join(explainer.providers)])


def described(record: dict[str, Any]) -> str:
    """The class with its name, and the one it is held against; of a dense output the place."""
    target = record["target"]
    if isinstance(target, dict):
        target = ", ".join(f"{axis} {entry}" for axis, entry in target.items())
        return f"{target} · {record['label']}" if record["label"] else target
    name = f"{target} · {record['label']}" if record["label"] else f"class {target}"
    if "against" not in record:
        return name
    other = record["against_label"]
    return f"{name}, not {record['against']}" + (f" · {other}" if other else "")


def strength(record: dict[str, Any], digits: int) -> str:
    """The probability of the class; of a dense output the score."""
    if "probability" in record:
        return f"p = {record['probability']:.{digits}f}"
    return f"score = {record['score']:.{digits + 1}g}"


def _share(share: float) -> str:
    return f"{100 * share:.2g} %" if share else "0 %"


class _Step:
    """Where the run reports to: ``outer`` once a picture, ``inner`` within one, ``aside`` around what it prints."""

    def outer(self) -> None:
        """Nobody watches."""

    def inner(self, done: int, total: int) -> None:
        """Nobody watches."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Nothing is in the way."""
        yield


def new_bar(*, count: bool = True) -> Progress:
    """A bar on stderr with the time left; rich must leave stdout alone: what is printed there may go into a pipe."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    done = MofNCompleteColumn() if count else TaskProgressColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), done, TimeRemainingColumn())
    return Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    )


@contextmanager
def _progress(n: int, method: str) -> Iterator[_Step]:
    """Bars on stderr, drawn only where somebody watches, and only once there is something to wait for."""
    if not say.on_terminal():
        yield _Step()
        return
    bar = new_bar()
    pictures = bar.add_task("pictures", total=n, visible=n > 1)
    passes = bar.add_task(method, total=None, visible=False)

    class Watched(_Step):
        def outer(self) -> None:
            bar.update(pictures, advance=1)
            bar.update(passes, visible=False)

        def inner(self, done: int, total: int) -> None:
            bar.start()
            bar.update(passes, completed=done, total=total, visible=True)

        @contextmanager
        def aside(self) -> Iterator[None]:
            bar.stop()
            yield
            if n > 1:
                bar.start()

    try:
        yield Watched()
    finally:
        bar.stop()
