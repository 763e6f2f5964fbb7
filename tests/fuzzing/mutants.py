"""A hostile model from the name of an honest one and a number.

A *kind* is one way of doing harm. The number chooses the kind in turn, so that every kind occurs as often as any other,
and seeds whatever else is left to chance; now and then a second or third kind joins in.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from fuzzing import bytewise, corpus, graphwise, hostile
from fuzzing.base import KINDS, Draft, NotHereError

__all__ = ["KINDS", "Mutant", "make"]

MODULES = (graphwise, hostile, bytewise)
BYTEWISE = [name for name, mutation in KINDS.items() if mutation.__module__ == bytewise.__name__]


@dataclass(frozen=True)
class Mutant:
    """``content``: the model file. ``beside``: further files of its folder, ``links``: symbolic links there."""

    entry: str
    seed: int
    kinds: tuple[str, ...]
    content: bytes
    as_path: bool
    beside: Mapping[str, bytes] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)


def make(entry: str, seed: int) -> Mutant:
    """Mutant number ``seed`` of a model. The same arguments always give the same mutant."""
    rng = random.Random(f"{entry}/{seed}")
    names = list(KINDS)
    wanted = [names[seed % len(names)]]
    while rng.random() < 0.15:
        wanted.append(rng.choice(names))
    draft = Draft(rng, entry, corpus.read(entry))
    done = []
    for kind in sorted(wanted, key=BYTEWISE.__contains__):  # what changes bytes comes after what changes the graph
        for name in (kind, rng.choice(BYTEWISE)):  # where there is nothing to do this kind of harm to: bytes
            try:
                KINDS[name](draft)
            except NotHereError:
                continue
            done.append(name)
            break
    as_path = bool(draft.beside or draft.links) or rng.random() < 0.5
    return Mutant(entry, seed, tuple(done), draft.content, as_path, draft.beside, draft.links)


def proto(mutant: Mutant) -> onnx.ModelProto:
    """The mutant as protobuf reads it."""
    return onnx.ModelProto.FromString(mutant.content)
