"""Sidecars in JSON, whatever tool wrote them: read key by key, and what they say about a recipe.

Nothing is evaluated or unpickled, and a value of a wrong type is an error that names file and key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fgcam_onnx.errors import FgcamError, ModelError, OptionError
from fgcam_onnx.folder import read
from fgcam_onnx.recipe import number, pair

__all__ = ["NEXT", "Config", "Found", "as_record", "parse", "read_record"]

LARGEST_FILE = 1 << 20
NEXT = "correct it, or say it yourself: --preprocess imagenet"
T = TypeVar("T")


def parse(text: str, name: str) -> Any:
    """JSON; ``name`` stands in the error.

    Raises :class:`ModelError`.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is not JSON", known=str(error), next=NEXT) from None


def read_record(file: Path) -> tuple[dict[str, Any], str]:
    """The JSON object in a file, and the hash of the file.

    Raises :class:`ModelError`.
    """
    found = read(file, LARGEST_FILE, "a configuration")
    name = repr(str(file))
    return as_record(parse(found.text, name), name), found.sha256


def as_record(value: Any, name: str) -> dict[str, Any]:
    """``value`` if it is a JSON object.

    Raises :class:`ModelError`.
    """
    if not isinstance(value, dict):
        raise ModelError(f"{name} is not a JSON object", known=f"it is a {type(value).__name__}", next=NEXT)
    return value


@dataclass(frozen=True)
class Found:
    """Fields of a recipe, and where they are from.

    ``notes``: what in that source could not be honoured. ``whole``: fields that are not there have their defaults,
    whatever another source says.
    """

    fields: Mapping[str, Any]
    source: str
    file: Path | None = None
    sha256: str | None = None
    notes: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Config:
    """Reads one key of a JSON object after the other, and names file and key where a value makes no sense.

    ``null`` is a key that is not there.
    """

    record: Mapping[str, Any]
    file: str

    def get(self, key: str) -> Any:
        return self.record.get(key)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.record.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "true or false")
        return default if value is None else value

    def word(self, key: str, default: str = "") -> str:
        value = self.record.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, "a word")
        return default if value is None else value

    def number(self, key: str, default: float) -> float:
        value = self.record.get(key)
        return default if value is None else self.tried(key, lambda: number(key, value))

    def numbers(self, key: str, default: tuple[float, ...], counts: tuple[int, ...] = (1, 3)) -> tuple[float, ...]:
        value = self.record.get(key)
        if value is None:
            return default
        values = value if isinstance(value, list) else [value]
        if len(values) not in counts:
            each = " or one for each of three channels" if 3 in counts else ""
            raise self.error(key, f"one number{each and ',' + each}")
        return tuple(self.tried(key, lambda: [number(key, v) for v in values]))

    def pair(self, key: str, value: Any) -> tuple[int, int]:
        """Height and width: ``value`` lies under ``key``."""
        return self.tried(key, lambda: pair(key, value))

    def tried(self, key: str, read: Callable[[], T]) -> T:
        try:
            return read()
        except OptionError as error:
            raise self.error(key, error.known or error.what) from None

    def error(self, key: str, known: str) -> FgcamError:
        text = json.dumps(self.record.get(key))
        return ModelError(
            f"{key!r} in {self.file!r} is {text if len(text) <= 80 else text[:77] + '...'}", known=known, next=NEXT
        )
