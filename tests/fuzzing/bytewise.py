"""Harm done to a file without knowing what it is."""

from __future__ import annotations

from functools import cache

import onnx

from fuzzing import corpus
from fuzzing.base import Draft, NotHereError, kind

LARGE = 40


@cache
def _structure(content: bytes) -> list[tuple[int, int]]:
    """The spans of a file that are no weights: names, shapes, attributes, lengths."""
    try:
        proto = onnx.ModelProto.FromString(content)
    except Exception as error:
        raise NotHereError from error
    spans, at = [], 0
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) >= LARGE:
            start = content.find(tensor.raw_data, at)
            if start >= at:
                spans.append((at, start))
                at = start + len(tensor.raw_data)
    return [(a, b) for a, b in (*spans, (at, len(content))) if b > a]


def _place(draft: Draft) -> int:
    """A position in the structure of a file, or anywhere in it one time out of four."""
    size = len(draft.content)
    if not size:
        raise NotHereError
    if draft.rng.random() < 0.25:
        return draft.rng.randrange(size)
    spans = _structure(draft.content) if draft.content == corpus.read(draft.entry) else [(0, size)]
    at = draft.rng.randrange(sum(b - a for a, b in spans))
    for a, b in spans:
        if at < b - a:
            return a + at
        at -= b - a
    raise AssertionError


@kind
def flipped_bits(draft: Draft) -> None:
    places = [_place(draft) for _ in range(draft.rng.choice((1, 1, 1, 2, 4, 16)))]
    content = bytearray(draft.content)
    for place in places:
        content[place] ^= 1 << draft.rng.randrange(8)
    draft.content = bytes(content)


@kind
def byte_runs(draft: Draft) -> None:
    """A run of bytes becomes zeros, ones, or noise."""
    place, length = _place(draft), draft.rng.choice((1, 2, 4, 8, 64, 512))
    run = draft.rng.choice((bytes(length), b"\xff" * length, draft.rng.randbytes(length)))
    draft.content = draft.content[:place] + run[: len(draft.content) - place] + draft.content[place + length :]


@kind
def truncated(draft: Draft) -> None:
    draft.content = draft.content[: _place(draft)]


@kind
def repeated(draft: Draft) -> None:
    """A piece of the file is there twice; protobuf merges what it can."""
    place, length = _place(draft), draft.rng.choice((1, 2, 8, 100, 1000, 100_000))
    draft.content = draft.content[: place + length] + draft.content[place:]


@kind
def cut_out(draft: Draft) -> None:
    place, length = _place(draft), draft.rng.choice((1, 2, 8, 100, 1000))
    draft.content = draft.content[:place] + draft.content[place + length :]


@kind
def spliced(draft: Draft) -> None:
    """The front of one file, the back of another; or both whole, one behind the other."""
    small = [name for name in corpus.entries() if name not in corpus.HEAVY]
    other = corpus.read(draft.rng.choice(small))
    whole = draft.rng.random() < 0.3
    cut = len(draft.content) if whole else _place(draft)
    draft.content = draft.content[:cut] + other[0 if whole else draft.rng.randrange(len(other)) :]


@kind
def long_varints(draft: Draft) -> None:
    """A byte becomes a number of many bytes: a length beyond the file, a dimension beyond any memory."""
    place = _place(draft)
    number = draft.rng.choice(
        (b"\xff\xff\xff\xff\x07", b"\xff" * 9 + b"\x01", b"\xff" * 9 + b"\x7f", b"\x80" * 30 + b"\x01")
    )
    draft.content = draft.content[:place] + number + draft.content[place + draft.rng.randrange(2) :]


@kind
def not_utf8(draft: Draft) -> None:
    """Names in letters that are none."""
    try:
        graph = onnx.ModelProto.FromString(draft.content).graph
    except Exception as error:
        raise NotHereError from error
    words = {w for n in graph.node for w in (n.name, n.op_type, *n.input, *n.output, *(a.name for a in n.attribute))}
    words |= {t.name for t in (*graph.initializer, *graph.input, *graph.output)}
    words = sorted(w for w in words if isinstance(w, str) and len(w) > 2)
    if not words:
        raise NotHereError
    word = draft.rng.choice(words).encode()
    letter = draft.rng.choice((b"\xff", b"\xc0", b"\x00", b"\xed"))
    draft.content = draft.content.replace(word, letter + word[1:], draft.rng.choice((1, -1)))
