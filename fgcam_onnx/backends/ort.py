"""The descent as a compiled onnxruntime graph: each verb emits ONNX nodes, and the whole walk runs as one model.

A program is traced once per key (which holds every shape), compiled, and kept. Everything a rule decides in Python
is decided while tracing; what remains is arithmetic that onnxruntime schedules, fuses and runs in parallel.

Choices that measurement made:
- the adjoint of a stride-1 convolution is a convolution with flipped kernels and swapped channels, which
  onnxruntime runs faster than ConvTranspose;
- ``share`` looks first whether any denominator is 0 (one reduction) and takes the masked way only then;
- weights are handed over as OrtValues, so that they are never serialized.
"""

from __future__ import annotations

import functools
import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fgcam_onnx import runtime
from fgcam_onnx.backends.base import TINY, Backend, Convolution, Leak, Program, Verbs, Window

__all__ = ["OrtBackend", "OrtVerbs"]

OPSET = 18
IR_VERSION = 9
LARGEST = float(np.finfo(np.float32).max)
# A weight of at least this many bytes is handed to the session as it is, a smaller one is written into the graph.
LARGE = 4096
# Compiled programs kept: the descents of a few methods at a few shapes.
KEPT = 8


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
        verbs = OrtVerbs()
        feeds = {name: verbs.input(name, value) for name, value in inputs.items()}
        outputs = {name: verbs.output(symbol) for name, symbol in program.run(verbs, feeds).items()}
        model, weights = verbs.finish(outputs)
        options = runtime.session_options(self.threads)
        fed = {name: runtime.value(array) for name, array in runtime.fed_weights(model, weights).items()}
        values = {name: runtime.value(array) for name, array in weights.items() if name not in fed}
        if values:
            options.add_external_initializers(list(values), list(values.values()))
        session = runtime.session(model.SerializeToString(), options, list(self.providers))
        used = {entry.name for entry in session.get_inputs()}
        names = {name: symbol.name for name, symbol in outputs.items()}
        return _Compiled(session, {n: s.name for n, s in feeds.items() if s.name in used}, names, fed)


@dataclass(frozen=True)
class _Compiled:
    session: Any
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    fed: Mapping[str, Any]

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        feeds = {**self.fed, **{inner: runtime.value(inputs[name]) for name, inner in self.inputs.items()}}
        wanted = list(dict.fromkeys(self.outputs.values()))
        results = dict(zip(wanted, self.session.run_with_ort_values(wanted, feeds), strict=True))
        return {name: results[inner].numpy() for name, inner in self.outputs.items()}


@dataclass(frozen=True)
class Symbol:
    """A value of the graph being traced."""

    name: str
    shape: tuple[int, ...]


