"""Groups as launches: for each kernel its source, its grid and its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgcam_onnx.backends.cuda import contraction
from fgcam_onnx.backends.cuda.launch import THREADS, Argument, Constant, Launch, Pointer, Scratch, kernel_source
from fgcam_onnx.backends.cuda.operations import (
    Buffer,
    Concat,
    Contraction,
    Gather,
    MatMul,
    MaxRoute,
    Operation,
    Place,
    Reduce,
    ScatterAdd,
    Settle,
    Total,
    Value,
    WindowSpread,
    WindowSum,
)
from fgcam_onnx.backends.cuda.schedule import Group
from fgcam_onnx.backends.cuda.text import Cell, block_sum, cell_of, finish, finish_run, map_source
from fgcam_onnx.errors import BackendError

__all__ = ["Lowering", "Target"]

THREE = (3,)
# As the structs of window.cu, matmul.cu and move.cu.
WINDOWS = np.dtype(
    [("cells", np.int64), ("winners", np.int64)]
    + [(name, np.int32, THREE) for name in ("in", "out", "kernel", "stride", "begin", "dilation")],
    align=True,
)
PRODUCT = np.dtype(
    [(name, np.int32) for name in ("rows", "inner", "columns")]
    + [("lead", np.int32, (4,)), ("a_lead", np.int64, (4,)), ("b_lead", np.int64, (4,))]
    + [(name, np.int64) for name in ("a_row", "a_inner", "b_inner", "b_column")],
    align=True,
)
AXIS = np.dtype([("cells", np.int64), ("inner", np.int64), ("before", np.int32), ("after", np.int32)], align=True)
PLACED = np.dtype([("cells", np.int64)] + [(name, np.int32, (6,)) for name in ("in", "out", "begin")], align=True)
# An axis of at most this length is no work for a block.
SHORT_AXIS = 32
# An axis longer than this is reduced in two steps, if there are too few results to keep a device busy.
LONG_AXIS = 4096
WINDOW_KERNELS = {"window_sum": 0, "window_spread": 1, "max_winner": 2, "max_route": 3}
MOVE_KERNELS = {"gather": 0, "scatter_add": 1, "place": 2, "insert": 3}
NARROW = 1 << 31
# Blocks along the second and third axis of a grid, at most.
GRID = 65535


@dataclass(frozen=True)
class Target:
    """What is compiled for. ``tf32``: products of one sign may be rounded to TF32."""

    dtype: np.dtype[Any]
    multiprocessors: int
    tf32: bool


class Lowering:
    """Turns groups into launches, one after the other."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.dtype = target.dtype
        self.launches: list[Launch] = []
        # What the blocks of all totals left: the place of a total's first part, and how many parts an image has.
        self.parts = Scratch(0)
        self._parts: dict[Total, tuple[int, int]] = {}
        self._lowerings: dict[type[Operation], Callable[[Group, Any, Cell], None]] = {
            Contraction: self._contraction,
            WindowSum: self._window,
            WindowSpread: self._window,
            MaxRoute: self._max_route,
            MatMul: self._matmul,
            Gather: self._gather,
            ScatterAdd: self._scatter_add,
            Place: self._place,
            Reduce: self._reduce,
            Concat: self._concat,
            Settle: self._settle,
        }

    def group(self, group: Group) -> None:
        """Append the launches of one group."""
        if group.size == 0:
            return  # no cell, no launch: a grid of no blocks is an error
        cell = cell_of(group, self.dtype)
        if group.anchor is None:
            self._map(group, cell)
        else:
            self._lowerings[type(group.anchor)](group, group.anchor, cell)

    def books(self, tallies: Sequence[Buffer], out: Buffer) -> None:
        """Totals added up, in one launch: ``out`` has the images of each tally, one tally behind the other."""
        if not tallies or out.size == 0:
            return
        spans: list[tuple[int, int]] = []
        of = [0]
        for tally in tallies:
            for image in range(tally.shape[0]):
                for total in tally.totals:
                    if total in self._parts:  # a total over no cells has none
                        first, blocks = self._parts[total]
                        spans.append((first + image * blocks, blocks))
                of.append(len(spans))
        tables = (np.asarray(spans or [(0, 0)], np.int32), np.asarray(of, np.int32))
        arguments = [Pointer(self.parts), *(Pointer(Constant(table)) for table in tables), Pointer(out)]
        self._emit("totals", (out.size, 1, 1), arguments, None, file="totals.cu", text=block_sum(), writes=(out,))

    # --- launches -------------------------------------------------------------------------------------------------

    def _wide(self, arguments: Sequence[Argument]) -> bool:
        sizes = [a.buffer.size for a in arguments if isinstance(a, Pointer) and isinstance(a.buffer, Buffer)]
        return max(sizes, default=0) >= NARROW

    def _emit(
        self, name: str, grid: tuple[int, int, int], arguments: Sequence[Argument], cell: Cell | None, *,
        file: str | None = None, defines: Sequence[tuple[str, int]] = (), text: str = "", writes: Sequence[Any] = (),
        wide: bool | None = None, label: str = "", flops: int = 0,
    ) -> None:  # fmt: skip
        if max(grid[1:]) > GRID:
            raise BackendError(
                f"{label or name} needs a grid of {grid} blocks, more than a GPU launches",
                next="fewer images at a time (batch_size=), or backend='ort'",
            )
        everything = (*arguments, *(cell.arguments if cell else ()))
        wide = self._wide(everything) if wide is None else wide
        if cell is not None and not text:
            text = finish(cell)
        stored = [a.buffer for a in _stored(cell)] if cell else []
        pointed = (a.buffer for a in everything if isinstance(a, Pointer))
        touched = dict.fromkeys(buffer for buffer in pointed if isinstance(buffer, Buffer))
        self.launches.append(
            Launch(
                name,
                kernel_source(self.dtype, wide=wide, defines=defines, text=text, file=file),
                grid,
                everything,
                (*writes, *stored),
                label or name,
                flops,
                sum(buffer.size for buffer in touched) * self.dtype.itemsize,
            )
        )

    def _over_cells(self, name: str, file: str, kernel: int, cells: int, arguments: Sequence[Argument],
                    cell: Cell | None, **options: Any) -> None:  # fmt: skip
        """A launch with a thread a cell."""
        grid = (-(-cells // THREADS), 1, 1)
        self._emit(name, grid, arguments, cell, file=file, defines=(("KERNEL", kernel),), **options)

    def _struct(self, dtype: np.dtype[Any], **fields: Any) -> Pointer:
        struct = np.zeros(1, dtype)
        for name, value in fields.items():
            struct[name] = value
        return Pointer(Constant(struct))

    # --- elementwise ----------------------------------------------------------------------------------------------

    def _map(self, group: Group, cell: Cell, parts: tuple[Scratch, int, int] | None = None) -> None:
        """A generated kernel. ``parts``: memory, number and size of what a split contraction left."""
        images = group.images if group.totals and group.images else 1
        cells = group.size // images
        lanes = 16 // self.dtype.itemsize
        width = lanes if cells % lanes == 0 and cell.aligned else 1
        name, text = map_source(cell, width, partial=parts is not None)
        # A thread takes several pieces once there are more than keep every multiprocessor busy.
        blocks = min(-(-cells // (THREADS * width)), max(1, 16 * self.target.multiprocessors // images))
        arguments: list[Argument] = [np.int64(cells), *cell.arguments]
        writes: list[Any] = [a.buffer for a in _stored(cell)]
        if parts is not None:
            arguments += [Pointer(parts[0]), np.int32(parts[1]), np.int64(parts[2])]
        for total in group.totals:
            first = self.parts.nbytes // 8
            self._parts[total] = first, blocks
            arguments.append(Pointer(self.parts, 8 * first))
            self.parts.nbytes += 8 * blocks * images
        if group.totals:
            text = block_sum() + text
            writes.append(self.parts)
        wide = self._wide(arguments) or (parts is not None and parts[1] * parts[2] >= NARROW)
        self._emit(name, (blocks, images, 1), arguments, None, text=text, writes=writes, wide=wide)

    # --- linear maps ----------------------------------------------------------------------------------------------

    def is_split(self, operation: Operation) -> bool:
        """Is it a contraction whose sums are computed in parts, and finished by a kernel of their own?"""
        if not isinstance(operation, Contraction) or contraction.is_direct(operation):
            return False
        return self._tile(operation).splits > 1

    def _tile(self, operation: Contraction) -> contraction.Tile:
        return contraction.choose_tile(
            operation,
            multiprocessors=self.target.multiprocessors,
            double=self.dtype == np.float64,
            tf32=self.target.tf32 and operation.one_sign,
            wide=max(operation.inputs[0].buffer.size, operation.size) >= NARROW,
        )

    def _contraction(self, group: Group, operation: Contraction, cell: Cell) -> None:
        if contraction.is_direct(operation):
            self._direct(group, operation, cell)
        else:
            self.contract(group, operation, cell, self._tile(operation))

    def contract(
        self, group: Group, operation: Contraction, cell: Cell, tile: contraction.Tile, wide: bool = False
    ) -> None:
        """A contraction with the given tile."""
        packing = contraction.pack(operation, tile, self.dtype)
        first, second = operation.inputs[0], operation.inputs[-1]
        whole = operation.output.size
        wide = wide or self._wide([*cell.arguments, Pointer(first.buffer), Pointer(operation.output)])
        wide = wide or tile.splits * whole >= NARROW or packing.weights.size >= NARROW
        arguments: list[Argument] = [Pointer(first.buffer), Pointer(second.buffer)]
        arguments += [Pointer(Constant(a)) for a in (packing.weights, packing.taps, packing.phases, packing.sizes)]
        numbers = (*packing.source, math.prod(packing.source), packing.padded_m)
        arguments += [np.int32(number) for number in numbers]
        defines = [("TM", tile.tm), ("TN", tile.tn), ("TF32", int(tile.tf32)), ("SPLIT", int(tile.splits > 1)),
                   ("TERMS", len(operation.inputs)), ("UNIFORM", int(packing.uniform)),
                   ("AXES", 3 if len(operation.spatial) == 3 else 2)]  # fmt: skip
        kind = "adjoint" if operation.adjoint else "conv"
        label = f"{kind} {operation.channels}x{'x'.join(map(str, operation.spatial))}"
        if tile.splits == 1:
            run = packing.run if cell.aligned else 1
            self._emit("contraction", packing.grid, arguments, cell, file="contraction.cu", text=finish_run(cell),
                       defines=[*defines, ("RUN", run)], wide=wide, label=label, flops=packing.flops)  # fmt: skip
            return
        defines.append(("RUN", packing.run))
        parts = Scratch(tile.splits * whole * self.dtype.itemsize)
        self._emit("contraction", packing.grid, [*arguments, Pointer(parts)], None, file="contraction.cu",
                   defines=defines, writes=(parts,), wide=wide, label=label, flops=packing.flops)  # fmt: skip
        self._map(group, cell, (parts, tile.splits, whole))

    def _direct(self, group: Group, operation: Contraction, cell: Cell) -> None:
        weights = [Pointer(Constant(np.ascontiguousarray(w, self.dtype))) for w in operation.weights]
        sizes = contraction.grouped(operation)
        arguments = [Pointer(operation.inputs[0].buffer), Pointer(operation.inputs[-1].buffer), weights[0], weights[-1],
                     Pointer(Constant(sizes))]  # fmt: skip
        per_cell = operation.weights[0].size // operation.channels
        self._emit(
            "conv_direct", (-(-operation.output.size // THREADS), 1, 1), arguments, cell, file="conv_direct.cu",
            defines=(("ADJOINT", int(operation.adjoint)), ("TERMS", len(weights))),
            flops=2 * len(weights) * per_cell * operation.output.size,
        )  # fmt: skip

    def _matmul(self, group: Group, operation: MatMul, cell: Cell) -> None:
        a, b = operation.inputs
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        if len(lead) > 4:
            raise TypeError("a product of more than six axes")

        def leading(value: Value) -> list[int]:
            strides = [0 if have == 1 else s for have, s in zip(value.shape[:-2], value.strides[:-2], strict=True)]
            return [0] * (4 - len(strides)) + strides

        rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]
        product = self._struct(
            PRODUCT, rows=rows, inner=inner, columns=columns, lead=[1] * (4 - len(lead)) + list(lead),
            a_lead=leading(a), b_lead=leading(b), a_row=a.strides[-2], a_inner=a.strides[-1], b_inner=b.strides[-2],
            b_column=b.strides[-1],
        )  # fmt: skip
        grid = (-(-columns // 16), -(-rows // 16), math.prod(lead))
        flops = 2 * operation.output.size * inner
        self._emit("matmul", grid, [Pointer(a.buffer), Pointer(b.buffer), product], cell, file="matmul.cu", flops=flops)

    # --- windows --------------------------------------------------------------------------------------------------

    def _windows(
        self, operation: WindowSum | MaxRoute, spatial: Sequence[int], out: Sequence[int], cells: int, winners: int = 0
    ) -> Pointer:
        w, three = operation.window, contraction.three
        return self._struct(
            WINDOWS, cells=cells, winners=winners, out=three(out, 1), kernel=three(w.kernel, 1),
            stride=three(w.strides, 1), begin=three(w.begins, 0), dilation=three(w.dilations, 1),
            **{"in": three(spatial, 1)},
        )  # fmt: skip

    def _window(self, group: Group, operation: WindowSum, cell: Cell) -> None:
        x, spread = operation.inputs[0], isinstance(operation, WindowSpread)
        name = "window_spread" if spread else "window_sum"
        inner, outer = x.shape[2:], operation.spatial
        cells = operation.output.size
        windows = self._windows(operation, *((outer, inner) if spread else (inner, outer)), cells)
        self._over_cells(name, "window.cu", WINDOW_KERNELS[name], cells, [Pointer(x.buffer), windows], cell)

    def _max_route(self, group: Group, operation: MaxRoute, cell: Cell) -> None:
        x, r = operation.inputs
        spatial, out = x.shape[2:], r.shape[2:]
        winners, cells = math.prod((*x.shape[:2], *out)), operation.size
        winner = Scratch(4 * winners)
        if winners:
            windows = self._windows(operation, spatial, out, winners)
            self._over_cells("max_winner", "window.cu", WINDOW_KERNELS["max_winner"], winners,
                             [Pointer(x.buffer), windows, Pointer(winner)], None, writes=(winner,))  # fmt: skip
        windows = self._windows(operation, spatial, out, cells, winners)
        self._over_cells("max_route", "window.cu", WINDOW_KERNELS["max_route"], cells,
                         [Pointer(winner), Pointer(r.buffer), windows], cell)  # fmt: skip

    # --- moves ----------------------------------------------------------------------------------------------------

    def _axis(self, shape: Sequence[int], axis: int, before: int, after: int, cells: int) -> Pointer:
        return self._struct(AXIS, cells=cells, inner=math.prod(shape[axis + 1 :]), before=before, after=after)

    def _gather(self, group: Group, operation: Gather, cell: Cell) -> None:
        x, cells = operation.inputs[0], operation.output.size
        axis = self._axis(x.shape, operation.axis, x.shape[operation.axis], len(operation.indices), cells)
        index = Pointer(Constant(operation.indices))
        self._over_cells("gather", "move.cu", MOVE_KERNELS["gather"], cells, [Pointer(x.buffer), index, axis], cell)

    def _scatter_add(self, group: Group, operation: ScatterAdd, cell: Cell) -> None:
        r, cells = operation.inputs[0], operation.output.size
        readers = np.argsort(operation.indices, kind="stable").astype(np.int32)
        first = np.searchsorted(operation.indices[readers], np.arange(operation.length + 1)).astype(np.int32)
        axis = self._axis(r.shape, operation.axis, len(readers), operation.length, cells)
        arguments = [Pointer(r.buffer), Pointer(Constant(first)), Pointer(Constant(readers)), axis]
        self._over_cells("scatter_add", "move.cu", MOVE_KERNELS["scatter_add"], cells, arguments, cell)

    def _place(self, group: Group, operation: Place, cell: Cell) -> None:
        x = operation.inputs[0]
        if len(x.shape) > 6:
            raise TypeError("padding of more than six axes")
        missing = 6 - len(x.shape)
        placed = self._struct(
            PLACED, cells=operation.output.size, out=(*[1] * missing, *operation.placed),
            begin=(*[0] * missing, *operation.begins), **{"in": (*[1] * missing, *x.shape)},
        )  # fmt: skip
        cells = operation.output.size
        self._over_cells("place", "move.cu", MOVE_KERNELS["place"], cells, [Pointer(x.buffer), placed], cell)

    def _concat(self, group: Group, operation: Concat, cell: Cell) -> None:
        begin, out = 0, operation.output
        for x in operation.inputs:
            size = x.shape[operation.axis]
            if x.size:
                axis = self._axis(x.shape, operation.axis, size, out.shape[operation.axis], x.size)
                arguments: list[Argument] = [Pointer(x.buffer), np.int32(begin), axis, Pointer(out)]
                self._over_cells("insert", "move.cu", MOVE_KERNELS["insert"], x.size, arguments, None, writes=(out,))
            begin += size

    def _reduce(self, group: Group, operation: Reduce, cell: Cell) -> None:
        results, length = operation.outer * operation.inner, operation.length
        x = operation.inputs[0].buffer
        if length <= SHORT_AXIS or (operation.inner >= 32 and results >= THREADS * self.target.multiprocessors):
            self._emit(
                "reduce_short", (-(-results // THREADS), 1, 1),
                [Pointer(x), Pointer(operation.output), np.int64(length), np.int64(operation.inner), np.int64(results)],
                None, file="reduce.cu", defines=(("KERNEL", operation.kind), ("SHORT", 1)), writes=(operation.output,),
            )  # fmt: skip
            return
        chunks = 1
        if length > LONG_AXIS and results < 2 * self.target.multiprocessors:
            chunks = min(-(-2 * self.target.multiprocessors // results), -(-length // LONG_AXIS * 2))
        out: Any = operation.output
        if chunks > 1:
            out = Scratch(results * chunks * self.dtype.itemsize)
        self._reduce_once(operation.kind, x, out, length, operation.inner, chunks, results)
        if chunks > 1:
            self._reduce_once(operation.kind, out, operation.output, chunks, 1, 1, results)

    def _reduce_once(self, kind: int, x: Any, out: Any, length: int, inner: int, chunks: int, results: int) -> None:
        self._emit(
            "reduce", (results * chunks, 1, 1),
            [Pointer(x), Pointer(out), np.int64(length), np.int64(inner), np.int32(chunks)], None, file="reduce.cu",
            defines=(("KERNEL", kind), ("SHORT", 0)), writes=(out,),
        )  # fmt: skip

    # --- the books ------------------------------------------------------------------------------------------------

    def _settle(self, group: Group, operation: Settle, cell: Cell) -> None:
        self.books([operation.inputs[0].buffer], operation.output)


def _stored(cell: Cell) -> list[Pointer]:
    """The pointers that a cell's text stores to, by the names of their parameters."""
    named = {p.split()[-1]: a for p, a in zip(cell.parameters, cell.arguments, strict=True)}
    return [a for a in (named[array] for array, _ in cell.stores) if isinstance(a, Pointer)]
