"""``fgcam export SOURCE -o FILE.onnx``: a model of another framework as an ONNX file, proved to compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgcam_onnx.cli import say
from fgcam_onnx.cli.words import number, sides

if TYPE_CHECKING:
    from fgcam_onnx.exporters import Exported

_PICTURE = "How a picture becomes the input: recorded in the file; what is not given is the source's own"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="torchvision:NAME, timm:NAME, keras:NAME or paddle:NAME; torch:package.module:factory or "
            "jax:package.module:factory; or a path: a Keras file, a SavedModel folder, a Paddle inference model.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.onnx", help="The file to write.", show_default=False)
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            help="none for random weights, the name of published ones, or a file: .pth or .safetensors, .weights.h5, "
            ".pdparams. Default: the published ones, where there are any.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="How many, where weights bring another classifier.", show_default=False)
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="A file of class names, a class a line or JSON.", show_default=False)
    ] = None,
    opset: Annotated[
        int | None, typer.Option(min=7, help="ONNX opset; the converter's own choice.", show_default=False)
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="How far the file's scores may be from the source's, as a share of the largest.")
    ] = 1e-4,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures of the proof, and of random weights.")] = 0,
    size: Annotated[
        str | None,
        typer.Option(
            help="Height and width of the input: 224 or 224x320.", rich_help_panel=_PICTURE, show_default=False
        ),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS|FILE",
            help="A preset (caffe, tf, torch, imagenet ...), key=value words, or a JSON file; the options below win.",
            rich_help_panel=_PICTURE,
            show_default=False,
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            help="stretch, short_side_then_center_crop or stretch_then_center_crop.",
            rich_help_panel=_PICTURE,
            show_default=False,
        ),
    ] = None,
    short_side: Annotated[
        int | None, typer.Option(help="Pixels before the crop.", rich_help_panel=_PICTURE, show_default=False)
    ] = None,
    interpolation: Annotated[
        str | None, typer.Option(help="bilinear, bicubic, ...", rich_help_panel=_PICTURE, show_default=False)
    ] = None,
    color: Annotated[
        str | None, typer.Option(help="RGB, BGR or GRAY.", rich_help_panel=_PICTURE, show_default=False)
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(help="x = (v * scale - mean) / std: 1, 1/255 ...", rich_help_panel=_PICTURE, show_default=False),
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="0.485,0.456,0.406", rich_help_panel=_PICTURE, show_default=False)
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="0.229,0.224,0.225", rich_help_panel=_PICTURE, show_default=False)
    ] = None,
    json: say.Json = False,
    debug: say.Debug = False,
) -> None:
    """Write a model of PyTorch, timm, Keras, TensorFlow, Paddle or JAX as ONNX, and prove that it computes the same.

    The source model and the file answer the same pictures; where scores differ there is an error, and no file.
    """
    given = {
        "resize": resize,
        "short_side": short_side,
        "interpolation": interpolation,
        "color": color,
        "scale": None if scale is None else number("scale", scale),
        "mean": None if mean is None else [number("mean", word) for word in mean.split(",")],
        "std": None if std is None else [number("std", word) for word in std.split(",")],
    }
    from fgcam_onnx import exporters, presets

    said = {} if preprocess is None else dict(presets.read(preprocess).fields)
    done = exporters.export(
        source,
        output,
        weights=weights,
        size=None if size is None else sides(size),
        classes=classes,
        opset=opset,
        labels=labels,
        preprocessing=said | {key: value for key, value in given.items() if value is not None},
        tolerance=tolerance,
        seed=seed,
    )
    if json:
        say.as_json(_record(done))
    else:
        _print(done, output)


def _record(done: Exported) -> dict[str, Any]:
    return {
        "file": str(done.path),
        "bytes": done.path.stat().st_size,
        "source": done.source,
        "input": {"shape": list(done.input_shape), "layout": done.layout},
        "output": {"shape": list(done.output_shape)},
        "opset": done.opset,
        "preprocessing": None if done.preprocessing is None else done.preprocessing.to_dict(),
        "labels": None if done.labels is None else len(done.labels),
        "proof": {"difference": done.difference, "tolerance": done.tolerance},
        "versions": done.versions,
        "notes": list(done.notes),
    }


def _print(done: Exported, output: Path) -> None:
    named = ", named in the file" if done.labels else ", without names: --labels FILE"
    classes = done.output_shape[1] if len(done.output_shape) == 2 else None
    proof = f"scores equal to {done.difference:.1e} of the largest; allowed {done.tolerance:.0e}"
    say.facts(
        [
            ("file", f"{output}   {say.size(done.path.stat().st_size)}"),
            ("source", done.source),
            ("input", f"{say.shape(done.input_shape)} {done.layout}"),
            ("classes", f"{say.shape(done.output_shape) if classes is None else classes}{named}"),
            ("pictures", "" if done.preprocessing is None else done.preprocessing.describe()),
            ("proof", proof),
            ("versions", ", ".join(f"{name} {version}" for name, version in done.versions.items())),
            *(("note", note) for note in done.notes),
        ]
    )
    typer.echo(f"next: fgcam explain {output} picture.jpg")