class OrtVerbs(Verbs):
    """Each verb as ONNX nodes on :class:`Symbol`."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._small: dict[str, onnx.TensorProto] = {}
        self._weights: dict[str, np.ndarray] = {}
        self._constants: dict[tuple[Any, ...], Symbol] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._count = itertools.count()

    # --- building ---------------------------------------------------------------------------------------------------

    def input(self, name: str, value: Any) -> Symbol:
        """A fed tensor. Its name in the graph is its own: ONNX names of any form are allowed."""
        shape = tuple(value.shape() if callable(value.shape) else value.shape)
        symbol = Symbol(f"in:{name}", shape)
        self._inputs.append(helper.make_tensor_value_info(symbol.name, TensorProto.FLOAT, shape))
        return symbol

    def output(self, symbol: Symbol) -> Symbol:
        """What a program may return: an input or a weight is copied, for its memory belongs to someone else."""
        given = symbol.name in self._arrays or any(symbol.name == value.name for value in self._inputs)
        return self._emit("Identity", [symbol], symbol.shape) if given else symbol

    def finish(self, outputs: Mapping[str, Symbol]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        """The traced model and the weights that stay outside it."""
        read = {name for node in self._nodes for name in _reads(node)} | {s.name for s in outputs.values()}
        names = {symbol.name: symbol for symbol in outputs.values()}
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, symbol.shape) for name, symbol in names.items()]
        references = [_reference(name, array) for name, array in self._weights.items() if name in read]
        graph = helper.make_graph(
            self._nodes,
            "descent",
            [value for value in self._inputs if value.name in read],
            infos,
            [t for name, t in self._small.items() if name in read] + references,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        return model, {name: array for name, array in self._weights.items() if name in read}

    def _new(self) -> str:
        return f"t{next(self._count)}"

    def _emit(self, op: str, inputs: Sequence[Symbol | str], shape: Sequence[int], **attributes: Any) -> Symbol:
        output = Symbol(self._new(), tuple(shape))
        names = [entry if isinstance(entry, str) else entry.name for entry in inputs]
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

    def _binary(self, op: str, a: Symbol, b: Symbol) -> Symbol:
        return self._emit(op, [a, b], np.broadcast_shapes(a.shape, b.shape))

    def add(self, a: Symbol, b: Symbol) -> Symbol:
        return self._binary("Add", a, b)

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

    def absolute(self, x: Symbol) -> Symbol:
        return self._emit("Abs", [x], x.shape)

    def exp(self, x: Symbol) -> Symbol:
        return self._emit("Exp", [x], x.shape)

    def log(self, x: Symbol) -> Symbol:
        return self._emit("Log", [x], x.shape)

    def tanh(self, x: Symbol) -> Symbol:
        return self._emit("Tanh", [x], x.shape)

    def sigmoid(self, x: Symbol) -> Symbol:
        return self._emit("Sigmoid", [x], x.shape)

    def erf(self, x: Symbol) -> Symbol:
        return self._emit("Erf", [x], x.shape)

    def _float(self, mask: Symbol) -> Symbol:
        return self._emit("Cast", [mask], mask.shape, to=TensorProto.FLOAT)

    def greater(self, a: Symbol, b: Symbol) -> Symbol:
        return self._float(self._binary("Greater", a, b))

    def nonzero(self, x: Symbol) -> Symbol:
        zero = self._binary("Equal", x, self.constant(0.0))
        return self._float(self._emit("Not", [zero], x.shape))

    # --- the two steps in which relevance can be lost ---------------------------------------------------------------

    def share(self, r: Symbol, z: Symbol, *, nonnegative: bool = False) -> tuple[Symbol, Leak]:
        """If no denominator is dead (the usual case): r / z. Else the masked way. Same result, fewer passes."""
        n = z.shape[0]
        tiny = self.constant(TINY)
        size = z if nonnegative else self.absolute(z)
        any_dead = self._emit("Less", [self._flat_reduce("ReduceMin", size), tiny], ())
        names = [self._new() for _ in range(3)]

        healthy = self._branch()
        none = healthy.constant(np.zeros(n))
        then_free = healthy._end([healthy._clamp(healthy.div(r, z)), none, none])

        # Arithmetic with a 0/1 mask: onnxruntime's Where is several times slower than these passes together.
        masked = self._branch()
        dead = masked._float(masked._binary("Less", size, tiny))
        quotient = masked._clamp(masked.div(r, masked.add(z, dead)))  # a dead z is replaced by 1
        s = masked.mul(quotient, masked.sub(masked.constant(1.0), dead))
        dropped = masked.mul(r, dead)
        then_dead = masked._end([s, masked.total(dropped), masked.total(masked.absolute(dropped))])

        self._nodes.append(helper.make_node("If", [any_dead.name], names, then_branch=then_dead, else_branch=then_free))
        s, signed, absolute = (Symbol(name, shape) for name, shape in zip(names, (z.shape, (n,), (n,)), strict=True))
        return s, Leak(signed, absolute)

    def _clamp(self, x: Symbol) -> Symbol:
        return self._emit("Clip", [x, self.constant(-LARGEST), self.constant(LARGEST)], x.shape)

    def _flat_reduce(self, op: str, x: Symbol) -> Symbol:
        """Over everything, as rows: onnxruntime runs those in parallel."""
        if len(x.shape) < 2:
            return self._emit(op, [x, self._ints([0])], (), keepdims=0)
        rows = self._emit("Reshape", [x, self._ints([x.shape[0] * x.shape[1], -1])], (x.shape[0] * x.shape[1], -1))
        row = self._emit(op, [rows, self._ints([1])], (x.shape[0] * x.shape[1],), keepdims=0)
        return self._emit(op, [row, self._ints([0])], (), keepdims=0)

    def _branch(self) -> OrtVerbs:
        """A tracer for a subgraph: constants and names are shared with this graph, nodes are its own."""
        inner = OrtVerbs()
        inner._small, inner._weights, inner._constants = self._small, self._weights, self._constants
        inner._arrays, inner._count = self._arrays, self._count
        return inner

    def _end(self, results: Sequence[Symbol]) -> onnx.GraphProto:
        outputs = [self._emit("Identity", [result], result.shape) for result in results]
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
        return self._emit(
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
        if self._few_channels(ci, how):
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

    @staticmethod
    def _few_channels(ci: int, how: Convolution) -> bool:
        """The first layer of a network: 2-D, one group, and so few channels that ConvTranspose idles."""
        return (
            how.group == 1 and len(how.strides) == 2 and len(set(how.strides)) == 1 and ci * how.strides[0] ** 2 <= 64
        )

    def _adjoint_by_phases(self, s: Symbol, w: Symbol, how: Convolution, spatial: tuple[int, ...]) -> Symbol:
        """Input cells i = stride u + phase see the taps with (phase + begin - tap dilation) divisible by the stride.

        So the adjoint is one stride-1 convolution with a set of output channels for each phase, interleaved by
        DepthToSpace.
        """
        step = how.strides[0]
        taps = [_phases(k, step, b, d) for k, b, d in zip(w.shape[2:], how.begins, how.dilations, strict=True)]
        lows = [min(shift for found in axis for _, shift in found) for axis in taps]
        sizes = [
            max(shift for found in axis for _, shift in found) - low + 1 for axis, low in zip(taps, lows, strict=True)
        ]

        def make(a: np.ndarray) -> np.ndarray:
            out = np.zeros((a.shape[1], step, step, a.shape[0], *sizes), np.float32)
            for p, q in itertools.product(range(step), repeat=2):
                for (ky, sy), (kx, sx) in itertools.product(taps[0][p], taps[1][q]):
                    out[:, p, q, :, sy - lows[0], sx - lows[1]] = a[:, :, ky, kx].T
            return out.reshape(-1, a.shape[0], *sizes)

        kernels = self._derived(w, f"phases {how}", make)
        cells = tuple(-(-size // step) for size in spatial)
        begins = [-low for low in lows]
        cut = [min(0, b) for b in begins]
        if min(cut) < 0:
            s = self.pad(s, [0, 0, *cut], [0] * 4)
        flat = Convolution((1, 1), tuple(max(0, b) for b in begins), (1, 1))
        mixed = self.conv(s, kernels, flat, cells)
        whole = (s.shape[0], w.shape[1], *(c * step for c in cells))
        r = self._emit("DepthToSpace", [mixed], whole, blocksize=step, mode="CRD")
        return self.pad(r, [0] * 4, [0, 0, *(size - big for size, big in zip(spatial, whole[2:], strict=True))])

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
        split, repeat = list(s.shape[:2]), list(s.shape[:2])
        for o, k in zip(s.shape[2:], window.kernel, strict=True):
            split += [o, 1]
            repeat += [o, k]
        whole = [*s.shape[:2], *(o * k for o, k in zip(s.shape[2:], window.kernel, strict=True))]
        r = self.reshape(self.expand(self.reshape(s, split), repeat), whole)
        ends = [size - w for size, w in zip(spatial, whole[2:], strict=True)]
        return self.pad(r, [0] * len(whole), [0, 0, *ends]) if any(ends) else r

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
        values, winners = self._new(), Symbol(self._new(), r.shape)
        self._nodes.append(
            helper.make_node(
                "MaxPool", [fitted.name], [values, winners.name], kernel_shape=window.kernel, strides=window.strides,
                pads=pads, dilations=window.dilations,
            )
        )  # fmt: skip
        read = _reading(window, x.shape[2:], r.shape[2:])
        if not read.all():  # a window on padding alone has no winner: index -1
            r = self.mul(r, self.constant(read))
        size = int(np.prod(fitted.shape))
        flat = self._ints([-1])
        zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
        zeros = self._emit("ConstantOfShape", [self._ints([size])], (size,), value=zero)
        reaches = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
        overlap = not read.all() or any(reach > s for reach, s in zip(reaches, window.strides, strict=True))
        routed = self._emit(
            "ScatterElements",
            [zeros, self._emit("Reshape", [winners, flat], (-1,)), self._emit("Reshape", [r, flat], (-1,))],
            (size,), axis=0, reduction="add" if overlap else "none",
        )  # fmt: skip
        result = self.reshape(routed, fitted.shape)
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
        n = r.shape[0]
        if len(r.shape) > 2:  # in two steps: the first runs in parallel, and short sums round less
            rows = self._emit("Reshape", [r, self._ints([n, r.shape[1], -1])], (n, r.shape[1], -1))
            r = self._emit("ReduceSum", [rows, self._ints([2])], (n, r.shape[1]), keepdims=0)
        elif len(r.shape) == 1:
            return r
        return self._emit("ReduceSum", [r, self._ints([1])], (n,), keepdims=0)

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
            return self._emit("Slice", [x, *cut, self._ints(axes)], shape)
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


def _flipped(w: np.ndarray, group: int) -> np.ndarray:
    """[co, ci / g, k...] -> [ci, co / g, k...] with every kernel axis reversed."""
    co, ci = w.shape[:2]
    grouped = w.reshape(group, co // group, ci, *w.shape[2:]).swapaxes(1, 2)
    swapped = grouped.reshape(group * ci, co // group, *w.shape[2:])
    return swapped[(slice(None), slice(None), *[slice(None, None, -1)] * (w.ndim - 2))]


def _depthwise(window: Window, channels: int) -> Convolution:
    return Convolution(window.strides, window.begins, window.dilations, channels)
