"""Large weights read straight from the file into arrays, past the protobuf parser.

Parsing a 500 MB model holds its bytes, the parsed message and each array: three times the model. Protobuf is a simple
format, so the large ``raw_data`` of initializers can be located first, by walking the tags, and read where they are
wanted. Anything unusual in the file makes :func:`split` decline, and the ordinary parser decides.

    ModelProto.graph = 7     GraphProto.initializer = 5     TensorProto.raw_data = 9
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["Payload", "split"]

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
# A file of more fields than this is no network; walking it in Python would take minutes.
MOST_FIELDS = 1_000_000
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Payload:
    """``raw_data`` of the initializer number ``index``: ``length`` bytes at ``offset`` of the file."""

    index: int
    offset: int
    length: int


class _OddError(Exception):
    """Not the plain form that this module understands."""


def split(file: BinaryIO, size: int, large: int) -> tuple[bytes, list[Payload]] | None:
    """The model's bytes without the ``raw_data`` of at least ``large`` bytes, and where those are; None to decline."""
    try:
        return _Walk(file, large).model(size)
    except (_OddError, EOFError):
        return None


class _Walk:
    def __init__(self, file: BinaryIO, large: int) -> None:
        self.file, self.large = file, large
        self.payloads: list[Payload] = []
        self.initializers = self.fields = 0

    def model(self, size: int) -> tuple[bytes, list[Payload]]:
        out, graphs = bytearray(), 0
        for field, kind, start, length in self._fields(0, size):
            if field == GRAPH and kind == BYTES:
                graphs += 1
                inner = self._graph(start, start + length)
                out += _tag(GRAPH) + _varint(len(inner)) + inner
            else:
                out += self._copy(field, kind, start, length)
        if graphs != 1:
            raise _OddError
        return bytes(out), self.payloads

    def _graph(self, begin: int, end: int) -> bytes:
        out = bytearray()
        for field, kind, start, length in self._fields(begin, end):
            if field == INITIALIZER and kind == BYTES:
                inner = self._tensor(start, start + length)
                self.initializers += 1
                out += _tag(INITIALIZER) + _varint(len(inner)) + inner
            else:
                out += self._copy(field, kind, start, length)
        return bytes(out)

    def _tensor(self, begin: int, end: int) -> bytes:
        out, seen = bytearray(), 0
        for field, kind, start, length in self._fields(begin, end):
            if field == RAW_DATA and kind == BYTES:
                seen += 1
                if length >= self.large:
                    self.payloads.append(Payload(self.initializers, start, length))
                    continue
            out += self._copy(field, kind, start, length)
        if seen > 1:
            raise _OddError
        return bytes(out)

    def _fields(self, begin: int, end: int):  # type: ignore[no-untyped-def]
        """(field, wire type, start of the value, its length), one after the other, within [begin, end)."""
        at = begin
        while at < end:
            self.file.seek(at)
            tag, at = self._read_varint(at)
            kind = tag & 7
            if kind == VARINT:
                start = at
                _, at = self._read_varint(at)
                length = at - start
            elif kind == BYTES:
                length, start = self._read_varint(at)
                at = start + length
            elif kind in (FIXED64, FIXED32):
                start, length = at, 8 if kind == FIXED64 else 4
                at += length
            else:
                raise _OddError
            self.fields += 1
            if at > end or tag >> 3 == 0 or self.fields > MOST_FIELDS:
                raise _OddError
            yield tag >> 3, kind, start, length

    def _read_varint(self, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = self.file.read(1)
            if not byte or shift > 63:
                raise _OddError
            at += 1
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return value, at
            shift += 7

    def _copy(self, field: int, kind: int, start: int, length: int) -> bytes:
        self.file.seek(start)
        value = self.file.read(length)
        if len(value) != length:
            raise EOFError
        size = _varint(length) if kind == BYTES else b""
        return _varint(field << 3 | kind) + size + value


def _tag(field: int) -> bytes:
    return _varint(field << 3 | BYTES)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
