"""``fgcam export SOURCE -o FILE.onnx``: a model of another framework as an ONNX file, proved to compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgcam_onnx.cli import picture_options, say

if TYPE_CHECKING:
    from fgcam_onnx.exporters import Exported


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
            help="Height and width of the input: 224 or 224x320.",
            rich_help_panel=picture_options.PANEL,
            show_default=False,
        ),
    ] = None,
    preprocess: picture_options.Preprocess = None,
    resize: picture_options.Resize = None,
    short_side: picture_options.ShortSide = None,
    interpolation: picture_options.Interpolation = None,
    color: picture_options.Color = None,
    scale: picture_options.Scale = None,
    mean: picture_options.Mean = None,
    std: picture_options.Std = None,
    json: say.Json = False,
    debug: say.Debug = False,
) -> None:
    """Write a model of PyTorch, timm, Keras, TensorFlow, Paddle or JAX as ONNX, and prove that it computes the same.

    The source model and the file answer the same pictures; where scores differ there is an error, and no file.
    How a picture becomes the input is recorded in the file; what is not given is the source's own.
    """
    given = picture_options.fields(resize, short_side, interpolation, color, scale, mean, std)
    from fgcam_onnx import exporters, presets

    said = {} if preprocess is None else dict(presets.read(preprocess).fields)
    done = exporters.export(
        source,
        output,
        weights=weights,
        size=None if size is None else picture_options.sides(size),
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
