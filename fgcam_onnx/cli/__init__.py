"""The command line ``fgcam``: one file a command, and here what they share the door with.

Importing this loads typer and the standard library alone; NumPy, Pillow, onnx and onnxruntime are loaded by the command
that needs them. Exit codes: 0 fine, 1 failure, 2 a wrong word in the command, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from fgcam_onnx.cli import say
from fgcam_onnx.cli.demo import demo
from fgcam_onnx.cli.evaluate import evaluate
from fgcam_onnx.cli.explain import explain
from fgcam_onnx.cli.export import export
from fgcam_onnx.cli.inspect import inspect
from fgcam_onnx.cli.methods import methods
from fgcam_onnx.cli.ops import ops
from fgcam_onnx.errors import FgcamError

__all__ = ["app", "main"]

app = typer.Typer(
    name="fgcam",
    help="What did this network look at? Fine-grained, accounted-for explanations of any ONNX image classifier.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, inspect, explain, evaluate, export, methods, ops):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"fgcam_onnx {version('fgcam_onnx')}")
        except PackageNotFoundError:
            typer.echo("fgcam_onnx, not installed: run from its source folder")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """The options before the command's name."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line (default: this process's) and end the process with its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        app(args=args, prog_name="fgcam")
    except FgcamError as error:
        if "--debug" in args:
            raise
        say.error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
