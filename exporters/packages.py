"""Frameworks and their converters: imported when first needed, and only in versions that are known to serve.

``PACKAGES`` is the one table: which extra brings a package, and from which version to below which. The lower bound is
the oldest version that has what an exporter calls, the upper one the next that may break its interface. Inside the
bounds nothing is promised by a number: :mod:`fgcam_onnx.exporters.base` proves each file.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import IO, Any

from fgcam_onnx.errors import ExportError, MissingFrameworkError

__all__ = ["PACKAGES", "Package", "brief", "captured", "load", "versions"]


@dataclass(frozen=True)
class Package:
    """``names``: under which it may be installed, first found first taken. Versions as in ``>=at_least,<below``."""

    extra: str
    at_least: str
    below: str
    names: tuple[str, ...]


def _package(extra: str, at_least: str, below: str, *names: str) -> Package:
    return Package(extra, at_least, below, names)


PACKAGES = {
    "torch": _package("export", "2.9", "3", "torch"),
    "torchvision": _package("export", "0.24", "1", "torchvision"),
    "onnxscript": _package("export", "0.5", "1", "onnxscript"),
    "timm": _package("export-timm", "1.0.11", "2", "timm"),
    "safetensors": _package("export-timm", "0.4", "1", "safetensors"),
    "keras": _package("export-keras", "3.10", "4", "keras"),
    "tensorflow": _package("export-tensorflow", "2.18", "3", "tensorflow-cpu", "tensorflow"),
    "tf2onnx": _package("export-tensorflow", "1.17", "2", "tf2onnx"),
    "paddle": _package("export-paddle", "3.0", "4", "paddlepaddle", "paddlepaddle-gpu"),
    "paddle2onnx": _package("export-paddle", "2.0", "3", "paddle2onnx"),
    "jax": _package("export-jax", "0.8.1", "1", "jax"),
    "jax2onnx": _package("export-jax", "0.17", "1", "jax2onnx"),
    "flax": _package("export-jax", "0.12.1", "1", "flax"),
}


def load(name: str, *, beside: str | None = None) -> Any:
    """The module of a package of the table, imported. ``beside``: the package it has to work with, for the error.

    Raises:
        MissingFrameworkError: it is not installed; the text has the pip command.
        ExportError: its version is outside the table, or it cannot be imported.
    """
    package = PACKAGES[name]
    command = f'pip install "fgcam_onnx[{package.extra}]"'
    try:
        with captured() as said:
            module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or name).split(".")[0] == name:
            raise MissingFrameworkError(f"{name} is not installed", next=command) from error
        raise _not_importable(name, error, said.text(), command) from error
    except Exception as error:  # a broken installation may raise anything
        raise _not_importable(name, error, said.text(), command) from error
    found = version(name)
    if not _key(package.at_least) <= _key(found) < _key(package.below):
        pair = f" with {beside} {version(beside)}" if beside is not None else ""
        raise ExportError(
            f"{name} {found}{pair} cannot be used for an export",
            known=f"{name} has to be >={package.at_least},<{package.below}",
            next=command,
        )
    return module


def _not_importable(name: str, error: Exception, said: str, command: str) -> ExportError:
    others = [f"{other} {found}" for other in ("torch", "numpy", "onnx", "protobuf") if (found := _installed(other))]
    return ExportError(
        f"{name} {version(name)} is installed and cannot be imported",
        known=f"{brief(error)}; beside it: {', '.join(others)}",
        next=f"install versions that belong together: {command}",
    )


def version(name: str) -> str:
    """The installed version of a package of the table, or of any other."""
    names = PACKAGES[name].names if name in PACKAGES else (name,)
    found = next((found for each in names if (found := _installed(each))), None)
    return found or str(getattr(sys.modules.get(name), "__version__", "of unknown version"))


def versions(*names: str) -> dict[str, str]:
    """Name -> version, for the record in the file."""
    return {name: version(name) for name in names}


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _key(text: str) -> tuple[int, ...]:
    """``2.13.0+cpu`` -> (2, 13, 0). What follows the numbers does not count; trailing zeros neither."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    numbers = [int(part) for part in match.group().split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


# ---------------------------------------------------------------------------------------------------- chatter


class Said:
    """What a framework printed, for the error that may have to quote it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._text = ""

    def text(self) -> str:
        if not self._file.closed:
            self._file.seek(0)
            self._text = self._file.read().decode(errors="replace")
        return self._text


class _Stream:
    """Stands for sys.stdout or sys.stderr: into the file for as long as that is wanted, then to the stream itself.

    Loggers made meanwhile keep the stream that they found, so it has to live on.
    """

    def __init__(self, stream: Any, number: int) -> None:
        self.stream, self.number = stream, number

    def write(self, text: str) -> int:
        if self.number < 0:
            return int(self.stream.write(text))
        os.write(self.number, text.encode(errors="replace"))
        return len(text)

    def close_file(self) -> None:
        self.number = -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def captured() -> Iterator[Said]:
    """Keep a framework's warnings and prints to itself: stdout belongs to the caller, who may print JSON there.

    Some converters print from C++, so it is the file descriptors that are turned away, and Python's streams, which
    need not lead there.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        said = Said(file)
        stack.callback(said.text)  # read before the file closes
        for number in (1, 2):
            _turn_away(stack, number, file.fileno())
        for name in ("stdout", "stderr"):
            stream = _Stream(getattr(sys, name), file.fileno())
            stack.callback(setattr, sys, name, stream.stream)
            stack.callback(stream.close_file)
            setattr(sys, name, stream)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield said


def _turn_away(stack: contextlib.ExitStack, number: int, towards: int) -> None:
    try:
        kept = os.dup(number)
    except OSError:  # closed: a service has no stdout
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os.dup2(towards, number)
    stack.callback(os.close, kept)
    stack.callback(os.dup2, kept, number)


def brief(error: BaseException | str, length: int = 300) -> str:
    """An error's class and text on one line, cut to what fits a screen."""
    text = " ".join(str(error).split())
    if isinstance(error, BaseException):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= length else text[: length - 3] + "..."
