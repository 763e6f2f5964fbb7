"""The generated part of a kernel: what happens to one cell, as CUDA C.

    operations   share(r, z), mul(x, s), total(s)
    text         const real v2 = share(v0, v1); const real v3 = v4 * v2; ...

The text depends on which operations follow each other and on how each array is walked (cell by cell, or through axes of
its own), not on sizes: those are arguments. So a network needs a few dozen texts, compiled once and kept on disk.
Everything here is plain string work and runs without a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fgcam_onnx.backends.cuda.launch import Argument, Pointer, kernel_file
from fgcam_onnx.backends.cuda.operations import Buffer, Value
from fgcam_onnx.backends.cuda.schedule import Group

__all__ = ["FUNCTIONS", "Cell", "Walk", "block_sum", "cell_of", "finish", "finish_run", "map_source", "walk"]

FUNCTIONS = {
    "copy": "{0}",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "power": "pow({0}, {1})",
    "maximum": "larger({0}, {1})",
    "minimum": "smaller({0}, {1})",
    "absolute": "fabs({0})",
    "exp": "exp({0})",
    "log": "log({0})",
    "tanh": "tanh({0})",
    "sigmoid": "sigmoid({0})",
    "erf": "erf({0})",
    "greater": "exceeds({0}, {1}) ? (real)1 : (real)0",
    "nonzero": "nonzero({0})",
    "share": "share({0}, {1})",
    "where_zero": "nonzero({1}) == 0 ? {0} : (real)0",
    "where_nonzero": "nonzero({1}) == 0 ? (real)0 : {0}",
}


@dataclass(frozen=True)
class Walk:
    """How an operand's place follows from the cell's number: ``offset`` + for each axis position * stride.

    ``axes``: (size, stride), outermost first, neighbours merged where they can be. ``plain``: place = offset + cell.
    """

    axes: tuple[tuple[int, int], ...]
    offset: int

    @property
    def plain(self) -> bool:
        return all(stride == 1 for _, stride in self.axes) and len(self.axes) == 1

    @property
    def single(self) -> bool:
        return not self.axes


def walk(value: Value, shape: Sequence[int]) -> Walk:
    """The walk over ``value`` broadcast to ``shape``, in the order of its cells.

    [2, 3, 4] of strides (12, 4, 1) is one axis of 24; [3, 1] broadcast to [2, 3, 4] is (2, 0), (3, 1), (4, 0).
    """
    extra = len(shape) - len(value.shape)
    strides = [0] * extra + [
        0 if have == 1 and size != 1 else stride
        for have, stride, size in zip(value.shape, value.strides, shape[extra:], strict=True)
    ]
    axes: list[tuple[int, int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == size * stride:
            axes[-1] = (axes[-1][0] * size, stride)
        else:
            axes.append((size, stride))
    if all(stride == 0 for _, stride in axes):
        axes = []
    return Walk(tuple(axes), value.offset)


@dataclass
class Cell:
    """What a kernel does with one cell.

    ``parameters`` and ``arguments`` belong together. ``loads``: (name, array parameter, offset parameter) of the
    operands that are walked cell by cell, 16 bytes at a time where that is possible. ``lines``: statements on the cell
    number ``o``. ``stores``: (array parameter, variable). ``sums``: the variables that totals add up.
    """

    parameters: list[str] = field(default_factory=list)
    arguments: list[Argument] = field(default_factory=list)
    loads: list[tuple[str, str, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    stores: list[tuple[str, str]] = field(default_factory=list)
    sums: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    # All offsets of plain operands are multiples of a piece, so that pieces of them are aligned.
    aligned: bool = True

    def take(self, kind: str, name: str, argument: Argument) -> str:
        self.parameters.append(f"{kind} {name}")
        self.arguments.append(argument)
        return name


def cell_of(group: Group, dtype: np.dtype[Any], anchor: str = "acc") -> Cell:
    """The text for a group. ``anchor``: the expression that the group starts from, if it has an anchor.

    ``dtype``: of the program: numbers are rounded to it before the kernel sees them.
    """
    cell = Cell()
    names: dict[Buffer, str] = {} if group.anchor is None else {group.anchor.output: anchor}
    loaded: dict[tuple[Buffer, Walk], str] = {}
    numbers: dict[bytes, str] = {}  # by their bits: 0 and -0 are two
    offset = np.int64  # wide enough for every array; the kernel narrows it
    lanes = 16 // dtype.itemsize

    def operand(value: Value, shape: Sequence[int]) -> str:
        buffer = value.buffer
        if buffer in names:
            return names[buffer]
        number = buffer.number
        if number is not None:
            rounded = dtype.type(number)
            if rounded.tobytes() not in numbers:
                numbers[rounded.tobytes()] = cell.take("const real", f"c{len(numbers)}", rounded)
            return numbers[rounded.tobytes()]
        way = walk(value, shape)
        if (buffer, way) not in loaded:
            k = len(loaded)
            array = cell.take("const real* __restrict__", f"a{k}", Pointer(buffer))
            start = cell.take("const index_arg", f"b{k}", offset(way.offset))
            loaded[buffer, way] = name = f"x{k}"
            if way.plain:
                cell.loads.append((name, array, start))
                cell.aligned = cell.aligned and way.offset % lanes == 0
            else:
                cell.lines.append(f"const real {name} = {array}[{_place(cell, way, start, k)}];")
        return loaded[buffer, way]

    for k, operation in enumerate(group.maps):
        shape = operation.shape
        expression = FUNCTIONS[operation.function].format(*(operand(value, shape) for value in operation.inputs))
        names[operation.output] = f"v{k}"
        cell.lines.append(f"const real v{k} = {expression};")
        cell.functions.append(operation.function)
    for k, buffer in enumerate(group.stored):
        cell.stores.append((cell.take("real* __restrict__", f"y{k}", Pointer(buffer)), names[buffer]))
    cell.sums = [operand(total.inputs[0], total.inputs[0].shape) for total in group.totals]
    return cell


def _place(cell: Cell, way: Walk, start: str, k: int) -> str:
    """The expression for the place of cell ``o``; the sizes and strides of its axes become arguments."""
    if way.single:
        return f"(index_t){start}"
    rest, terms = f"r{k}", [f"(index_t){start}"]
    cell.lines.append(f"index_t {rest} = o;")
    for axis, (size, stride) in reversed(list(enumerate(way.axes))):
        position = rest
        if axis:
            d = cell.take("const unsigned", f"d{k}_{axis}", np.uint32(size))
            position = f"i{k}_{axis}"
            cell.lines.append(f"const index_t {position} = {rest} % {d}; {rest} /= {d};")
        if stride:
            s = cell.take("const index_arg", f"s{k}_{axis}", np.int64(stride))
            terms.append(f"{position} * (index_t){s}")
    return " + ".join(terms)


def finish(cell: Cell) -> str:
    """``FINISH(o, acc)`` for a kernel file that computes ``acc`` itself."""
    lines = [f"const real {name} = {array}[(index_t){start} + o];" for name, array, start in cell.loads]
    lines += [*cell.lines, *(f"{array}[o] = {variable};" for array, variable in cell.stores)]
    parameters = "".join(f", {parameter}" for parameter in cell.parameters)
    return f"#define FINISH_PARAMETERS {parameters}\n#define FINISH(o, acc) {{ {' '.join(lines)} }}\n"


def finish_run(cell: Cell) -> str:
    """``FINISH_RUN(place, run)``: the same for RUN cells side by side in memory, read and written together."""
    before = ["const index_t first_ = (place);"]
    before += [f"const Run p_{n} = *(const Run*)({a} + ((index_t){start} + first_));" for n, a, start in cell.loads]
    before += [f"Run p_{array};" for array, _ in cell.stores]
    lines = ["const index_t o = first_ + lane;", "const real acc = (run).lane[lane];"]
    lines += [f"const real {name} = p_{name}.lane[lane];" for name, _, _ in cell.loads]
    lines += [*cell.lines, *(f"p_{array}.lane[lane] = {variable};" for array, variable in cell.stores)]
    loop = f'_Pragma("unroll") for (int lane = 0; lane < RUN; ++lane) {{ {" ".join(lines)} }}'
    after = [f"((Run*){array})[first_ / RUN] = p_{array};" for array, _ in cell.stores]
    parameters = "".join(f", {parameter}" for parameter in cell.parameters)
    body = " ".join([*before, loop, *after])
    return f"#define FINISH_PARAMETERS {parameters}\n#define FINISH_RUN(place, run) {{ {body} }}\n"


MAP = """\
// Generated: one pass over the cells of the images, {width} at a time.
#define BLOCKS (sizeof(real) == 4 ? 3 : 2)     // on a multiprocessor: ptxas leaves registers for these
struct __align__({width} * (int)sizeof(real)) Pack {{ real lane[{width}]; }};
extern "C" __global__ void __launch_bounds__(256, BLOCKS) {name}(const index_arg cells{parameters})
{{
{shared}    const index_t last = (index_t)cells;
    const index_t step = (index_t)gridDim.x * 256 * {width};
    for (index_t i = ((index_t)blockIdx.x * 256 + threadIdx.x) * {width}; i < last; i += step) {{
        const index_t here = blockIdx.y * last + i;
{loads}#pragma unroll
        for (int lane = 0; lane < {width}; ++lane) {{
            const index_t o = here + lane;
{lines}        }}
{stores}    }}
{sums}}}
"""


def map_source(cell: Cell, width: int, partial: bool = False) -> tuple[str, str]:
    """Name and text of a generated kernel without anchor. ``width``: cells a thread takes at a time.

    ``partial``: its cells start from the sum of the parts that a split contraction left, ``acc``.
    """
    deep, deeper = "        ", "            "
    loads = [f"const Pack p_{n} = *(const Pack*)({a} + ((index_t){start} + here));" for n, a, start in cell.loads]
    loads += [f"Pack p_{array};" for array, _ in cell.stores]
    lines = [f"const real {name} = p_{name}.lane[lane];" for name, _, _ in cell.loads]
    parameters = list(cell.parameters)
    if partial:
        parameters += ["const real* __restrict__ parts", "const int splits", "const index_arg whole"]
        lines += ["real acc = 0;", "for (int k = 0; k < splits; ++k) acc += parts[(index_t)whole * k + o];"]
    lines += [*cell.lines, *(f"p_{array}.lane[lane] = {variable};" for array, variable in cell.stores)]
    # By packs and not by cells: else a compiler that sees 64-bit offsets writes them cell by cell.
    stores = [f"((Pack*){array})[here / {width}] = p_{array};" for array, _ in cell.stores]
    shared, sums = "", []
    if cell.sums:
        # A few cells are added in the program's precision, then as doubles: one slow addition for each load.
        shared = "    __shared__ double shared[256];\n"
        for k, variable in enumerate(cell.sums):
            parameters += [f"double* __restrict__ t{k}"]
            shared += f"    double whole{k} = 0;\n"
            loads.append(f"real few{k} = 0;")
            lines.append(f"few{k} += {variable};")
            stores.append(f"whole{k} += (double)few{k};")
            sums.append(f"whole{k} = block_sum(whole{k}, shared);")
            sums.append(f"if (threadIdx.x == 0) t{k}[(index_t)blockIdx.y * gridDim.x + blockIdx.x] = whole{k};")
    text = MAP.format(
        width=width,
        name="NAME",
        parameters="".join(f", {parameter}" for parameter in parameters),
        shared=shared,
        loads="".join(f"{deep}{line}\n" for line in loads),
        lines="".join(f"{deeper}{line}\n" for line in lines),
        stores="".join(f"{deep}{line}\n" for line in stores),
        sums="".join(f"    {line}\n" for line in sums),
    )
    words = "_".join(dict.fromkeys(cell.functions)) or "total"
    name = f"map_{words[:40]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name, text.replace("NAME", name)


def block_sum() -> str:
    """What kernels that take totals need: the sum over the threads of a block."""
    return kernel_file("block_sum.cu")
