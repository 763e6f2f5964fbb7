"""The descent as a compiled onnxruntime graph: each verb emits ONNX nodes, and the whole walk runs as one model.

A program is traced once per key (which holds every shape), compiled, and kept. Everything a rule decides in Python
is decided while tracing; what remains is arithmetic that onnxruntime schedules, fuses and runs in parallel.

Choices that measurement made:
- the adjoint of a stride-1 convolution is a convolution with flipped kernels and swapped channels, which
  onnxruntime runs faster than ConvTranspose; of a strided one, a stride-1 convolution for each phase, interleaved;
- between convolutions channels stay in blocks (``blocked.py``): cell by cell, the order of cells is all the same;
- ``share`` looks first whether any denominator is 0 (one reduction) and takes the masked way only then;
- what only the books want to know leaves the graph as one array of row sums, and is added up outside;
- weights are handed over as OrtValues, so that they are never serialized.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fgcam_onnx import runtime
from fgcam_onnx.backends import blocked
from fgcam_onnx.backends.base import TINY, Backend, Convolution, Leak, Program, Verbs, Window
from fgcam_onnx.errors import BackendError

__all__ = ["OrtBackend", "OrtVerbs"]

OPSET = 18
IR_VERSION = 9
OPSETS = [helper.make_opsetid("", OPSET), helper.make_opsetid(blocked.DOMAIN, blocked.VERSION)]
LARGEST = float(np.finfo(np.float32).max)
# A weight of at least this many bytes is handed to the session as it is, a smaller one is written into the graph.
LARGE = 4096
# onnxruntime fills channels up to whole blocks where they are a multiple of this.
FOURTH = 4
# A strided adjoint is taken apart by phases up to this many; image channels times phases that share a convolution.
PHASES, FEW = 16, 64
# onnxruntime adds a row cell by cell, so the rounding of more cells than this adds up: lines are summed first.
LONG = 4096
# Compiled programs kept: the descents of an evaluation, which has a dozen methods and layers in turn for each picture.
KEPT = 16


class OrtBackend(Backend):
    """Traces, compiles and runs programs on onnxruntime's CPU provider, in float32."""

    name = "ort"
    providers = ("CPUExecutionProvider",)

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self._compiled: OrderedDict[str, _Compiled] = OrderedDict()

    def execute(self, program: Program, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        compiled = self._compiled.get(program.key)
        if compiled is None:
            compiled = self._compile(program, inputs)
            self._compiled[program.key] = compiled
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(program.key)
        return compiled.run(inputs)

    def _compile(self, program: Program, inputs: Mapping[str, Any]) -> _Compiled:
        verbs = OrtVerbs(blocked.block_size())
        feeds = {name: verbs.input(name, value) for name, value in inputs.items()}
        found = {name: verbs.output(symbol) for name, symbol in program.run(verbs, feeds).items()}
        totals = {name: symbol for name, symbol in found.items() if isinstance(symbol, Total)}
        outputs = {name: symbol for name, symbol in found.items() if name not in totals}
        batches = {total.shape for total in totals.values()}
        books = [verbs.books({k: t for k, t in totals.items() if t.shape == batch}) for batch in sorted(batches)]
        model, weights = verbs.finish([*outputs.values(), *(b.table for b in books)])
        options = runtime.session_options(self.threads)
        fed = {name: runtime.value(array) for name, array in runtime.fed_weights(model, weights).items()}
        values = {name: runtime.value(array) for name, array in weights.items() if name not in fed}
        if values:
            options.add_external_initializers(list(values), list(values.values()))
        session = runtime.session(model.SerializeToString(), options, list(self.providers))
        used = {entry.name for entry in session.get_inputs()}
        names = {name: symbol.name for name, symbol in outputs.items()}
        return _Compiled(session, {n: s.name for n, s in feeds.items() if s.name in used}, names, fed, books)


@dataclass(frozen=True)
class _Compiled:
    session: Any
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    fed: Mapping[str, Any]
    books: Sequence[_Books]

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        feeds = {**self.fed, **{inner: runtime.value(inputs[name]) for name, inner in self.inputs.items()}}
        wanted = list(dict.fromkeys((*self.outputs.values(), *(b.table.name for b in self.books))))
        try:
            values = self.session.run_with_ort_values(wanted, feeds, runtime.run_options())
        except Exception as error:  # onnxruntime's exception classes are not public
            reason = " ".join(str(error).split())
            raise BackendError("the descent failed in onnxruntime", known=reason[:400]) from error
        results = dict(zip(wanted, values, strict=True))
        found = {name: results[inner].numpy() for name, inner in self.outputs.items()}
        for books in self.books:
            found.update(books.read(results[books.table.name].numpy()))
        return found


@dataclass(frozen=True)
class Symbol:
    """A value of the graph being traced. ``blocked``: its channels lie in blocks (``blocked.py``), under this shape."""

    name: str
    shape: tuple[int, ...]
    blocked: bool = False


@dataclass(frozen=True)
class Total(Symbol):
    """Sums per image, [n], that only the books ask for. No node computes them: row sums are added up after the run.

    ``pieces``: (row sums [n, c], first row, last + 1). The name is empty as long as nothing in the graph reads it.
    """

    pieces: tuple[tuple[Symbol, int, int], ...] = ()


class _Books:
    """All totals of a program, read off one output: every row sum side by side, [n, rows]."""

    def __init__(self, table: Symbol, columns: Mapping[str, int], totals: Mapping[str, Total]) -> None:
        """``columns``: where in the table each array of row sums begins."""
        self.table, self.names = table, list(totals)
        asked = [[(columns[rows.name] + a, columns[rows.name] + b) for rows, a, b in t.pieces] for t in totals.values()]
        ranges = sorted({piece for pieces in asked for piece in pieces})  # in this order reduceat sums no gap twice
        position = {piece: i for i, piece in enumerate(ranges)}
        self.bounds = np.asarray(ranges, np.intp).ravel()
        self.chosen = np.asarray([position[piece] for pieces in asked for piece in pieces], np.intp)
        self.begins = np.cumsum([0, *(len(pieces) for pieces in asked[:-1])])

    def read(self, table: np.ndarray) -> dict[str, np.ndarray]:
        """Every total, [n]: added up in float64."""
        exact = np.pad(table.astype(np.float64), ((0, 0), (0, 1)))  # one column more: the last range ends there
        pieces = np.add.reduceat(exact, self.bounds, axis=1)[:, ::2]
        totals = np.add.reduceat(pieces[:, self.chosen], self.begins, axis=1).astype(np.float32)
        return dict(zip(self.names, totals.T, strict=True))


class OrtVerbs(Verbs):
    """Each verb as ONNX nodes on :class:`Symbol`."""

    def __init__(self, block: int | None = None) -> None:
        """``block``: channels of a block, None for the plain layout everywhere."""
        self._block = block
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._small: dict[str, onnx.TensorProto] = {}
        self._weights: dict[str, np.ndarray] = {}
        self._constants: dict[tuple[Any, ...], Symbol] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._count = itertools.count()
        # Arrays that are channels first to last + 1 of another one.
        self._cuts: dict[str, tuple[Symbol, int, int]] = {}
        self._row_sums: dict[str, Symbol] = {}
        # The other layout of an array, once it was asked for.
        self._turned: dict[str, Symbol] = {}
        self._filled: dict[str, Symbol] = {}
        # Convolutions onto which something was added: how to compute them alone, should somebody ask.
        self._taken: dict[str, onnx.NodeProto] = {}

    # --- building ---------------------------------------------------------------------------------------------------

    def input(self, name: str, value: Any) -> Symbol:
        """A fed tensor. Its name in the graph is its own: ONNX names of any form are allowed."""
        shape = tuple(value.shape() if callable(value.shape) else value.shape)
        symbol = Symbol(f"in:{name}", shape)
        self._inputs.append(helper.make_tensor_value_info(symbol.name, TensorProto.FLOAT, shape))
        return symbol

    def output(self, symbol: Symbol) -> Symbol:
        """What a program may return: an input or a weight is copied, for its memory belongs to someone else."""
        if isinstance(symbol, Total):
            return symbol
        symbol = self._computed(symbol)
        given = symbol.name in self._arrays or any(symbol.name == value.name for value in self._inputs)
        return self._emit("Identity", [symbol], symbol.shape) if given else symbol

    def books(self, totals: Mapping[str, Total]) -> _Books:
        """One output for all totals: their row sums, side by side."""
        rows = {symbol.name: symbol for total in totals.values() for symbol, _, _ in total.pieces}
        widths = [symbol.shape[1] for symbol in rows.values()]
        columns = dict(zip(rows, np.cumsum([0, *widths[:-1]]).tolist(), strict=True))
        return _Books(self.output(self.concat(list(rows.values()), 1)), columns, totals)

    def finish(self, outputs: Sequence[Symbol]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        """The traced model and the weights that stay outside it."""
        read = {name for node in self._nodes for name in _reads(node)} | {symbol.name for symbol in outputs}
        names = {symbol.name: symbol for symbol in outputs}
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, symbol.shape) for name, symbol in names.items()]
        references = [_reference(name, array) for name, array in self._weights.items() if name in read]
        graph = helper.make_graph(
            self._nodes,
            "descent",
            [value for value in self._inputs if value.name in read],
            infos,
            [t for name, t in self._small.items() if name in read] + references,
        )
        model = helper.make_model(graph, opset_imports=OPSETS[: 1 if self._block is None else 2], ir_version=IR_VERSION)
        return model, {name: array for name, array in self._weights.items() if name in read}

    def _new(self) -> str:
        return f"t{next(self._count)}"

    def _emit(self, op: str, inputs: Sequence[Symbol | str], shape: Sequence[int], **attributes: Any) -> Symbol:
        output = Symbol(self._new(), tuple(shape))
        names = [entry if isinstance(entry, str) else self._computed(entry).name for entry in inputs]
        self._restore(names)
        self._nodes.append(helper.make_node(op, names, [output.name], **attributes))
        return output

    def _store(self, array: np.ndarray) -> Symbol:
        small = array.nbytes < LARGE
        key: tuple[Any, ...] = (array.dtype.str, array.shape, array.tobytes()) if small else (id(array),)
        found = self._constants.get(key)
        if found is None:
            found = Symbol(f"w{next(self._count)}", array.shape)
            if array.nbytes < LARGE:
                self._small[found.name] = numpy_helper.from_array(np.ascontiguousarray(array), found.name)
            else:
                self._weights[found.name] = np.ascontiguousarray(array)
            self._constants[key] = found
            self._arrays[found.name] = array
        return found

    def _ints(self, values: Sequence[int]) -> Symbol:
        return self._store(np.asarray(list(values), np.int64))

    def constant(self, value: np.ndarray | float) -> Symbol:
        return self._store(np.asarray(value, np.float32))

    def shape(self, x: Symbol) -> tuple[int, ...]:
        return x.shape

    # --- elementwise ------------------------------------------------------------------------------------------------

    def _elementwise(self, op: str, inputs: Sequence[Symbol], **attributes: Any) -> Symbol:
        """Cell by cell, so the layout does not matter: in blocks if one operand lies in blocks and the others can."""
        shape = np.broadcast_shapes(*(x.shape for x in inputs))
        # A blocked operand that is broadcast over cells would meet other channels than its own; over images it does
        # not.
        whole = [_of_all_cells(x.shape, shape) for x in inputs]
        fits = all(w or (not x.blocked and x.shape in ((), (1,))) for x, w in zip(inputs, whole, strict=True))
        if fits and any(x.blocked for x in inputs):
            names = [self._in_blocks(x).name if w else x.name for x, w in zip(inputs, whole, strict=True)]
            return replace(self._emit(op, names, shape, **attributes), blocked=True)
        return self._emit(op, inputs, shape, **attributes)

    def _binary(self, op: str, a: Symbol, b: Symbol) -> Symbol:
        return self._elementwise(op, [a, b])

    def add(self, a: Symbol, b: Symbol) -> Symbol:
        if isinstance(a, Total) and isinstance(b, Total):
            return Total("", a.shape, pieces=a.pieces + b.pieces)
        return self._added_in_conv(a, b) or self._binary("Add", a, b)

    def sub(self, a: Symbol, b: Symbol) -> Symbol:
        return self._binary("Sub", a, b)

    def mul(self, a: Symbol, b: Symbol) -> Symbol:
        return self._binary("Mul", a, b)

    def div(self, a: Symbol, b: Symbol) -> Symbol:
        return self._binary("Div", a, b)

    def power(self, a: Symbol, b: Symbol) -> Symbol:
        return self._binary("Pow", a, b)

    def maximum(self, a: Symbol, b: Symbol) -> Symbol:
        return self._binary("Max", a, b)

    def minimum(self, a: Symbol, b: Symbol) -> Symbol:
        return self._binary("Min", a, b)

    def positive(self, x: Symbol) -> Symbol:
        found: Symbol = super().positive(self._settled(x))
        return found

    def negative(self, x: Symbol) -> Symbol:
        found: Symbol = super().negative(self._settled(x))
        return found

    def absolute(self, x: Symbol) -> Symbol:
        return self._elementwise("Abs", [x])

    def exp(self, x: Symbol) -> Symbol:
        return self._elementwise("Exp", [x])

    def log(self, x: Symbol) -> Symbol:
        return self._elementwise("Log", [x])

    def tanh(self, x: Symbol) -> Symbol:
        return self._elementwise("Tanh", [x])

    def sigmoid(self, x: Symbol) -> Symbol:
        return self._elementwise("Sigmoid", [x])

    def erf(self, x: Symbol) -> Symbol:
        return self._elementwise("Erf", [x])

    def _float(self, mask: Symbol) -> Symbol:
        return self._elementwise("Cast", [mask], to=TensorProto.FLOAT)

    def greater(self, a: Symbol, b: Symbol) -> Symbol:
        return self._float(self._binary("Greater", a, b))

    def nonzero(self, x: Symbol) -> Symbol:
        zero = self._binary("Equal", x, self.constant(0.0))
        return self._float(self._elementwise("Not", [zero]))

    # --- the two steps in which relevance can be lost ---------------------------------------------------------------

    def share(self, r: Symbol, z: Symbol, *, nonnegative: bool = False) -> tuple[Symbol, Leak]:
        """If no denominator is dead (the usual case): r / z. Else the masked way. Same result, fewer passes."""
        if not _of_all_cells(z.shape, r.shape):
            r, z = self._computed(r), self._computed(z)
        elif r.blocked or z.blocked:
            r, z = self._in_blocks(r), self._in_blocks(z)
        self._restore([r.name, z.name])  # here, not in a branch
        tiny = self.constant(TINY)
        size = z if nonnegative else self.absolute(z)
        any_dead = self._emit("Less", [self._least(size), tiny], ())
        names = [self._new() for _ in range(3)]
        rows = (*r.shape, 1)[:2]

        healthy = self._branch()
        none = healthy.constant(np.zeros(rows))
        then_free = healthy._end([healthy._clamp(healthy.div(r, z)), none, none])

        # Arithmetic with a 0/1 mask: onnxruntime's Where is several times slower than these passes together.
        masked = self._branch()
        alive = masked._float(masked._binary("GreaterOrEqual", size, tiny))
        kept = masked.mul(r, alive)
        dropped = masked.sub(r, kept)
        # What a dead z is replaced by is all the same: 0 is divided by it.
        above = masked.maximum(z, tiny) if nonnegative else masked.add(z, masked.sub(masked.constant(1.0), alive))
        s = masked._clamp(masked.div(kept, above))
        then_dead = masked._end([s, masked._rows(dropped), masked._rows(masked.absolute(dropped))])

        self._nodes.append(helper.make_node("If", [any_dead.name], names, then_branch=then_dead, else_branch=then_free))
        signed, absolute = (self._added(Symbol(name, rows)) for name in names[1:])
        return Symbol(names[0], r.shape, r.blocked), Leak(signed, absolute)

    def _clamp(self, x: Symbol) -> Symbol:
        return self._elementwise("Clip", [x, self.constant(-LARGEST), self.constant(LARGEST)])

    def _least(self, x: Symbol) -> Symbol:
        """The least number of x. Rows first: onnxruntime runs those in parallel."""
        if len(x.shape) > 2:
            x = self._emit("ReduceMin", [x.name, self._ints(range(2, len(x.shape)))], x.shape[:2], keepdims=0)
        return self._emit("ReduceMin", [x], (), keepdims=0)

    def _branch(self) -> OrtVerbs:
        """A tracer for a subgraph: constants and names are shared with this graph, nodes are its own."""
        inner = OrtVerbs(self._block)
        inner._small, inner._weights, inner._constants = self._small, self._weights, self._constants
        inner._arrays, inner._count = self._arrays, self._count
        return inner

    def _end(self, results: Sequence[Symbol]) -> onnx.GraphProto:
        outputs = [self._emit("Identity", [result.name], result.shape) for result in results]
        infos = [helper.make_tensor_value_info(o.name, TensorProto.FLOAT, o.shape) for o in outputs]
        return helper.make_graph(self._nodes, "branch", [], infos)

    def keep(self, r: Symbol, mask: Symbol) -> tuple[Symbol, Leak]:
        dropped = self.mul(r, self.sub(self.constant(1.0), mask))
        return self.mul(r, mask), Leak(self.total(dropped), self.total(self.absolute(dropped)))

    # --- linear maps ------------------------------------------------------------------------------------------------

    def conv(self, x: Symbol, w: Symbol, how: Convolution, out: tuple[int, ...]) -> Symbol:
        kernel = w.shape[2:]
        window = Window(kernel, how.strides, how.begins, how.dilations)
        x, pads = self._fit(x, window, out)
        shape = (x.shape[0], w.shape[0], *out)
        found = self._conv_in_blocks(x, w, how, pads, out)
        return found or self._emit(
            "Conv", [x, w], shape, kernel_shape=kernel, strides=how.strides, pads=pads, dilations=how.dilations,
            group=how.group,
        )  # fmt: skip

    def _fit(self, x: Symbol, window: Window, out: Sequence[int]) -> tuple[Symbol, list[int]]:
        """ONNX pads for a window whose end padding follows from the sizes; unread cells at the end are cut off."""
        ends = window.ends(x.shape[2:], out)
        strided = [e if e >= 0 or -e >= s else 0 for e, s in zip(ends, window.strides, strict=True)]
        if min(strided, default=0) < 0:
            x = self.pad(x, [0] * len(x.shape), [0, 0, *(min(0, e) for e in ends)])
            ends = window.ends(x.shape[2:], out)
        return x, [*window.begins, *(max(0, e) for e in ends)]

    def conv_adjoint(self, s: Symbol, w: Symbol, how: Convolution, spatial: tuple[int, ...]) -> Symbol:
        kernel, out = w.shape[2:], s.shape[2:]
        ci = w.shape[1] * how.group
        if all(stride == 1 for stride in how.strides):
            reach = [(k - 1) * d for k, d in zip(kernel, how.dilations, strict=True)]
            begins = tuple(r - b for r, b in zip(reach, how.begins, strict=True))
            flipped = self._derived(w, "flipped", lambda a: _flipped(a, how.group))
            if min(begins) < 0:  # padded beyond the kernel: those outputs saw nothing but padding
                s = self.pad(s, [0, 0, *(min(0, b) for b in begins)], [0] * len(s.shape))
                begins = tuple(max(0, b) for b in begins)
            back = Convolution(how.strides, begins, how.dilations, how.group)
            return self.conv(s, flipped, back, spatial)
        depthwise = w.shape[1] == 1 and w.shape[0] == how.group
        if len(out) == 2 and (how.group == 1 or depthwise) and math.prod(how.strides) <= PHASES:
            return self._adjoint_by_phases(s, w, how, spatial)
        full = [(o - 1) * st + (k - 1) * d + 1 for o, st, k, d in
                zip(out, how.strides, kernel, how.dilations, strict=True)]  # fmt: skip
        ends = [f - b - size for f, b, size in zip(full, how.begins, spatial, strict=True)]
        cut = [max(0, e) for e in ends]
        short = [max(0, -e) for e in ends]
        shape = [f - b - c for f, b, c in zip(full, how.begins, cut, strict=True)]
        r = self._emit(
            "ConvTranspose", [s, w], (s.shape[0], ci, *shape), kernel_shape=kernel, strides=how.strides,
            pads=[*how.begins, *cut], dilations=how.dilations, group=how.group,
        )  # fmt: skip
        return self.pad(r, [0] * len(r.shape), [0, 0, *short]) if any(short) else r

    def _adjoint_by_phases(self, s: Symbol, w: Symbol, how: Convolution, spatial: tuple[int, ...]) -> Symbol:
        """Input cells i = stride u + phase see the taps with (phase + begin - tap dilation) divisible by the stride.

        So the adjoint is a stride-1 convolution for each pair of phases, with their taps alone, and the results
        interleaved. Where they have few channels (the image), all pairs are one convolution: several fill a block.
        """
        axes = zip(w.shape[2:], how.strides, how.begins, how.dilations, strict=True)
        rows, columns = ([tuple(taps) for taps in _phases(k, st, b, d)] for k, st, b, d in axes)
        cells = tuple(-(-size // st) for size, st in zip(spatial, how.strides, strict=True))
        pairs = list(itertools.product(rows, columns))
        ci = w.shape[1] * how.group
        pieces: list[Symbol | None]
        if how.group == 1 and ci * len(pairs) <= FEW:
            kernel, begins = self._phase_kernel(w, how, pairs)
            mixed = self.conv(s, kernel, Convolution((1, 1), begins, (1, 1)), cells)
            cuts = [(k * ci, (len(pairs) - k - 1) * ci) for k in range(len(pairs))]
            pieces = [self.pad(mixed, (0, -a, 0, 0), (0, -b, 0, 0)) for a, b in cuts]
        else:
            pieces = []
            for pair in pairs:
                if all(pair):
                    kernel, begins = self._phase_kernel(w, how, [pair])
                    pieces.append(self.conv(s, kernel, Convolution((1, 1), begins, (1, 1), how.group), cells))
                else:  # a kernel smaller than the stride does not read these cells
                    pieces.append(None)
        r = self._interleaved(pieces, how.strides, (s.shape[0], ci, *cells))
        return self.pad(r, [0] * 4, [0, 0, *(size - big for size, big in zip(spatial, r.shape[2:], strict=True))])

    def _phase_kernel(
        self, w: Symbol, how: Convolution, pairs: Sequence[tuple[tuple[tuple[int, int], ...], ...]]
    ) -> tuple[Symbol, tuple[int, ...]]:
        """The kernel of the stride-1 convolution for these pairs of phases, and the padding before it."""
        shifts = [[shift for pair in pairs for _, shift in pair[axis]] for axis in (0, 1)]
        lows = [min(0, *found) if found else 0 for found in shifts]
        sizes = [max(0, *found) - low + 1 if found else 1 for found, low in zip(shifts, lows, strict=True)]

        def make(a: np.ndarray) -> np.ndarray:
            out = np.zeros((len(pairs), *a.shape[:2], *sizes), np.float32)
            for one, (rows, columns) in zip(out, pairs, strict=True):
                for (ky, sy), (kx, sx) in itertools.product(rows, columns):
                    one[..., sy - lows[0], sx - lows[1]] = a[..., ky, kx]
            return np.concatenate([_swapped(one, how.group) for one in out])

        return self._derived(w, f"phases {how} {pairs}", make), tuple(-low for low in lows)

    def _interleaved(self, pieces: Sequence[Symbol | None], strides: Sequence[int], shape: tuple[int, ...]) -> Symbol:
        """Cell u of piece (p, q), each of ``shape`` [n, c, h, w], becomes cell (stride u + phase); None is zeros."""
        n, c, h, w = shape
        in_blocks = all(piece is None or piece.blocked for piece in pieces)
        width = self._block or 1 if in_blocks else 1
        lines = n * c * h // width

        def view(x: Symbol | None, *wanted: int) -> Symbol:
            if x is None:
                return self._zeros(wanted)
            return self._emit("Reshape", [x.name if in_blocks else x, self._ints(wanted)], wanted)

        lanes = []
        for p in range(strides[0]):
            row = pieces[p * strides[1] : (p + 1) * strides[1]]
            if all(piece is None for piece in row):
                lanes.append(self._zeros((lines, w * strides[1] * width)))
                continue
            side_by_side = self.concat([view(piece, lines, w, width) for piece in row], 2)
            lanes.append(self.reshape(side_by_side, (lines, w * strides[1] * width)))
        whole = self.reshape(self.concat(lanes, 1), (n, c, h * strides[0], w * strides[1]))
        return replace(whole, blocked=in_blocks)

    def _zeros(self, shape: Sequence[int]) -> Symbol:
        zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
        return self._emit("ConstantOfShape", [self._ints(shape)], shape, value=zero)

    def _derived(self, w: Symbol, how: str, make: Any) -> Symbol:
        """A constant computed from a constant, once."""
        key = (how, w.name)
        if key not in self._constants:
            self._constants[key] = self._store(np.ascontiguousarray(make(self._arrays[w.name])))
        return self._constants[key]

    def matmul(self, a: Symbol, b: Symbol) -> Symbol:
        shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        return self._emit("MatMul", [a, b], shape)

    def window_sum(self, x: Symbol, window: Window, out: tuple[int, ...]) -> Symbol:
        if all(d == 1 for d in window.dilations):
            x, pads = self._fit(x, window, out)
            if all(p < k for p, k in zip(pads, window.kernel * 2, strict=True)):
                mean = self._emit(
                    "AveragePool", [x], (*x.shape[:2], *out), kernel_shape=window.kernel, strides=window.strides,
                    pads=pads, count_include_pad=1,
                )  # fmt: skip
                return self.mul(mean, self.constant(float(np.prod(window.kernel))))
        return self.conv(x, self._ones(x.shape[1], window), _depthwise(window, x.shape[1]), out)

    def window_spread(self, s: Symbol, window: Window, spatial: tuple[int, ...]) -> Symbol:
        c = s.shape[1]
        if all(st == 1 for st in window.strides):
            begins = tuple(
                (k - 1) * d - b for k, d, b in zip(window.kernel, window.dilations, window.begins, strict=True)
            )
            if min(begins) >= 0:
                return self.window_sum(s, Window(window.kernel, window.strides, begins, window.dilations), spatial)
        if window.kernel == window.strides and not any(window.begins) and all(d == 1 for d in window.dilations):
            return self._tile(s, window, spatial)
        return self.conv_adjoint(s, self._ones(c, window), _depthwise(window, c), spatial)

    def _tile(self, s: Symbol, window: Window, spatial: tuple[int, ...]) -> Symbol:
        """Windows that touch and do not overlap: repeat each cell."""
        ends = [size - o * k for size, o, k in zip(spatial, s.shape[2:], window.kernel, strict=True)]
        if len(spatial) == 2:
            r = self._interleaved([s] * math.prod(window.kernel), window.kernel, s.shape)
            return self.pad(r, [0] * 4, [0, 0, *ends])
        split, repeat = list(s.shape[:2]), list(s.shape[:2])
        for o, k in zip(s.shape[2:], window.kernel, strict=True):
            split += [o, 1]
            repeat += [o, k]
        whole = [*s.shape[:2], *(o * k for o, k in zip(s.shape[2:], window.kernel, strict=True))]
        r = self.reshape(self.expand(self.reshape(s, split), repeat), whole)
        return self.pad(r, [0] * len(whole), [0, 0, *ends])

    def _ones(self, channels: int, window: Window) -> Symbol:
        key = ("ones", channels, window.kernel)
        if key not in self._constants:
            self._constants[key] = self._store(np.ones((channels, 1, *window.kernel), np.float32))
        return self._constants[key]

    def max_route(self, x: Symbol, r: Symbol, window: Window) -> Symbol:
        """MaxPool's own ``Indices`` say who won: the first maximum in row-major order, padding never."""
        fitted, pads = self._fit(x, window, r.shape[2:])
        axes = len(window.kernel)
        before = [0] * len(x.shape)
        if any(p >= k for p, k in zip(pads, window.kernel * 2, strict=True)):  # such pads onnxruntime refuses
            before[2:] = pads[:axes]
            fitted = self._around(fitted, before, [0, 0, *pads[axes:]], -np.inf)
            pads = [0] * 2 * axes
        values, winners = self._new(), Symbol(self._new(), (x.shape[0], *r.shape[1:]))
        self._nodes.append(
            helper.make_node(
                "MaxPool", [self._computed(fitted).name], [values, winners.name], kernel_shape=window.kernel,
                strides=window.strides, pads=pads, dilations=window.dilations,
            )
        )  # fmt: skip
        read = _reading(window, x.shape[2:], r.shape[2:])
        if not read.all():  # a window on padding alone has no winner: index -1
            r = self.mul(r, self.constant(read))
        if winners.shape != r.shape:  # of one image for all: their places count through the batch
            places = np.arange(r.shape[0]).reshape(-1, *[1] * (len(r.shape) - 1)) * math.prod(fitted.shape[1:])
            winners = self._emit("Add", [winners, self._store(places)], r.shape)
        routed_shape = (r.shape[0], *fitted.shape[1:])
        size = math.prod(routed_shape)
        flat, zeros = self._ints([-1]), self._zeros([size])
        reaches = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
        overlap = not read.all() or any(reach > s for reach, s in zip(reaches, window.strides, strict=True))
        routed = self._emit(
            "ScatterElements",
            [zeros, self._emit("Reshape", [winners, flat], (-1,)), self._emit("Reshape", [r, flat], (-1,))],
            (size,), axis=0, reduction="add" if overlap else "none",
        )  # fmt: skip
        result = self.reshape(routed, routed_shape)
        after = [big - (small - b) for big, small, b in zip(x.shape, fitted.shape, before, strict=True)]
        return self.pad(result, [-b for b in before], after)

    # --- reductions -------------------------------------------------------------------------------------------------

    def _reduce(self, op: str, x: Symbol, axes: Sequence[int]) -> Symbol:
        shape = [1 if a in set(axes) else d for a, d in enumerate(x.shape)]
        return self._emit(op, [x, self._ints(axes)], shape, keepdims=1)

    def reduce_sum(self, x: Symbol, axes: Sequence[int]) -> Symbol:
        return self._reduce("ReduceSum", x, axes)

    def reduce_max(self, x: Symbol, axes: Sequence[int]) -> Symbol:
        return self._reduce("ReduceMax", x, axes)

    def reduce_min(self, x: Symbol, axes: Sequence[int]) -> Symbol:
        return self._reduce("ReduceMin", x, axes)

    def total(self, r: Symbol) -> Symbol:
        """Row by row, in parallel, and the rows after the run. A cut of some channels is their rows of the whole."""
        whole, first, last = self._cuts.get(r.name, (r, 0, (*r.shape, 1)[1]))
        return Total("", r.shape[:1], pieces=((self._rows(whole), first, last),))

    def _added(self, rows: Symbol) -> Total:
        return Total("", rows.shape[:1], pieces=((rows, 0, rows.shape[1]),))

    def _rows(self, r: Symbol) -> Symbol:
        """Sums over all axes but the first two: [n, c]. In blocks they are other sums, with the same sum."""
        if len(r.shape) < 2:
            return self.reshape(r, (*r.shape, 1))
        if len(r.shape) == 2:
            return r
        if r.name not in self._row_sums:
            lines = self._in_lines(r)
            axes = self._ints(range(2, len(lines.shape)))
            self._row_sums[r.name] = self._emit("ReduceSum", [lines.name, axes], r.shape[:2], keepdims=0)
        return self._row_sums[r.name]

    def _in_lines(self, r: Symbol) -> Symbol:
        """r, or the sums of its lines where whole rows would be too long."""
        if math.prod(r.shape[2:]) <= LONG:
            return r
        if len(r.shape) == 3:  # one line: cut into some
            r = self.pad(r, (0, 0, 0), (0, 0, -r.shape[2] % LONG))
            r = self.reshape(r, (*r.shape[:2], -1, LONG))
        return self._emit("ReduceSum", [r.name, self._ints([len(r.shape) - 1])], r.shape[:-1], keepdims=0)

    def _computed(self, value: Symbol) -> Symbol:
        """A value in the plain layout: out of its blocks, and a total that the graph itself reads is computed there."""
        if not isinstance(value, Total):
            return self._out_of_blocks(value) if value.blocked else value
        pieces = [
            self._emit(
                "ReduceSum", [self.pad(rows, (0, -a), (0, b - rows.shape[1])), self._ints([1])], value.shape, keepdims=0
            )
            for rows, a, b in value.pieces
        ]
        return functools.reduce(self.add, pieces)

    # --- channels in blocks -----------------------------------------------------------------------------------------

    def _restore(self, names: Sequence[str]) -> None:
        """Write those that were merged with what was added to them and are needed alone after all."""
        self._nodes += [self._taken.pop(name) for name in dict.fromkeys(names) if name in self._taken]

    def _in_blocks(self, x: Symbol) -> Symbol:
        if x.blocked:
            return x
        if x.name not in self._turned:
            turned = self._emit("ReorderInput", [x], x.shape, domain=blocked.DOMAIN)
            self._turned[x.name] = replace(turned, blocked=True)
            self._turned[turned.name] = x
        return self._turned[x.name]

    def _settled(self, x: Symbol) -> Symbol:
        """An activation whose halves convolutions or shares will read: turned once, before it is halved."""
        fed = any(x.name == value.name for value in self._inputs)
        return self._in_blocks(x) if fed and len(x.shape) == 4 and self._whole_blocks(x.shape[1]) else x

    def _out_of_blocks(self, x: Symbol) -> Symbol:
        if x.name not in self._turned:
            plain = self._emit("ReorderOutput", [x.name], x.shape, domain=blocked.DOMAIN, channels=x.shape[1])
            self._turned[x.name], self._turned[plain.name] = plain, x
        return self._turned[x.name]

    def _filled_blocks(self, x: Symbol) -> Symbol:
        """In blocks, the last of which is filled up with channels of zeros: for a convolution and nothing else."""
        if x.name not in self._filled:
            shape = (x.shape[0], x.shape[1] + -x.shape[1] % (self._block or 1), *x.shape[2:])
            self._filled[x.name] = self._emit("ReorderInput", [x], shape, domain=blocked.DOMAIN)
        return self._filled[x.name]

    def _whole_blocks(self, *channels: int) -> bool:
        return self._block is not None and not any(c % self._block for c in channels)

    def _conv_in_blocks(
        self, x: Symbol, w: Symbol, how: Convolution, pads: Sequence[int], out: tuple[int, ...]
    ) -> Symbol | None:
        """The convolution in blocks, None where its channels do not fill any. Images come as they are."""
        if self._block is None or len(out) != 2 or w.name not in self._arrays:
            return None
        (co, each), ci, block = w.shape[:2], x.shape[1], self._block
        if how.group == 1:
            image = ci < block and not x.blocked
            fits, inputs = image or ci % FOURTH == 0, not image
        else:
            inputs = each > 1
            fits = self._whole_blocks(co) and (
                self._whole_blocks(each, co // how.group) if inputs else co == ci == how.group
            )
        if not fits:
            return None
        kernel = self._derived(
            w, f"blocked {inputs}", lambda a: blocked.blocked_kernel(a.astype(np.float32), block, inputs=inputs)
        )
        source = x if ci < block else self._in_blocks(x) if self._whole_blocks(ci) else self._filled_blocks(x)
        attributes = blocked.attributes(w.shape[2:], how, pads)
        whole = (x.shape[0], kernel.shape[0], *out)
        z = replace(self._emit("Conv", [source.name, kernel], whole, domain=blocked.DOMAIN, **attributes), blocked=True)
        if whole[1] == co:
            return z
        return self._emit("ReorderOutput", [z.name], (whole[0], co, *out), domain=blocked.DOMAIN, channels=co)

    def _added_in_conv(self, a: Symbol, b: Symbol) -> Symbol | None:
        """a + b, where b is the convolution that was just written and a can be what it adds to."""
        last = self._nodes[-1] if self._nodes else None
        if last is None or not b.blocked or b.name != last.output[0] or last.op_type != "Conv" or len(last.input) != 2:
            return None
        if a.name == b.name or a.shape != b.shape or not a.blocked:
            return None
        alone = onnx.NodeProto()
        alone.CopyFrom(last)
        self._taken[b.name] = alone
        result = Symbol(self._new(), b.shape, blocked=True)
        last.input.extend(["", a.name])
        last.output[0] = result.name
        return result

    # --- index moves ------------------------------------------------------------------------------------------------

    def reshape(self, x: Symbol, shape: Sequence[int]) -> Symbol:
        wanted = list(shape)
        if -1 in wanted:
            known = int(np.prod([d for d in wanted if d != -1]))
            wanted[wanted.index(-1)] = int(np.prod(x.shape)) // known
        return x if tuple(wanted) == x.shape else self._emit("Reshape", [x, self._ints(wanted)], wanted)

    def transpose(self, x: Symbol, perm: Sequence[int]) -> Symbol:
        if x.name in self._arrays:  # a weight: turned now, not in every run
            return self._derived(x, f"transposed {tuple(perm)}", lambda a: a.transpose(tuple(perm)))
        return self._emit("Transpose", [x], [x.shape[p] for p in perm], perm=list(perm))

    def expand(self, x: Symbol, shape: Sequence[int]) -> Symbol:
        return self._emit("Expand", [x, self._ints(shape)], shape)

    def concat(self, xs: Sequence[Symbol], axis: int) -> Symbol:
        shape = list(xs[0].shape)
        shape[axis] = sum(x.shape[axis] for x in xs)
        if axis == 1 and any(x.blocked for x in xs) and self._whole_blocks(*(x.shape[1] for x in xs)):
            return replace(self._emit("Concat", [self._in_blocks(x).name for x in xs], shape, axis=1), blocked=True)
        return self._emit("Concat", list(xs), shape, axis=axis)

    def pad(self, x: Symbol, begins: Sequence[int], ends: Sequence[int]) -> Symbol:
        if not any(begins) and not any(ends):
            return x
        shape = [b + d + e for b, d, e in zip(begins, x.shape, ends, strict=True)]
        if max(*begins, *ends) <= 0:
            starts = [-b for b in begins]
            stops = [d + e for d, e in zip(x.shape, ends, strict=True)]
            axes = [a for a in range(len(shape)) if begins[a] or ends[a]]
            cut = [self._ints([v[a] for a in axes]) for v in (starts, stops)]
            stays = x.blocked and axes == [1] and self._whole_blocks(starts[1], stops[1])
            source = x.name if stays else x
            result = replace(self._emit("Slice", [source, *cut, self._ints(axes)], shape), blocked=stays)
            if axes == [1] and (stays or not x.blocked):
                whole, first, _ = self._cuts.get(x.name, (x, 0, 0))
                self._cuts[result.name] = (whole, first + starts[1], first + stops[1])
            return result
        return self._around(x, begins, ends, 0.0)

    def _around(self, x: Symbol, begins: Sequence[int], ends: Sequence[int], fill: float) -> Symbol:
        shape = [b + d + e for b, d, e in zip(begins, x.shape, ends, strict=True)]
        return self._emit("Pad", [x, self._ints([*begins, *ends]), self.constant(fill)], shape)

    def gather(self, x: Symbol, indices: np.ndarray, axis: int) -> Symbol:
        shape = (*x.shape[:axis], len(indices), *x.shape[axis + 1 :])
        return self._emit("Gather", [x, self._ints(indices.tolist())], shape, axis=axis)

    def scatter_add(self, r: Symbol, indices: np.ndarray, axis: int, size: int) -> Symbol:
        """Gather from r with a zero cell appended; a cell that was read several times is the sum of several gathers."""
        readers: list[list[int]] = [[] for _ in range(size)]
        for position, index in enumerate(indices.tolist()):
            readers[index].append(position)
        nothing = len(indices)
        padded = self.pad(r, [0] * len(r.shape), [1 if a == axis else 0 for a in range(len(r.shape))])
        turns = max((len(found) for found in readers), default=0) or 1
        pieces = [
            self.gather(padded, np.asarray([found[turn] if turn < len(found) else nothing for found in readers]), axis)
            for turn in range(turns)
        ]
        return functools.reduce(self.add, pieces)


def _of_all_cells(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Is an array of ``shape`` one of ``whole``, or of one image of it that stands for all?"""
    return len(shape) == len(whole) and tuple(shape[1:]) == tuple(whole[1:]) and shape[:1] in (whole[:1], (1,))


def _reads(node: onnx.NodeProto) -> list[str]:
    names = list(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names += [name for inner in attribute.g.node for name in _reads(inner)]
    return names


def _reference(name: str, array: np.ndarray) -> TensorProto:
    reference = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
    reference.data_location = TensorProto.EXTERNAL
    entry = reference.external_data.add()
    entry.key, entry.value = "location", "weights"
    return reference


def _reading(window: Window, spatial: Sequence[int], out: Sequence[int]) -> np.ndarray:
    """[1, 1, *out]: 1 where a window holds a cell, 0 where it lies on padding alone."""
    read = np.ones(())
    for o, k, s, b, d, size in zip(
        out, window.kernel, window.strides, window.begins, window.dilations, spatial, strict=True
    ):
        cells = np.arange(o)[:, None] * s - b + np.arange(k) * d
        read = read[..., None] * ((cells >= 0) & (cells < size)).any(axis=1)
    return read[None, None]


def _phases(kernel: int, stride: int, begin: int, dilation: int) -> list[list[tuple[int, int]]]:
    """For each phase of the input: its taps, and by how many output cells each is shifted."""
    return [
        [(k, (p + begin - k * dilation) // stride) for k in range(kernel) if (p + begin - k * dilation) % stride == 0]
        for p in range(stride)
    ]


def _swapped(w: np.ndarray, group: int) -> np.ndarray:
    """[co, ci / g, k...] -> [ci, co / g, k...]"""
    co, ci = w.shape[:2]
    return w.reshape(group, co // group, ci, *w.shape[2:]).swapaxes(1, 2).reshape(group * ci, co // group, *w.shape[2:])


def _flipped(w: np.ndarray, group: int) -> np.ndarray:
    """[co, ci / g, k...] -> [ci, co / g, k...] with every kernel axis reversed."""
    return _swapped(w, group)[(slice(None), slice(None), *[slice(None, None, -1)] * (w.ndim - 2))]


def _depthwise(window: Window, channels: int) -> Convolution:
    return Convolution(window.strides, window.begins, window.dilations, channels)
