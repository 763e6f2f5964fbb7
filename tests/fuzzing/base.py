"""What every kind of mutation works on, and the list of kinds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import onnx

__all__ = ["FLOATS", "INTS", "KINDS", "Draft", "NotHereError", "kind", "pick"]

T = TypeVar("T")
INTS = (0, -1, 1, 2, 3, 5, -2, 17, 255, 1000, 4096, 65536, 10**6, 2**24 + 1, 2**31 - 1, -(2**31), 2**31, 2**32, 2**40)
INTS += (2**62, 2**63 - 1, -(2**63), 2**61 + 3, -(2**62))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e-45, 1e-38, 1e10, -1e10)


class NotHereError(Exception):
    """The model has nothing that this kind of mutation could change."""


class Draft:
    """A model while it is being mutated: bytes or a message, whichever was asked for last."""

    def __init__(self, rng: random.Random, entry: str, content: bytes) -> None:
        self.rng, self.entry = rng, entry
        self.beside: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self._content: bytes | None = content
        self._proto: onnx.ModelProto | None = None

    @property
    def content(self) -> bytes:
        if self._content is None:
            assert self._proto is not None
            self._content = self._proto.SerializeToString()
        return self._content

    @content.setter
    def content(self, content: bytes) -> None:
        self._content, self._proto = content, None

    @property
    def proto(self) -> onnx.ModelProto:
        """The message, to be changed in place."""
        if self._proto is None:
            assert self._content is not None
            try:
                self._proto = onnx.ModelProto.FromString(self._content)
            except Exception as error:
                raise NotHereError from error
        self._content = None
        return self._proto

    @property
    def graph(self) -> onnx.GraphProto:
        return self.proto.graph


Mutation = Callable[[Draft], None]
KINDS: dict[str, Mutation] = {}


def kind(mutation: Mutation) -> Mutation:
    """Register a mutation under its name."""
    if mutation.__name__ in KINDS:
        raise KeyError(mutation.__name__)
    KINDS[mutation.__name__] = mutation
    return mutation


def pick(rng: random.Random, among: Sequence[T]) -> T:
    if not among:
        raise NotHereError
    return among[rng.randrange(len(among))]
