"""A convolution, its adjoint or a product with a matrix as one implicit matrix product (kernels/contraction.cu).

    acc[m, pixel] = sum_k packed[k, m] in[base(pixel) + offset(k)]

Here is what the kernel does not decide: which taps a residue class of a strided adjoint has, the order of k (term, tap,
channel), the tap table, the packed weights, the size of the tile and into how many parts k is split.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgcam_onnx.backends.cuda.operations import Contraction
from fgcam_onnx.errors import BackendError

__all__ = ["GROUPED", "PHASE", "SIZES", "Packing", "Tile", "choose_tile", "grouped", "is_direct", "pack", "phases"]

THREE = (3,)
# As struct Phase and struct Sizes of contraction.cu, and struct Grouped of conv_direct.cu.
PHASE = np.dtype(
    [("weights", np.int64)]
    + [(name, np.int32) for name in ("taps", "tiles", "tiles_first", "pixels")]
    + [(name, np.int32, THREE) for name in ("cells", "step", "begin", "out_step", "out_begin")],
    align=True,
)
SIZES = np.dtype(
    [(name, np.int32) for name in ("m", "groups", "splits")]
    + [("out", np.int32, THREE)]
    + [(name, np.int64) for name in ("in_image", "in_group", "out_image", "out_group", "out_channel")]
    + [(name, np.int64) for name in ("packed_group", "whole")],
    align=True,
)
GROUPED = np.dtype(
    [("cells", np.int64)]
    + [(name, np.int32) for name in ("groups", "ci", "co")]
    + [(name, np.int32, THREE) for name in ("in", "out", "kernel", "stride", "begin", "dilation")],
    align=True,
)
# A tap so far up that no pixel reaches it: rows that fill up a tile read nothing, not even a NaN.
NOWHERE = -(1 << 30)
LARGEST_OFFSET = (1 << 31) - 1
# A matrix with fewer rows than this is not worth a tile: one thread a cell instead.
FEWEST_ROWS = 16
MOST_SPLITS = 32
# A part of k that is shorter than this many tiles does not pay for adding the parts up.
SHORTEST_SPLIT = 8
# What a GPU multiplies while it moves a byte, what it moves while a kernel is launched, and how many blocks a
# multiprocessor has at once: round figures, to weigh one against the other.
FLOPS_PER_BYTE = {"fp32": 16, "tf32": 64}
LAUNCH_BYTES = 5_000_000
BLOCKS_AT_ONCE = 2


@dataclass(frozen=True)
class Tile:
    """A block computes 16 tm channels of 16 tn pixels, ``bk`` products at a time. ``splits``: parts of k."""

    tm: int
    tn: int
    tf32: bool
    splits: int

    @property
    def bm(self) -> int:
        return 16 * self.tm

    @property
    def bn(self) -> int:
        return 16 * self.tn

    @property
    def bk(self) -> int:
        return 8 if self.tm * self.tn == 64 else 16

    def run(self, itemsize: int) -> int:
        """Neighbouring pixels that a thread computes, up to 16 bytes of them."""
        return 1 if self.tn == 1 else 2 if self.tf32 else 16 // itemsize


@dataclass(frozen=True)
class Phase:
    """One product: per axis, how output cells are numbered and which taps they have.

    ``taps``: (kernel position, shift of the input) per axis. Output cell i reads input i ``step`` + ``begin`` + shift
    and is written at i ``out_step`` + ``out_begin``.
    """

    cells: tuple[int, ...]
    taps: tuple[tuple[tuple[int, int], ...], ...]
    step: tuple[int, ...]
    begin: tuple[int, ...]
    out_step: tuple[int, ...]
    out_begin: tuple[int, ...]

    @property
    def count(self) -> int:
        """Taps over all axes."""
        return math.prod(len(axis) for axis in self.taps)


@dataclass(frozen=True, eq=False)
class Packing:
    """The arrays and numbers that the kernel reads, and its grid.

    ``source``: spatial sizes of the input. ``padded_m``: length of a row of packed weights. ``run``: cells that may be
    finished together. ``uniform``: do the k of every tile belong to one tap?
    """

    weights: np.ndarray
    taps: np.ndarray
    phases: np.ndarray
    sizes: np.ndarray
    source: tuple[int, int, int]
    padded_m: int
    grid: tuple[int, int, int]
    flops: int
    run: int
    uniform: bool


def three(values: Sequence[int], missing: int) -> tuple[int, int, int]:
    """Up to three spatial axes as three."""
    z, y, x = (*[missing] * (3 - len(values)), *values)
    return z, y, x


def is_direct(operation: Contraction) -> bool:
    """Grouped, with so few channels in a group that a thread a cell is the better way."""
    w, g = operation.weights[0], operation.how.group
    rows = w.shape[1] if operation.adjoint else w.shape[0] // g
    return g > 1 and rows < FEWEST_ROWS


def phases(operation: Contraction) -> list[Phase]:
    """One for a convolution; for its adjoint one for each residue of the output position modulo the stride."""
    how, kernel, out = operation.how, operation.weights[0].shape[2:], operation.spatial
    if not operation.adjoint:
        taps = tuple(tuple((k, k * d) for k in range(size)) for size, d in zip(kernel, how.dilations, strict=True))
        ones = (1,) * len(out)
        return [Phase(tuple(out), taps, how.strides, tuple(-b for b in how.begins), ones, (0,) * len(out))]
    found = []
    for residue in itertools.product(*(range(min(s, size)) for s, size in zip(how.strides, out, strict=True))):
        taps = tuple(
            tuple((k, (a + b - k * d) // s) for k in range(size) if (a + b - k * d) % s == 0)
            for a, b, d, s, size in zip(residue, how.begins, how.dilations, how.strides, kernel, strict=True)
        )
        cells = tuple(-(-(size - a) // s) for size, a, s in zip(out, residue, how.strides, strict=True))
        ones, zeros = (1,) * len(out), (0,) * len(out)
        found.append(Phase(cells, taps, ones, zeros, how.strides, tuple(residue)))
    return found


def choose_tile(operation: Contraction, *, multiprocessors: int, double: bool, tf32: bool, wide: bool) -> Tile:
    """The tile that wastes little and keeps the device busy: small results are split along k."""
    n, g = operation.inputs[0].shape[0], operation.how.group
    parts = phases(operation)
    rows = operation.channels // g
    pixels = n * max((math.prod(p.cells) for p in parts), default=0)
    largest = 4 if double else 8
    tm = 1 if rows <= 16 else 4 if rows <= 64 else largest
    tn = 1 if pixels <= 16 else 4 if pixels <= 64 else largest
    tf32 = tf32 and tm > 1 and tn > 1 and not double
    if tm * tn == 64 and (wide or (len(operation.spatial) == 3 and not tf32)):
        tn = 4  # 64-bit offsets, or a third axis, take the registers
    tile = Tile(tm, tn, tf32, 1)
    blocks = -(-pixels // tile.bn) * -(-rows // tile.bm) * g * len(parts)
    tiles = max((len(operation.weights) * _rows(operation, p, tile) // tile.bk for p in parts), default=0)
    return Tile(tm, tn, tf32, _splits(operation, tile, blocks, tiles, multiprocessors))


def _splits(operation: Contraction, tile: Tile, blocks: int, tiles: int, multiprocessors: int) -> int:
    """Into how many parts k is best cut, by what it costs in bytes of memory traffic that could be done meanwhile.

    Blocks run in waves of as many as fit the device; a wave that is not full takes as long as a full one. Parts fill
    the waves, and cost the memory that they are written to and read from, and a launch.
    """
    if blocks == 0 or tiles == 0:
        return 1
    slots = BLOCKS_AT_ONCE * multiprocessors
    work = 2 * blocks * tiles * tile.bk * tile.bm * tile.bn / FLOPS_PER_BYTE["tf32" if tile.tf32 else "fp32"]
    itemsize = 4  # what matters is the order of things

    def cost(splits: int) -> float:
        waves = -(-blocks * splits // slots)
        parts = 2 * splits * operation.size * itemsize + LAUNCH_BYTES if splits > 1 else 0
        return work * waves * slots / (blocks * splits) + parts

    most = max(1, min(tiles // SHORTEST_SPLIT, MOST_SPLITS))
    return min(range(1, most + 1), key=cost)


def _gathered_channels(operation: Contraction) -> int:
    """Channels that a group of the result reads."""
    w = operation.weights[0]
    return int(w.shape[0] // operation.how.group if operation.adjoint else w.shape[1])


def _rows(operation: Contraction, phase: Phase, tile: Tile) -> int:
    """Length of k for one term, filled up to whole tiles."""
    return -(-phase.count * _gathered_channels(operation) // tile.bk) * tile.bk


def pack(operation: Contraction, tile: Tile, dtype: np.dtype[Any]) -> Packing:
    """Weights as [group][phase][term, tap, channel][m], filled with zeros; the tap table with {offset, dz, dy, dx}."""
    g = operation.how.group
    n, c, *spatial = operation.inputs[0].shape
    source, result = three(spatial, 1), three(operation.spatial, 1)
    cells_in, cells_out = math.prod(source), math.prod(result)
    m, channels = operation.channels // g, _gathered_channels(operation)
    padded = -(-m // tile.bm) * tile.bm
    terms = len(operation.weights)
    found = phases(operation)

    structs, tables, matrices = np.zeros(len(found), PHASE), [], []
    first_row, first_weight, flops = 0, 0, 0
    for struct, phase in zip(structs, found, strict=True):
        rows = _rows(operation, phase, tile)
        taps = list(itertools.product(*phase.taps))
        table = np.zeros((rows, 4), np.int64)
        table[:, 2] = NOWHERE
        for t, tap in enumerate(taps):
            dz, dy, dx = three([shift for _, shift in tap], 0)
            block = table[t * channels : (t + 1) * channels]
            block[:, 0] = np.arange(channels) * cells_in + (dz * source[1] + dy) * source[2] + dx
            block[:, 1:] = dz, dy, dx
        tables += [table] * terms
        matrices.append([_matrix(w, [tuple(k for k, _ in tap) for tap in taps], operation, rows, padded, dtype)
                         for w in operation.weights])  # fmt: skip
        struct["weights"], struct["taps"] = first_weight, first_row
        struct["tiles"], struct["tiles_first"] = terms * rows // tile.bk, rows // tile.bk
        struct["pixels"] = n * math.prod(phase.cells)
        struct["cells"], struct["step"] = three(phase.cells, 1), three(phase.step, 1)
        struct["begin"], struct["out_step"] = three(phase.begin, 0), three(phase.out_step, 1)
        struct["out_begin"] = three(phase.out_begin, 0)
        first_row += terms * rows
        first_weight += terms * rows * padded
        flops += 2 * terms * len(taps) * channels * m * g * n * math.prod(phase.cells)

    weights = np.concatenate([part for phase in matrices for part in phase], axis=1)  # [group, k, m]
    if tile.tf32:
        weights = to_tf32(weights)
    sizes = np.zeros(1, SIZES)
    sizes["m"], sizes["groups"], sizes["splits"] = m, g, tile.splits
    sizes["out"] = result
    sizes["in_image"], sizes["in_group"] = c * cells_in, channels * cells_in
    sizes["out_image"], sizes["out_group"] = operation.channels * cells_out, m * cells_out
    sizes["out_channel"] = cells_out
    sizes["packed_group"], sizes["whole"] = first_weight, n * operation.channels * cells_out
    table = np.concatenate(tables) if tables else np.zeros((0, 4), np.int64)
    if table.size and table[:, 0].max() > LARGEST_OFFSET:
        raise BackendError(
            f"an image of {c} channels of {' x '.join(map(str, spatial))} cells is too large for the CUDA kernels",
            known="the cells that one output cell reads lie more than 2^31 apart",
            next="backend='ort' runs on the CPU",
        )
    most = max((int(s["pixels"]) for s in structs), default=0)
    grid = (-(-most // tile.bn), padded // tile.bm, len(found) * g * tile.splits)
    # The pixels of a thread lie side by side in memory where there is one phase and no step between its cells.
    whole = len(found) == 1 and all(step == 1 for step in found[0].out_step)
    run = tile.run(np.dtype(dtype).itemsize)
    run = run if whole and cells_out % run == 0 else 1
    return Packing(
        weights,
        table.astype(np.int32),
        structs,
        sizes,
        source,
        padded,
        grid,
        flops,
        run,
        uniform=channels % tile.bk == 0,
    )


def to_tf32(x: np.ndarray) -> np.ndarray:
    """float32 with ten bits of mantissa, halves away from zero, as cvt.rna.tf32 rounds; finite numbers only."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def _matrix(
    w: np.ndarray,
    taps: Sequence[tuple[int, ...]],
    operation: Contraction,
    rows: int,
    padded: int,
    dtype: np.dtype[Any],
) -> np.ndarray:
    """[group, rows, padded]: tap and channel down, m across."""
    g = operation.how.group
    grouped = w.reshape(g, w.shape[0] // g, *w.shape[1:])  # [group, co, ci, k...]
    matrix = np.zeros((g, rows, padded), dtype)
    row = 0
    for tap in taps:
        at: Any = (..., *tap)
        block = grouped[at]  # [group, co, ci]
        if not operation.adjoint:
            block = block.swapaxes(1, 2)
        matrix[:, row : row + block.shape[1], : block.shape[2]] = block
        row += block.shape[1]
    return matrix


def grouped(operation: Contraction) -> np.ndarray:
    """struct Grouped: the sizes for kernels/conv_direct.cu, of the convolution whichever way it is walked."""
    how, w = operation.how, operation.weights[0]
    outer, inner = operation.spatial, operation.inputs[0].shape[2:]
    found = np.zeros(1, GROUPED)
    found["cells"] = operation.output.size
    found["groups"], found["ci"], found["co"] = how.group, w.shape[1], w.shape[0] // how.group
    found["in"] = three(outer if operation.adjoint else inner, 1)
    found["out"] = three(inner if operation.adjoint else outer, 1)
    found["kernel"], found["stride"] = three(w.shape[2:], 1), three(how.strides, 1)
    found["begin"], found["dilation"] = three(how.begins, 0), three(how.dilations, 1)
    return found
