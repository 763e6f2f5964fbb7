"""What happens before a CUDA kernel runs: tracing, grouping, generated text, memory, and programs as a whole.

Most of it is index arithmetic and runs anywhere; whole programs run on a CPU (cuda_on_cpu) and are compared with NumPy.
The last part draws programs at random: what a rule will ever write is some of that.
"""

from __future__ import annotations

import gc
import itertools
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from cuda_on_cpu.device import CpuDevice
from hypothesis import given, settings
from hypothesis import strategies as st

from fgcam_onnx.backends.base import Array, Convolution, Program, Verbs, Window
from fgcam_onnx.backends.cuda import contraction
from fgcam_onnx.backends.cuda import program as program_module
from fgcam_onnx.backends.cuda.launch import Constant, Launch, Pointer, Scratch
from fgcam_onnx.backends.cuda.lower import Target
from fgcam_onnx.backends.cuda.memory import ALIGNMENT, Layout, lay_out, lifetimes
from fgcam_onnx.backends.cuda.operations import (
    Buffer,
    Contraction,
    Map,
    Settle,
    Total,
    Value,
    contiguous_strides,
)
from fgcam_onnx.backends.cuda.program import CAPTURES, Compiled, Constants, lower, plan
from fgcam_onnx.backends.cuda.schedule import Group, schedule
from fgcam_onnx.backends.cuda.text import Walk, cell_of, finish, map_source, walk
from fgcam_onnx.backends.cuda.trace import CudaVerbs
from fgcam_onnx.backends.numpy import NumpyVerbs

Floats = np.ndarray
Run = Callable[[Verbs, Mapping[str, Array]], Mapping[str, Array]]
FLOAT32 = np.dtype(np.float32)


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def target(multiprocessors: int = 4, dtype: Any = np.float32) -> Target:
    return Target(np.dtype(dtype), multiprocessors, False)


def traced(run: Run, **shapes: Sequence[int]) -> tuple[CudaVerbs, dict[str, Value]]:
    """The operations and the outputs of a program."""
    xp = CudaVerbs()
    fed = {name: xp.input(name, shape) for name, shape in shapes.items()}
    return xp, xp.outputs(run(xp, fed))


def groups_of(run: Run, **shapes: Sequence[int]) -> list[Group]:
    xp, outputs = traced(run, **shapes)
    return schedule(xp.operations, outputs)


def launched(run: Run, **shapes: Sequence[int]) -> list[str]:
    """What is launched, in order; generated kernels as "map"."""
    launches, _, _, _ = lower(Program("", run), shapes, target())
    return [re.sub("^map_.*", "map", launch.name) for launch in launches]


_DEVICES: dict[int, CpuDevice] = {}


def device(multiprocessors: int = 4) -> CpuDevice:
    """One for each size and process, so that a kernel is compiled once."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, and running CUDA kernels on the CPU needs it")
    return _DEVICES.setdefault(multiprocessors, CpuDevice(multiprocessors=multiprocessors))


def compiled(run: Run, inputs: Mapping[str, Floats], on: CpuDevice, dtype: Any = np.float32) -> Compiled:
    shapes = {name: array.shape for name, array in inputs.items()}
    return Compiled(on, Constants(on), Program("", run), shapes, target(on.multiprocessors, dtype))


def fed(on: CpuDevice, inputs: Mapping[str, Floats], dtype: Any = np.float32) -> tuple[dict[str, int], list[Any]]:
    """Addresses of the inputs, and what keeps them alive."""
    held = {name: on.upload(np.asarray(array, dtype)) for name, array in inputs.items()}
    return {name: memory.pointer for name, memory in held.items()}, list(held.values())


def on_device(
    run: Run, inputs: Mapping[str, Floats], multiprocessors: int = 4, dtype: Any = np.float32
) -> dict[str, Floats]:
    on = device(multiprocessors)
    addresses, _held = fed(on, inputs, dtype)
    return compiled(run, inputs, on, dtype).run(addresses)


def in_numpy(run: Run, inputs: Mapping[str, Floats], dtype: Any = np.float64) -> dict[str, Floats]:
    found = run(NumpyVerbs(dtype), {name: array.astype(dtype) for name, array in inputs.items()})
    return {name: np.asarray(array) for name, array in found.items()}


def agree(found: Mapping[str, Floats], expected: Mapping[str, Floats], tolerance: float = 1e-5) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].shape == array.shape
        scale = np.abs(array).max(initial=0.0)
        np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance * scale, err_msg=name)


def right(run: Run, **inputs: Floats) -> None:
    agree(on_device(run, inputs), in_numpy(run, inputs))


# --- values: views of buffers -----------------------------------------------------------------------------------------


def test_strides_of_contiguous_memory() -> None:
    assert contiguous_strides((2, 3, 4)) == (12, 4, 1)
    assert contiguous_strides(()) == ()


def test_packed_and_direct() -> None:
    """Packed: in order. Direct: all of the buffer besides."""
    xp = CudaVerbs()
    x = xp.input("x", (2, 3, 4))
    for tag, value, packed, direct in (
        ("whole", x, True, True),
        ("reshaped", xp.reshape(x, (6, 4)), True, True),
        ("open", xp.reshape(x, (-1,)), True, True),
        ("with ones", xp.reshape(x, (2, 1, 3, 1, 4)), True, True),
        ("one moved", xp.transpose(xp.reshape(x, (2, 1, 3, 4)), (1, 0, 2, 3)), True, True),
        ("transposed", xp.transpose(x, (0, 2, 1)), False, False),
        ("there and back", xp.transpose(xp.transpose(x, (2, 0, 1)), (1, 2, 0)), True, True),
        ("first image", xp.pad(x, (0, 0, 0), (-1, 0, 0)), True, False),
        ("second image", xp.pad(x, (-1, 0, 0), (0, 0, 0)), True, False),
        ("cropped inside", xp.pad(x, (0, 0, 0), (0, 0, -1)), False, False),
        ("one row", xp.pad(x, (-1, -2, 0), (0, 0, 0)), True, False),
        ("expanded", xp.expand(x, (5, 2, 3, 4)), False, False),
        ("expanded by one", xp.expand(x, (1, 2, 3, 4)), True, True),
        ("expanded number", xp.expand(xp.input("y", (1,)), (3,)), False, False),
    ):
        assert (value.packed, value.direct) == (packed, direct), tag
    assert not any(isinstance(operation, Map) for operation in xp.operations)


def test_a_buffer_of_one_cell_is_a_number_only_if_it_is_constant() -> None:
    xp = CudaVerbs()
    assert xp.constant(0.5).buffer.number == 0.5
    assert xp.constant(np.array([[3.0]])).buffer.number == 3
    assert xp.constant(np.ones(2)).buffer.number is None
    assert xp.input("x", (1,)).buffer.number is None


# --- walks ------------------------------------------------------------------------------------------------------------


def places(way: Walk, cells: int) -> list[int]:
    """What the generated index arithmetic computes, for every cell."""
    found = []
    for cell in range(cells):
        rest, place = cell, way.offset
        for axis, (size, stride) in reversed(list(enumerate(way.axes))):
            place += (rest % size if axis else rest) * stride
            rest //= size
        found.append(place)
    return found


@st.composite
def views(draw: st.DrawFn) -> tuple[Floats, Value, tuple[int, ...]]:
    """An array of its own places, a Value that is the same view of it, and a shape that they broadcast to."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    xp = CudaVerbs()
    array, value = np.arange(math.prod(shape)).reshape(shape), xp.input("x", shape)
    for step in draw(st.lists(st.sampled_from(("transpose", "crop", "expand", "ones")), max_size=4)):
        if step == "transpose":
            perm = draw(st.permutations(range(array.ndim)))
            array, value = array.transpose(perm), xp.transpose(value, perm)
        elif step == "crop":
            begins = [draw(st.integers(0, size - 1)) for size in array.shape]
            ends = [draw(st.integers(0, size - 1 - b)) for size, b in zip(array.shape, begins, strict=True)]
            cells = zip(begins, ends, array.shape, strict=True)
            array = array[tuple(slice(b, size - e) for b, e, size in cells)]
            value = xp.pad(value, [-b for b in begins], [-e for e in ends])
        elif step == "expand":
            wider = draw(broadcasts(array.shape))
            array, value = np.broadcast_to(array, wider), xp.expand(value, wider)
        elif value.packed and array.ndim < 6:
            at = draw(st.integers(0, array.ndim))
            array = np.expand_dims(array, at)
            value = xp.reshape(value, array.shape)
    assert not xp.operations
    return array, value, draw(broadcasts(array.shape))


def broadcasts(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes that an array of ``shape`` broadcasts to."""
    if len(shape) >= 6:
        return st.just(shape)
    wider = [st.integers(1, 3) if size == 1 else st.just(size) for size in shape]
    return st.tuples(st.lists(st.integers(1, 3), max_size=6 - len(shape)), st.tuples(*wider)).map(
        lambda parts: (*parts[0], *parts[1])
    )


@settings(max_examples=150, deadline=None)
@given(views())
def test_a_walk_goes_where_numpy_goes(view: tuple[Floats, Value, tuple[int, ...]]) -> None:
    array, value, shape = view
    assert value.shape == array.shape
    expected = np.broadcast_to(array, shape).ravel().tolist()
    way = walk(value, shape)
    assert places(way, len(expected)) == expected
    # As few axes as possible: no two neighbours are one.
    assert all(a[1] != b[0] * b[1] for a, b in itertools.pairwise(way.axes))
    assert all(size > 1 for size, _ in way.axes)
    assert way.single == (len(set(expected)) == 1)
    assert way.plain == (len(expected) > 1 and expected == list(range(way.offset, way.offset + len(expected))))
    assert value.packed == (array.ravel().tolist() == list(range(value.offset, value.offset + array.size)))


def test_walks_by_hand() -> None:
    xp = CudaVerbs()
    x, column, channel = xp.input("x", (2, 3, 4)), xp.input("c", (3, 1)), xp.input("d", (2, 3, 1, 1))
    for value, shape, axes, offset in (
        (x, (2, 3, 4), ((24, 1),), 0),
        (column, (2, 3, 4), ((2, 0), (3, 1), (4, 0)), 0),
        (x, (5, 2, 3, 4), ((5, 0), (24, 1)), 0),
        (xp.transpose(x, (1, 0, 2)), (3, 2, 4), ((3, 4), (2, 12), (4, 1)), 0),
        (xp.transpose(x, (0, 2, 1)), (2, 4, 3), ((2, 12), (4, 1), (3, 4)), 0),
        (xp.transpose(x, (2, 0, 1)), (4, 2, 3), ((4, 1), (6, 4)), 0),
        (channel, (2, 3, 5, 7), ((6, 1), (35, 0)), 0),
        (xp.pad(x, (0, -1, 0), (0, 0, 0)), (2, 2, 4), ((2, 12), (8, 1)), 4),
        (xp.pad(x, (0, 0, -1), (0, 0, -2)), (2, 3, 1), ((6, 4),), 1),
        (xp.pad(x, (-1, -2, -3), (0, 0, 0)), (1, 1, 1), (), 23),
        (xp.pad(x, (-1, -2, -3), (0, 0, 0)), (4, 4), (), 23),
    ):
        if len(shape) >= len(value.shape):
            assert walk(value, shape) == Walk(axes, offset)
    assert Walk(((24, 1),), 3).plain
    assert not Walk(((24, 2),), 0).plain
    assert not Walk(((2, 0), (3, 1)), 0).plain
    assert Walk((), 3).single
    assert not Walk((), 3).plain


def test_a_wrong_walk_is_noticed() -> None:
    """Axes swapped, or an offset forgotten, go elsewhere."""
    xp = CudaVerbs()
    x = xp.pad(xp.transpose(xp.input("x", (3, 4)), (1, 0)), (0, -1), (0, 0))
    expected = np.arange(12).reshape(3, 4).T[:, 1:].ravel().tolist()
    way = walk(x, x.shape)
    assert places(way, 8) == expected
    assert places(Walk(way.axes[::-1], way.offset), 8) != expected
    assert places(Walk(way.axes, 0), 8) != expected


# --- generated text ---------------------------------------------------------------------------------------------------


def texts(run: Run, **shapes: Sequence[int]) -> list[str]:
    """The text of every group, whether it ends a kernel file or is a kernel."""
    found = []
    for group in groups_of(run, **shapes):
        cell = cell_of(group, FLOAT32)
        found.append(map_source(cell, 1)[1] if group.anchor is None else finish(cell))
    return found


def weighed(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
    """A map kernel with everything: plain, walked, single operands, numbers, stores and totals."""
    s, leak = xp.share(i["x"], xp.add(i["x"], i["row"]))
    y = xp.mul(xp.mul(s, xp.constant(0.25)), i["one"])
    return {"y": y, "s": s, "signed": leak.signed, "absolute": leak.absolute}


def test_parameters_and_arguments_belong_together() -> None:
    kinds = {
        "const real* __restrict__": Pointer,
        "real* __restrict__": Pointer,
        "const index_arg": np.int64,
        "const unsigned": np.uint32,
        "const real": np.float32,
    }
    groups = groups_of(weighed, x=(2, 3, 4, 5), row=(3, 1, 5), one=(1,))
    assert len(groups) == 1
    cell = cell_of(groups[0], FLOAT32)
    assert len({p.split()[-1] for p in cell.parameters}) == len(cell.parameters) == len(cell.arguments)
    for parameter, argument in zip(cell.parameters, cell.arguments, strict=True):
        assert type(argument) is kinds[parameter.rsplit(" ", 1)[0]]
    named = {p.split()[-1]: a for p, a in zip(cell.parameters, cell.arguments, strict=True)}
    stored = [named[array].buffer for array, _ in cell.stores]
    assert stored == groups[0].stored
    # row [3, 1, 5] in [2, 3, 4, 5]: strides 0, 5, 0, 1 of axes 2, 3, 4, 5, the outermost without a size
    assert sorted(int(a) for a in cell.arguments if isinstance(a, np.uint32)) == [3, 4, 5]
    assert sorted(int(named[name]) for name in named if name.startswith("s")) == [1, 5]
    assert [a for a in cell.arguments if isinstance(a, np.float32)] == [0.25]
    assert len(cell.sums) == 2
    assert len(cell.loads) == 1


def test_the_signature_takes_what_the_launch_hands_over() -> None:
    """In number and order: all of a generated kernel, and what FINISH adds to the others."""
    launches, *_ = lower(Program("", everything), EVERYTHING, target())
    checked = 0
    for one in launches:
        if one.name.startswith("map_"):
            (listed,) = re.findall(rf"\b{one.name}\((.*)\)\n\{{", one.source)
        else:
            found = re.findall(r"#define FINISH_PARAMETERS , (.*)", one.source)
            if len(found) < 2:  # the file's own default alone: a kernel that has no FINISH
                continue
            listed = found[0]
        parameters = listed.split(", ")
        arguments = one.arguments[-len(parameters) :]
        assert one.name[:4] != "map_" or len(parameters) == len(one.arguments)
        for parameter, argument in zip(parameters, arguments, strict=True):
            assert ("*" in parameter) == isinstance(argument, Pointer), (one.name, parameter)
        checked += 1
    assert checked > 8


def test_sizes_are_no_part_of_the_text() -> None:
    small = texts(weighed, x=(2, 3, 4, 5), row=(3, 1, 5), one=(1,))
    assert small == texts(weighed, x=(3, 7, 6, 9), row=(7, 1, 9), one=(1,))
    number = [texts(lambda xp, i, c=c: {"y": xp.mul(i["x"], xp.constant(c))}, x=(2, 3)) for c in (0.5, 7.0)]
    assert number[0] == number[1]


def test_the_number_of_axes_is_part_of_the_text() -> None:
    shapes = ((3, 1, 5), (1, 1, 5), (3, 4, 5), (2, 3, 4, 5), (3, 1, 1))
    found = [texts(weighed, x=(2, 3, 4, 5), row=row, one=(1,)) for row in shapes]
    # strides 0 5 0 1, 0 1, 0 1, 1 and 0 1 0: the second and the third are walked in one way
    assert found[1] == found[2]
    assert len({*map(tuple, found)}) == 4


def test_names_tell_texts_apart() -> None:
    runs: list[Run] = [
        lambda xp, i, verb=verb: {"y": getattr(xp, verb)(i["x"], i["y"])} for verb in ("add", "sub", "mul")
    ]
    runs.append(lambda xp, i: {"y": xp.add(i["x"], xp.transpose(i["y"], (1, 0)))})
    runs.append(lambda xp, i: {"y": xp.add(i["x"], xp.constant(2.0))})
    runs.append(lambda xp, i: {"y": xp.add(i["y"], i["x"]), "t": xp.total(i["x"])})
    runs.append(lambda xp, i: {"t": xp.total(i["x"])})
    found = {}
    for run in runs:
        for size in (4, 8):
            (group,) = groups_of(run, x=(size, size), y=(size, size))
            cell = cell_of(group, FLOAT32)
            for width in (1, 4):
                name, text = map_source(cell, width)
                assert name in text
                assert re.fullmatch(r"map_\w+", name)
                assert found.setdefault(name, text) == text
    assert len(found) == 2 * len(runs)
    assert len(set(found.values())) == len(found)


def test_zeros_of_both_signs_are_two_numbers() -> None:
    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        return {"plus": xp.div(i["x"], xp.constant(0.0)), "minus": xp.div(i["x"], xp.constant(-0.0))}

    found = on_device(run, {"x": np.ones((2, 3), np.float32)})
    assert (found["plus"] == np.inf).all()
    assert (found["minus"] == -np.inf).all()


def test_pieces_are_read_only_where_they_are_aligned() -> None:
    """A crop that begins at the second image of six cells is plain, but begins inside a piece of four."""
    for begin, aligned in ((-1, False), (-2, True)):
        (group,) = groups_of(lambda xp, i, b=begin: {"y": xp.absolute(xp.pad(i["x"], (b, 0), (0, 0)))}, x=(4, 6))
        cell = cell_of(group, FLOAT32)
        assert len(cell.loads) == 1
        assert cell.aligned == aligned


# --- tracing ----------------------------------------------------------------------------------------------------------

CONV = Convolution((1, 1), (1, 1), (1, 1))
W = random(4, 3, 3, 3)
PLUS, MINUS = np.maximum(W, 0), np.minimum(W, 0)


def test_equal_calls_are_one_operation() -> None:
    xp = CudaVerbs()
    x, w = xp.input("x", (2, 3, 6, 6)), xp.constant(W)
    window = Window((2, 2), (2, 2), (0, 0), (1, 1))
    for call in (
        lambda: xp.mul(x, xp.constant(0.5)),
        lambda: xp.conv(x, w, CONV, (6, 6)),
        lambda: xp.window_sum(x, window, (3, 3)),
        lambda: xp.reduce_max(x, (1, 3)),
        lambda: xp.reduce_max(x, (-1, 1)),
        lambda: xp.gather(x, np.array([1, 0]), 1),
        lambda: xp.pad(x, (0, 0, 1, 1), (0, 0, 1, 1)),
        lambda: xp.concat([x, x], 1),
        lambda: xp.matmul(x, xp.transpose(w_matrix(xp), (1, 0))),
        lambda: xp.total(x),
        lambda: xp.share(x, xp.absolute(x))[1].absolute,
    ):
        first, count = call(), len(xp.operations)
        assert call() == first
        assert len(xp.operations) == count


MATRIX = random(5, 6)


def w_matrix(xp: Verbs) -> Array:
    return xp.constant(MATRIX)


def test_different_calls_are_different_operations() -> None:
    xp = CudaVerbs()
    x = xp.input("x", (2, 3, 6, 6))
    different = [
        xp.conv(x, xp.constant(PLUS), CONV, (6, 6)),
        xp.conv(x, xp.constant(MINUS), CONV, (6, 6)),
        xp.conv(x, xp.constant(PLUS), Convolution((1, 1), (0, 0), (1, 1)), (4, 4)),
        xp.reduce_max(x, (1,)),
        xp.reduce_min(x, (1,)),
        xp.reduce_max(x, (2,)),
        xp.gather(x, np.array([1, 0]), 1),
        xp.gather(x, np.array([0, 1]), 1),
        xp.gather(x, np.array([1, 0]), 2),
        xp.scatter_add(x, np.array([1, 0, 1]), 1, 3),
        xp.scatter_add(x, np.array([1, 0, 1]), 1, 4),
        xp.maximum(x, xp.constant(0.0)),
        xp.maximum(x, xp.constant(1.0)),
        xp.total(x),
        xp.total(xp.transpose(x, (1, 0, 2, 3))),
    ]
    xp.rounding(one_sign=True)
    different.append(xp.conv(x, xp.constant(PLUS), CONV, (6, 6)))
    assert len(set(different)) == len(different)


def test_a_total_of_one_value_is_taken_once() -> None:
    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        return {"out": xp.total(i["x"]), "in": xp.total(i["x"]), "both": xp.add(xp.total(i["x"]), xp.total(i["y"]))}

    xp, outputs = traced(run, x=(2, 5), y=(2, 7))
    assert [type(operation) for operation in xp.operations] == [Total, Total]
    assert outputs["out"] == outputs["in"]
    groups = schedule(xp.operations, outputs)
    assert sorted(len(group.totals) for group in groups) == [1, 1]
    assert not any(group.stored for group in groups)
    right(run, x=random(2, 5), y=random(2, 7))


def two_products(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
    x = i["x"]
    plus = xp.conv(xp.positive(x), xp.constant(PLUS), CONV, (6, 6))
    minus = xp.conv(xp.negative(x), xp.constant(MINUS), CONV, (6, 6))
    return {"z": xp.add(plus, minus)}


def test_two_added_products_are_one_contraction() -> None:
    xp, outputs = traced(two_products, x=(2, 3, 6, 6))
    groups = schedule(xp.operations, outputs)
    (product,) = [group.anchor for group in groups if isinstance(group.anchor, Contraction)]
    assert len(product.inputs) == len(product.weights) == 2
    assert launched(two_products, x=(2, 3, 6, 6)) == ["map", "contraction"]
    right(two_products, x=random(2, 3, 6, 6))


def test_products_of_other_geometries_are_added_afterwards() -> None:
    other, smaller = random(4, 3, 1, 1), random(4, 3, 2, 2)

    def kernels(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        one = xp.conv(i["x"], xp.constant(PLUS), CONV, (6, 6))
        return {"z": xp.add(one, xp.conv(i["x"], xp.constant(other), Convolution((1, 1), (0, 0), (1, 1)), (6, 6)))}

    def three(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        one, two = (xp.conv(i["x"], xp.constant(w), CONV, (6, 6)) for w in (PLUS, MINUS))
        return {"z": xp.add(xp.add(one, two), xp.conv(xp.absolute(i["x"]), xp.constant(W), CONV, (6, 6)))}

    def cropped(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        one, two = (xp.conv(i["x"], xp.constant(w), CONV, (6, 6)) for w in (PLUS, MINUS))
        crop = (0, 0, -1, 0), (0, 0, 0, 0)
        return {"z": xp.add(xp.pad(one, *crop), xp.pad(two, *crop)), "one": one}

    def sizes(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        """The same strides and padding, the same result, another kernel."""
        one = xp.conv(i["x"], xp.constant(PLUS), CONV, (6, 6))
        return {"z": xp.add(one, xp.conv(i["x"], xp.constant(smaller), CONV, (6, 6)))}

    for run, count in ((kernels, 2), (three, 2), (cropped, 2), (sizes, 2)):
        assert launched(run, x=(2, 3, 6, 6)).count("contraction") == count
        right(run, x=random(2, 3, 6, 6))


def test_a_product_that_is_read_elsewhere_too_is_still_there() -> None:
    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        one, two = (xp.conv(i["x"], xp.constant(w), CONV, (6, 6)) for w in (PLUS, MINUS))
        return {"z": xp.add(one, two), "twice": xp.add(one, one), "one": one}

    right(run, x=random(2, 3, 6, 6))


def test_added_products_keep_the_rounding_they_were_given() -> None:
    """TF32 is for products of one sign: where they are added has no say in it."""
    xp = CudaVerbs()
    x = xp.input("x", (2, 3, 6, 6))
    one, two = (xp.conv(x, xp.constant(w), CONV, (6, 6)) for w in (PLUS, MINUS))
    xp.rounding(one_sign=True)
    found = xp.add(one, two).buffer.writer
    assert isinstance(found, Contraction)
    assert not found.one_sign


def test_products_with_a_matrix_are_added_in_one() -> None:
    a, b = random(5, 4), random(5, 4, seed=1)

    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        return {"z": xp.add(xp.matmul(i["x"], xp.constant(a)), xp.matmul(xp.absolute(i["x"]), xp.constant(b)))}

    assert launched(run, x=(2, 3, 5)) == ["map", "contraction"]
    right(run, x=random(2, 3, 5))


def test_what_depends_on_constants_alone_is_no_operation() -> None:
    xp = CudaVerbs()
    w = xp.constant(W)
    z = xp.maximum(xp.add(xp.mul(w, xp.constant(2.0)), xp.constant(row := random(3, 1, 1))), xp.constant(0.0))
    s, _ = xp.share(xp.constant(np.ones_like(W)), z)
    moved = xp.expand(xp.reshape(xp.transpose(s, (1, 0, 2, 3)), (3, -1)), (2, 3, 36))
    assert not any(isinstance(o, Map) and o.function not in ("where_zero", "absolute") for o in xp.operations)
    array = moved.buffer.array
    assert array is not None
    z_expected = np.maximum(2 * W + row, 0)
    expected = np.divide(1, z_expected, out=np.zeros_like(W), where=z_expected > 0)
    np.testing.assert_allclose(array[1], expected.transpose(1, 0, 2, 3).reshape(3, -1), rtol=1e-6)


def test_views_cost_no_launch() -> None:
    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        x = xp.reshape(i["x"], (2, 3, 24))
        x = xp.pad(xp.transpose(x, (0, 2, 1)), (0, -4, 0), (0, 0, -1))
        return {"y": xp.add(xp.expand(x, (2, 20, 2)), xp.expand(i["row"], (2, 20, 2)))}

    assert launched(run, x=(2, 3, 6, 4), row=(2,)) == ["map"]
    right(run, x=random(2, 3, 6, 4), row=random(2))


def test_reshaping_what_is_not_in_order_copies_it_once() -> None:
    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        x = xp.transpose(i["x"], (0, 2, 1))
        return {"a": xp.absolute(xp.reshape(x, (2, 12))), "b": xp.exp(xp.reshape(x, (2, 2, 6)))}

    xp, _ = traced(run, x=(2, 3, 4))
    assert [o.function for o in xp.operations if isinstance(o, Map)] == ["copy", "absolute", "exp"]
    right(run, x=random(2, 3, 4))


def test_a_rule_may_go_on_computing_with_a_total() -> None:
    def scaled(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        whole = xp.total(i["x"])
        part = xp.div(i["x"], xp.reshape(whole, (2, 1, 1)))
        return {"part": part, "whole": whole, "double": xp.mul(whole, xp.constant(2.0)), "one": xp.total(part)}

    def chained(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        """The total of what was scaled by a total of what was scaled."""
        x = i["x"]
        for _ in range(3):
            x = xp.mul(x, xp.reshape(xp.tanh(xp.total(xp.absolute(x))), (2, 1, 1)))
        leak = xp.keep(x, xp.greater(i["x"], xp.constant(0.0)))[1]
        both = xp.add(leak.signed, leak.absolute)
        return {"x": x, "t": xp.total(x), "both": both, "difference": xp.sub(leak.signed, both), "same": xp.total(both)}

    def shared(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        """A total of total: [n] is summed to [n]; of a gathered, padded, reduced one."""
        whole = xp.total(i["x"])
        return {
            "a": xp.gather(whole, np.array([1, 0, 1]), 0),
            "b": xp.pad(whole, (1,), (0,)),
            "c": xp.reduce_sum(whole, (0,)),
            "d": xp.expand(xp.reshape(whole, (2, 1)), (2, 3)),
            "e": xp.pad(whole, (-1,), (0,)),
            "f": xp.concat([whole, whole], 0),
            "g": xp.total(xp.total(i["x"])),
        }

    x = np.abs(random(2, 3, 5)) + random(2, 1, 5) / 4
    for run in (scaled, chained, shared):
        right(run, x=x)


def test_what_only_totals_read_is_as_wide_as_they_are() -> None:
    """|s| of one cell an image, times x of many: the product ends in a total, |s| must not be taken cell by cell."""

    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        return {"t": xp.total(xp.mul(i["x"], xp.absolute(i["s"])))}

    right(run, x=random(2, 3, 5), s=random(2, 1, 1))


# --- grouping ---------------------------------------------------------------------------------------------------------


class MisplacedError(AssertionError):
    """A group reads what is not there yet."""


def check_order(groups: Sequence[Group], outputs: Mapping[str, Value]) -> None:
    """Every group finds what it reads, every total is taken once, every result is written once."""
    written: list[Buffer] = []
    taken: list[Total] = []
    for group in groups:
        for value in group.reads:
            if value.buffer.kind == "tally":
                if not set(value.buffer.totals) <= set(taken):
                    raise MisplacedError("a tally is read before it is complete")
            elif value.buffer.kind == "computed" and value.buffer not in written:
                raise MisplacedError("an array is read before it is written")
        here = set() if group.anchor is None else {group.anchor.output}
        for operation in group.maps:
            for value in operation.inputs:
                if value.buffer in group.computed:
                    if value.buffer not in here:
                        raise MisplacedError("an operation comes before its operand")
                    if not value.direct or value.size != operation.output.size:
                        raise MisplacedError("an operand in a register is not read cell by cell")
            if operation.output.size != group.size:
                raise MisplacedError("an operation has other cells than its group")
            here.add(operation.output)
        for total in group.totals:
            if total.inputs[0].size != group.size or total.inputs[0].shape[0] != group.images:
                raise MisplacedError("a total has other cells than its group")
        written += group.stored
        taken += group.totals
    assert len(set(written)) == len(written)
    assert len(set(taken)) == len(taken)
    for value in outputs.values():
        if value.buffer.kind == "tally":
            assert set(value.buffer.totals) <= set(taken)
        else:
            assert value.buffer in written


def z_plus(x: Array, r: Array, w: Floats, xp: Verbs, how: Convolution = CONV, *, mixed: bool) -> tuple[Array, Any]:
    """The z+ rule of fgcam_onnx.propagation.z_plus on a convolution."""
    out, spatial = xp.shape(r)[2:], xp.shape(x)[2:]
    pairs = [(xp.positive(x) if mixed else x, xp.constant(np.maximum(w, 0)))]
    if mixed:
        pairs.append((xp.negative(x), xp.constant(np.minimum(w, 0))))
    z = None
    for part, weight in pairs:
        term = xp.conv(part, weight, how, out)
        z = term if z is None else xp.add(z, term)
    s, leak = xp.share(r, z, nonnegative=True)
    result = None
    for part, weight in pairs:
        term = xp.mul(part, xp.conv_adjoint(s, weight, how, spatial))
        result = term if result is None else xp.add(result, term)
    return result, leak


def test_z_plus_is_two_contractions_and_a_pass_for_the_books() -> None:
    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        result, leak = z_plus(i["x"], i["r"], W, xp, mixed=False)
        return {"result": result, "signed": leak.signed, "absolute": leak.absolute, "in": xp.total(i["r"])}

    groups = groups_of(run, x=(2, 3, 6, 6), r=(2, 4, 6, 6))
    assert [[o.function for o in group.maps] for group in groups if group.anchor is not None] == [["share"], ["mul"]]
    assert sorted(launched(run, x=(2, 3, 6, 6), r=(2, 4, 6, 6))) == ["contraction", "contraction", "map", "totals"]
    right(run, x=np.abs(random(2, 3, 6, 6)), r=random(2, 4, 6, 6))


def test_z_plus_of_a_signed_input() -> None:
    """x+ and x- in one pass, both forward products in one contraction, one adjoint for each half."""

    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        result, leak = z_plus(i["x"], i["r"], W, xp, mixed=True)
        return {"result": result, "signed": leak.signed, "absolute": leak.absolute}

    found = launched(run, x=(2, 3, 6, 6), r=(2, 4, 6, 6))
    assert sorted(found) == ["contraction"] * 3 + ["map"] * 2 + ["totals"]
    x = random(2, 3, 6, 6)
    x[0, :, :4, :4] = 0  # some windows with z = 0
    right(run, x=x, r=random(2, 4, 6, 6))


@pytest.mark.parametrize("signed", ["", "a", "b", "ab"])
def test_a_residual_add_is_one_map(signed: str) -> None:
    """zplus of rules/add.py with all of its totals; operands that are provably >= 0 are taken as they are."""

    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        r, terms = i["r"], {name: xp.positive(i[name]) if name in signed else i[name] for name in "ab"}
        s, leak = xp.share(r, xp.add(terms["a"], terms["b"]), nonnegative=True)
        parts = {name: xp.mul(term, s) for name, term in terms.items()}
        totals = {f"total {name}": xp.total(part) for name, part in parts.items()}
        return {**parts, **totals, "in": xp.total(r), "signed": leak.signed, "absolute": leak.absolute}

    shape = (2, 3, 4, 5)
    inputs = {name: random(*shape, seed=k) for k, name in enumerate("abr")}
    inputs = {name: array if name in ("r", *signed) else np.maximum(array, 0) for name, array in inputs.items()}
    assert launched(run, a=shape, b=shape, r=shape) == ["map", "totals"]
    (group,) = groups_of(run, a=shape, b=shape, r=shape)
    assert len(group.totals) == 5
    assert len(group.stored) == 2
    right(run, **inputs)


def test_both_signs_of_one_array_are_one_kernel() -> None:
    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        return {"plus": xp.positive(i["x"]), "minus": xp.negative(i["x"])}

    assert launched(run, x=(2, 3, 4)) == ["map"]
    right(run, x=random(2, 3, 4))


def test_what_no_output_needs_is_not_run() -> None:
    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        xp.conv(i["x"], xp.constant(W), CONV, (6, 6))
        xp.share(i["x"], xp.exp(i["x"]))
        return {"y": xp.absolute(i["x"])}

    assert launched(run, x=(2, 3, 6, 6)) == ["map"]


def test_what_only_totals_need_is_not_stored() -> None:
    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        return {"t": xp.total(xp.absolute(xp.mul(i["x"], i["y"])))}

    (group,) = groups_of(run, x=(2, 7), y=(2, 7))
    assert not group.stored
    assert [operation.function for operation in group.maps] == ["mul", "absolute"]
    right(run, x=random(2, 7), y=random(2, 7, seed=1))


def test_a_result_that_is_read_out_of_order_is_stored_first() -> None:
    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        y = xp.mul(i["x"], i["x"])
        return {"y": xp.sub(y, xp.transpose(y, (0, 2, 1))), "t": xp.total(xp.transpose(y, (2, 0, 1)))}

    xp, outputs = traced(run, x=(2, 3, 3))
    groups = schedule(xp.operations, outputs)
    check_order(groups, outputs)
    assert len(groups) >= 2
    x = random(2, 3, 3)
    found = on_device(lambda xp, i: {"y": run(xp, i)["y"]}, {"x": x})
    agree(found, {"y": x * x - (x * x).transpose(0, 2, 1)})


def test_a_wrong_order_is_noticed() -> None:
    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        result, leak = z_plus(i["x"], i["r"], W, xp, mixed=True)
        return {"result": xp.mul(result, xp.reshape(xp.total(result), (2, 1, 1, 1))), "leak": leak.signed}

    xp, outputs = traced(run, x=(2, 3, 6, 6), r=(2, 4, 6, 6))
    groups = schedule(xp.operations, outputs)
    check_order(groups, outputs)
    with pytest.raises(MisplacedError):
        check_order(groups[::-1], outputs)
    at = next(k for k, group in enumerate(groups) if isinstance(group.anchor, Settle))
    with pytest.raises(MisplacedError, match="tally"):
        check_order([groups[at], *groups[:at], *groups[at + 1 :]], outputs)
    xp, outputs = traced(weighed, x=(2, 3, 4, 5), row=(3, 1, 5), one=(1,))
    groups = schedule(xp.operations, outputs)
    check_order(groups, outputs)
    groups[0].maps.reverse()
    with pytest.raises(MisplacedError, match="operand"):
        check_order(groups, outputs)


# --- memory -----------------------------------------------------------------------------------------------------------

Sizes = dict[Any, int]
Lives = dict[Any, tuple[int, int]]


def check_layout(layout: Layout, sizes: Sizes, lives: Lives) -> None:
    assert set(layout.offsets) == set(sizes)
    padded = {k: -(-max(1, size) // ALIGNMENT) * ALIGNMENT for k, size in sizes.items()}
    for k, offset in layout.offsets.items():
        assert offset % ALIGNMENT == 0
        assert offset >= 0
        assert offset + sizes[k] <= layout.nbytes
    for a, b in itertools.combinations(sizes, 2):
        together = lives[a][0] <= lives[b][1] and lives[b][0] <= lives[a][1]
        apart = layout.offsets[a] + sizes[a] <= layout.offsets[b] or layout.offsets[b] + sizes[b] <= layout.offsets[a]
        assert apart or not together, (a, b)
    moments = {moment for life in lives.values() for moment in life}
    at_once = [sum(padded[k] for k in sizes if lives[k][0] <= m <= lives[k][1]) for m in moments]
    assert max(at_once, default=0) <= layout.nbytes <= sum(padded.values())


drawn_arrays = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6), st.integers(0, 1500)), max_size=14)


@settings(max_examples=200, deadline=None)
@given(drawn_arrays)
def test_arrays_alive_together_lie_apart(arrays: list[tuple[int, int, int]]) -> None:
    sizes = {k: size for k, (_, _, size) in enumerate(arrays)}
    lives = {k: (first, first + more) for k, (first, more, _) in enumerate(arrays)}
    check_layout(lay_out(sizes, lives), sizes, lives)


def test_a_chain_needs_two_places() -> None:
    for n in (1, 2, 3, 10):
        sizes = dict.fromkeys(range(n), 1000)
        layout = lay_out(sizes, {k: (k, k + 1) for k in range(n)})
        assert layout.nbytes == min(n, 2) * 1024
    assert lay_out({}, {}).nbytes == 0


def test_a_wrong_layout_is_noticed() -> None:
    """One that ignores lives, one that forgets to align, one that never uses a place again."""
    sizes, lives = dict.fromkeys(range(3), 1000), {k: (k, k + 1) for k in range(3)}
    check_layout(Layout({0: 0, 1: 1024, 2: 0}, 2048), sizes, lives)
    for wrong in (
        Layout(dict.fromkeys(range(3), 0), 1024),
        Layout({0: 0, 1: 1000, 2: 0}, 2048),
        Layout({0: 0, 1: 1024, 2: 0}, 2000),
        Layout({0: 0, 1: 1024, 2: 4096}, 5120),
        Layout({0: 0, 1: 1024}, 2048),
    ):
        with pytest.raises(AssertionError):
            check_layout(wrong, sizes, lives)


def launch(writes: Sequence[Any], reads: Sequence[Any] = ()) -> Launch:
    return Launch("k", "", (1, 1, 1), tuple(Pointer(b) for b in (*reads, *writes)), tuple(writes))


def test_lifetimes() -> None:
    """From the first launch that writes to the last that touches; what is kept lives to the end."""
    a, b, c, unread, result = (Scratch(1) for _ in range(5))
    fed_in = Buffer((1,), "input", "x")
    launches = [
        launch([a], [fed_in]),
        launch([b, unread], [a]),
        launch([c], [b]),
        launch([b], [c]),
        launch([result], [b]),
    ]
    assert lifetimes(launches, {result}) == {a: (0, 1), b: (1, 4), unread: (1, 1), c: (2, 3), result: (4, 5)}
    assert lifetimes(launches, {a, result})[a] == (0, 5)


def places_of(
    run: Run, multiprocessors: int = 4, **shapes: Sequence[int]
) -> tuple[list[Launch], Layout, dict[str, Value]]:
    launches, _, outputs, _ = lower(Program("", run), shapes, target(multiprocessors))
    return launches, plan(launches, outputs, FLOAT32), outputs


def check_places(launches: Sequence[Launch], layout: Layout, outputs: Mapping[str, Value]) -> None:
    """The launches played through: whoever reads an array finds it as it was written."""

    def span(buffer: Any) -> tuple[int, int]:
        nbytes = buffer.nbytes if isinstance(buffer, Scratch) else buffer.size * FLOAT32.itemsize
        return layout.offsets[buffer], layout.offsets[buffer] + nbytes

    there: dict[Any, tuple[int, int]] = {}
    ever: set[Any] = set()
    for step in launches:
        mine = [buffer for buffer in step.buffers if buffer in layout.offsets]
        for buffer in mine:
            if buffer in ever or buffer not in step.writes:
                assert buffer in there, "it was overwritten, or never written"
        for buffer in step.writes:
            begin, end = span(buffer)
            for other in [o for o, (b, e) in there.items() if o is not buffer and begin < e and b < end]:
                assert other not in mine, "a launch writes over what it reads"
                del there[other]
            there[buffer] = begin, end
            ever.add(buffer)
        for one, two in itertools.combinations(mine, 2):
            (b1, e1), (b2, e2) = span(one), span(two)
            assert e1 <= b2 or e2 <= b1, "a launch has two arrays in one place"
    for value in outputs.values():
        assert value.size == 0 or value.buffer in there


def everything(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
    """A small network's descent: convolutions, pooling, a residual Add, an end on the totals."""
    x, r = i["x"], i["r"]
    window = Window((2, 2), (2, 2), (0, 0), (1, 1))
    pooled = xp.window_sum(x, window, (3, 3))
    top = xp.scatter_add(xp.gather(r, np.array([2, 0, 1, 1]), 1), np.array([0, 1, 1, 2]), 1, 4)
    first, leak = z_plus(pooled, top, W, xp, mixed=True)
    spread = xp.mul(x, xp.window_spread(first, window, (6, 6)))
    routed = xp.max_route(x, first, window)
    joined = xp.concat([spread, routed], 1)
    s, other = xp.share(xp.pad(joined, (0, 0, 1, 0), (0, 0, 0, 1)), xp.constant(np.full((2, 6, 7, 7), 2.0)))
    mixed = xp.matmul(s, xp.transpose(s, (0, 1, 3, 2)))
    low = xp.reduce_min(mixed, (1, 2, 3))
    product = xp.matmul(xp.reshape(xp.sub(mixed, low), (2, 6, 49)), xp.constant(random(49, 3)))
    scaled = xp.div(product, xp.reshape(xp.total(xp.absolute(product)), (2, 1, 1)))
    books = {"a": leak.signed, "b": leak.absolute, "c": other.absolute, "t": xp.total(spread)}
    return {"scaled": scaled, "low": low, **books}


EVERYTHING = {"x": (2, 3, 6, 6), "r": (2, 4, 3, 3)}


@pytest.mark.parametrize("multiprocessors", [1, 64])
def test_nothing_is_overwritten_while_it_is_needed(multiprocessors: int) -> None:
    launches, layout, outputs = places_of(everything, multiprocessors, **EVERYTHING)
    check_places(launches, layout, outputs)
    written = {buffer for step in launches for buffer in step.writes}
    sizes = {b: b.nbytes if isinstance(b, Scratch) else 4 * b.size for b in written}
    check_layout(layout, sizes, lifetimes(launches, {value.buffer for value in outputs.values()}))
    assert layout.nbytes < sum(sizes.values())
    with pytest.raises(AssertionError):
        check_places(launches, Layout(dict.fromkeys(layout.offsets, 0), layout.nbytes), outputs)


def test_a_program_with_all_kinds_of_kernels() -> None:
    """Memory starts as NaN: a result has none only if everything it was made of was written first."""
    inputs = {name: random(*shape) for name, shape in EVERYTHING.items()}
    for multiprocessors in (1, 64):
        found = on_device(everything, inputs, multiprocessors)
        assert not any(np.isnan(array).any() for array in found.values())
        agree(found, in_numpy(everything, inputs))


def test_a_place_that_is_used_too_early_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all arrays at the start of the block the same program is wrong."""
    inputs = {name: random(*shape) for name, shape in EVERYTHING.items()}
    expected = in_numpy(everything, inputs)

    def careless(sizes: Sizes, lives: Lives) -> Layout:
        return Layout(dict.fromkeys(sizes, 0), max(sizes.values()) + ALIGNMENT)

    monkeypatch.setattr(program_module, "lay_out", careless)
    with pytest.raises(AssertionError):
        agree(on_device(everything, inputs), expected)


def test_a_reversed_schedule_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {name: random(*shape) for name, shape in EVERYTHING.items()}
    expected = in_numpy(everything, inputs)
    real = program_module.schedule
    monkeypatch.setattr(program_module, "schedule", lambda *given: real(*given)[::-1])
    with pytest.raises(AssertionError):
        agree(on_device(everything, inputs), expected)


# --- constants --------------------------------------------------------------------------------------------------------


def test_equal_constants_are_uploaded_once() -> None:
    on = CpuDevice()
    constants = Constants(on)
    a = random(3, 4)
    held = constants.place(a)
    used = on.used
    assert constants.place(a.copy()) is held
    assert constants.place(np.asfortranarray(a)) is held
    assert on.used == used
    np.testing.assert_array_equal(on.read(held.pointer, a.shape, a.dtype), a)
    others = [
        constants.place(a + 1),
        constants.place(a.astype(np.float64)),
        constants.place(np.zeros((0, 3), np.float32)),
        constants.place(np.float32(1)),
        constants.place(np.zeros(1, [("a", np.int64), ("b", np.int32, (3,))])),
    ]
    assert len({id(memory) for memory in (held, *others)}) == 6


def test_constants_are_given_back_when_nobody_holds_them() -> None:
    on = CpuDevice()
    constants = Constants(on)
    one, two = constants.place(random(100)), constants.place(random(100))
    del one
    assert on.used == 400
    del two
    assert on.used == 0
    held = constants.place(random(100))
    np.testing.assert_array_equal(on.read(held.pointer, (100,), FLOAT32), random(100))


def test_programs_share_their_weights() -> None:
    on = CpuDevice()
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, and running CUDA kernels on the CPU needs it")
    constants = Constants(on)
    shapes = {"x": (2, 3, 6, 6)}
    first = Compiled(on, constants, Program("a", two_products), shapes, target())
    used = on.used
    assert used > 0
    second = Compiled(on, constants, Program("b", two_products), shapes, target())
    assert on.used == used
    del first
    gc.collect()
    assert on.used == used
    del second
    gc.collect()
    assert on.used == 0


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_second_run_is_of_its_own_inputs() -> None:
    on = device()
    inputs = [{name: random(*shape, seed=k) for name, shape in EVERYTHING.items()} for k in range(3)]
    both = compiled(everything, inputs[0], on)
    found = []
    for each in inputs:
        addresses, _held = fed(on, each)
        found.append(both.run(addresses))
    for each, result in zip(inputs, found, strict=True):  # compared at the end: no run writes into another's results
        agree(result, in_numpy(everything, each))
    assert not np.allclose(found[0]["scaled"], found[1]["scaled"])


def test_the_same_input_gives_the_same_bits() -> None:
    on = device()
    inputs = {name: random(*shape) for name, shape in EVERYTHING.items()}
    program = compiled(everything, inputs, on)
    addresses, _held = fed(on, inputs)
    first, second = program.run(addresses), program.run(addresses)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
        assert array is not second[name]


def test_inputs_are_left_as_they_were() -> None:
    on = device()
    inputs = {name: random(*shape) for name, shape in EVERYTHING.items()}
    addresses, _held = fed(on, inputs)
    compiled(everything, inputs, on).run(addresses)
    for name, array in inputs.items():
        np.testing.assert_array_equal(on.read(addresses[name], array.shape, FLOAT32), array)


def test_what_was_given_may_be_returned() -> None:
    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        x = i["x"]
        return {
            "same": x, "again": x, "view": xp.transpose(x, (1, 0)), "crop": xp.pad(x, (-1, 0), (0, -1)),
            "constant": xp.constant(random(3, 2)), "number": xp.constant(2.5), "total": xp.total(x),
            "expanded": xp.expand(xp.constant(1.0), (2, 3)), "reshaped": xp.reshape(x, (3, 2)), "t": xp.total(x),
        }  # fmt: skip

    right(run, x=random(2, 3))


def test_arrays_without_cells() -> None:
    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        none = xp.pad(i["x"], (0, -3), (0, 0))
        y = xp.mul(none, xp.constant(2.0))
        joined = xp.concat([i["x"], y], 1)
        return {"y": y, "t": xp.total(y), "joined": joined, "both": xp.add(xp.total(joined), xp.total(y)),
                "sum": xp.reduce_sum(y, (1,)), "settled": xp.mul(xp.total(y), xp.constant(2.0))}  # fmt: skip

    right(run, x=random(2, 3))


def small_run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": xp.mul(i["x"], xp.constant(2.0)), "t": xp.total(i["x"])}


@pytest.fixture
def capturing() -> CpuDevice:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, and running CUDA kernels on the CPU needs it")
    return CpuDevice(captures=True)


def test_one_graph_for_the_same_addresses(capturing: CpuDevice) -> None:
    """Captured at the second call, and used from then on."""
    x = random(2, 3)
    program = compiled(small_run, {"x": x}, capturing)
    addresses, _held = fed(capturing, {"x": x})
    for k in range(4):
        capturing.write(addresses["x"], x + np.float32(k))
        agree(program.run(addresses), in_numpy(small_run, {"x": x + np.float32(k)}))
        assert capturing.graphs == min(k, 1)


def test_each_address_has_its_graph(capturing: CpuDevice) -> None:
    """A graph that was captured for one address is not used for another."""
    inputs = [{"x": random(2, 3, seed=k)} for k in range(2)]
    program = compiled(small_run, inputs[0], capturing)
    addresses, held = zip(*(fed(capturing, each) for each in inputs), strict=True)
    for k in (0, 0, 1, 1, 0, 1, 1, 0, 0):
        agree(program.run(addresses[k]), in_numpy(small_run, inputs[k]))
    assert capturing.graphs == 2
    assert len(held) == 2


def test_changing_addresses_are_not_captured(capturing: CpuDevice) -> None:
    """Never those that come once; nor more than a few that come twice."""
    program = compiled(small_run, {"x": random(2, 3)}, capturing)
    held: list[Any] = []
    for times in (1, 2):
        for k in range(CAPTURES + 3):
            x = random(2, 3, seed=k)
            addresses, memory = fed(capturing, {"x": x})
            held += memory  # or the next one would get the same address
            for _ in range(times):
                agree(program.run(addresses), in_numpy(small_run, {"x": x}))
            assert capturing.graphs == (0 if times == 1 else min(k + 1, CAPTURES))


def test_arrays_are_copied_to_one_place(capturing: CpuDevice) -> None:
    """Fed as arrays, the addresses stay the same, so that one graph serves all calls."""
    inputs = [{name: random(*shape, seed=k) for name, shape in EVERYTHING.items()} for k in range(4)]
    program = compiled(everything, inputs[0], capturing)
    for each in inputs:
        agree(program.run(each), in_numpy(everything, each))
    assert capturing.graphs == 1


def test_large_programs_keep_no_memory(capturing: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """And are not captured: the next run's block lies elsewhere."""
    x = random(2, 3)
    addresses, _held = fed(capturing, {"x": x})
    program = compiled(small_run, {"x": x}, capturing)
    used = capturing.used
    monkeypatch.setattr(program_module, "SMALL", program.layout.nbytes - 1)
    for _ in range(3):
        program.run(addresses)
        program.run({"x": x})
    assert (capturing.used, capturing.graphs) == (used, 0)
    monkeypatch.setattr(program_module, "SMALL", program.layout.nbytes)
    for _ in range(3):
        program.run(addresses)
    assert (capturing.used, capturing.graphs) == (used + program.layout.nbytes, 1)


def test_a_device_that_cannot_capture_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    on = device()
    asked = []
    monkeypatch.setattr(on, "capture", lambda launches: asked.append(launches))
    program = compiled(small_run, {"x": random(2, 3)}, on)
    for k in range(3):
        x = random(2, 3, seed=k)
        addresses, _held = fed(on, {"x": x})
        for _ in range(3):
            agree(program.run(addresses), in_numpy(small_run, {"x": x}))
    assert len(asked) == 1


# --- random programs --------------------------------------------------------------------------------------------------

IMAGES = 2
SHAPE = (IMAGES, 4, 6, 6)
POOL = Window((2, 2), (2, 2), (0, 0), (1, 1))
OVERLAP = Window((3, 3), (1, 1), (1, 1), (1, 1))
# Inputs are multiples of 1/4, with zeros: sums and products of a few are exact, so that comparisons are the same in
# float32 and float64.
FED = {"x": SHAPE, "y": SHAPE, "r": SHAPE, "row": (4, 1, 1), "deep": (IMAGES, 32, 3, 3), "long": (IMAGES, 5000)}


def quarters(*shape: int, seed: int = 0) -> Floats:
    return np.round(4 * random(*shape, seed=seed)) / 4


WEIGHTS = {
    name: quarters(*shape)
    for name, shape in {
        "same": (4, 4, 3, 3), "down": (4, 4, 2, 2), "depthwise": (4, 1, 3, 3), "deep": (4, 32, 3, 3), "matrix": (6, 6),
        "narrow": (6, 2), "channel": (1, 4, 1, 1), "columns": (6,), "cells": (1, 4, 6, 6),
    }.items()
}  # fmt: skip
GEOMETRIES = {
    "same": Convolution((1, 1), (1, 1), (1, 1)),
    "down": Convolution((2, 2), (0, 0), (1, 1)),
    "depthwise": Convolution((1, 1), (1, 1), (1, 1), 4),
    "deep": Convolution((1, 1), (1, 1), (1, 1)),
}


@dataclass(frozen=True)
class Step:
    """A call on values by number; a verb with a leak gives three."""

    tag: str
    operands: tuple[int, ...]
    call: Callable[..., Any]

    def results(self, xp: Verbs, values: Sequence[Array]) -> tuple[Array, ...]:
        found = self.call(xp, *(values[k] for k in self.operands))
        if isinstance(found, tuple):
            return found[0], found[1].signed, found[1].absolute
        return (found,)


@dataclass
class Drawn:
    """A random program: values are numbered, inputs first."""

    steps: list[Step] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)  # the number of each step's first result

    def run(self, xp: Verbs, inputs: Mapping[str, Array]) -> dict[str, Array]:
        values = [inputs[name] for name in FED]
        for step in self.steps:
            values += step.results(xp, values)
        return {str(k): values[k] for k in self.outputs}

    def __str__(self) -> str:
        lines = [f"{k} = input {name}" for k, name in enumerate(FED)]
        lines += [f"{k} = {step.tag}{step.operands}" for k, step in zip(self.first, self.steps, strict=True)]
        return "\n".join([*lines, f"return {self.outputs}"])

    def only(self, output: int) -> Drawn:
        """The steps that one output needs."""
        wanted, kept = {output}, []
        for first, step in reversed(list(zip(self.first, self.steps, strict=True))):
            if wanted & {first, first + 1, first + 2}:
                kept.append((first, step))
                wanted |= set(step.operands)
        return Drawn([s for _, s in kept[::-1]], [output], [k for k, _ in kept[::-1]])


Found = tuple[Floats, Floats]  # a value in float64 and in float32


class Drawer:
    """Draws steps, and keeps those that are well conditioned in float32: another order of sums must not matter."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng([99, seed])
        self.inputs = {name: quarters(*shape, seed=seed + k) for k, (name, shape) in enumerate(FED.items())}
        self.values: list[Found] = [(a.astype(np.float64), a) for a in self.inputs.values()]
        self.drawn = Drawn()

    def program(self, steps: int) -> Drawn:
        for _ in range(20 * steps):
            if len(self.drawn.steps) >= steps:
                break
            step = self._step()
            if step is not None:
                self._take(step)
        inputs, made = len(FED), range(len(FED), len(self.values))
        chosen = {len(self.values) - 1, *self.random.choice(made, min(len(made), 4)).tolist()}
        # Totals are what the books are made of: most of them are wanted.
        chosen |= {k for k in made if self.values[k][0].shape == (IMAGES,) and self.random.random() < 0.7}
        self.drawn.outputs = sorted(chosen) if len(made) else list(range(inputs))
        return self.drawn

    def _take(self, step: Step) -> None:
        with np.errstate(all="ignore"):
            wide = step.results(NumpyVerbs(np.float64), [v for v, _ in self.values])
            narrow = step.results(NumpyVerbs(np.float32), [v for _, v in self.values])
        for w, n in zip(wide, narrow, strict=True):
            scale = np.abs(w).max(initial=0.0)
            if not w.size or w.size > 6000 or not np.isfinite(w).all() or not scale < 1e4 or w.ndim > 6:
                return
            if np.abs(w - n).max() > 1e-6 * scale or (0 < scale < 1e-3):
                return
        self.drawn.first.append(len(self.values))
        self.drawn.steps.append(step)
        self.values += [(np.asarray(w), np.asarray(n, np.float32)) for w, n in zip(wide, narrow, strict=True)]

    # --- choosing ---------------------------------------------------------------------------------------------------

    def _pick(self, wanted: Callable[[Found], bool]) -> int | None:
        """A value, rather a late one."""
        fitting = [k for k, value in enumerate(self.values) if wanted(value)]
        if not fitting:
            return None
        back = min(int(self.random.exponential(3)), len(fitting) - 1)
        return fitting[-1 - back] if self.random.random() < 0.7 else int(self.random.choice(fitting))

    def _of(self, *shape: int) -> int | None:
        return self._pick(lambda v: v[0].shape == shape)

    def _any(self) -> int:
        found = self._pick(lambda v: v[0].ndim > 0)
        assert found is not None
        return found

    def _one(self, *choices: Any) -> Any:
        return choices[int(self.random.integers(len(choices)))]

    def _step(self) -> Step | None:
        kinds = (self._binary,) * 5 + (self._unary,) * 2 + (self._share,) * 2 + (self._keep, self._linear, self._linear,
                 self._window, self._reduce, self._reduce, self._move, self._move, self._move, self._total, self._total,
                 self._scaled, self._products, self._matrix, self._test)  # fmt: skip
        return self._one(*kinds)()

    def _binary(self) -> Step | None:
        verb = self._one("add", "sub", "mul", "maximum", "minimum", "add", "mul")
        a = self._any()
        shape = self.values[a][0].shape

        def broadcasts(value: Found) -> bool:
            try:
                np.broadcast_shapes(shape, value[0].shape)
            except ValueError:
                return False
            return True

        if self.random.random() < 0.25:
            number = float(self._one(0.0, 0.5, -1.0, 2.0))
            constant = self._one(number, number, *[WEIGHTS[n] for n in ("channel", "columns", "cells")])
            if not broadcasts((np.asarray(constant), np.asarray(constant))):
                constant = number
            return Step(f"{verb} constant", (a,), lambda xp, x: getattr(xp, verb)(x, xp.constant(constant)))
        b = self._of(*shape) if self.random.random() < 0.6 else self._pick(broadcasts)
        operands = (a, b) if self.random.random() < 0.7 else (b, a)
        return None if b is None else Step(verb, operands, lambda xp, x, y: getattr(xp, verb)(x, y))  # type: ignore[arg-type]

    def _unary(self) -> Step:
        verb = self._one("absolute", "positive", "negative", "positive", "tanh", "sigmoid", "exp")
        return Step(verb, (self._any(),), lambda xp, x: getattr(xp, verb)(x))

    def _exact(self, k: int) -> bool:
        """No rounding in it: equal in float32 and float64."""
        return np.array_equal(self.values[k][0], self.values[k][1])

    def _share(self) -> Step | None:
        r = self._pick(lambda v: v[0].ndim > 1 and v[0].shape[0] == IMAGES)
        z = None if r is None else self._of(*self.values[r][0].shape)
        if r is None or z is None:
            return None
        wide = self.values[z][0]
        near = (np.abs(wide) < 1e-2) & ~((wide == 0) & (self.values[z][1] == 0))
        if near.any() or ((wide == 0).any() and not self._exact(z)):
            return None
        # The leak is read off a quotient that is 0.
        return Step("share", (r, z), lambda xp, r, z: xp.share(r, z))

    def _test(self) -> Step | None:
        a = self._any()
        if not self._exact(a):
            return None
        if self.random.random() < 0.5:
            return Step("nonzero", (a,), lambda xp, x: xp.nonzero(x))
        b = self._of(*self.values[a][0].shape)
        if b is None or not self._exact(b):
            return None
        return Step("greater", (a, b), lambda xp, x, y: xp.greater(x, y))

    def _keep(self) -> Step | None:
        r = self._pick(lambda v: v[0].ndim > 1 and v[0].shape[0] == IMAGES)
        mask = None if r is None else self._of(*self.values[r][0].shape)
        if r is None or mask is None or not self._exact(mask):
            return None
        return Step("keep", (r, mask), lambda xp, r, m: xp.keep(r, xp.nonzero(m)))

    def _linear(self) -> Step | None:
        name = self._one("same", "down", "depthwise", "deep")
        w, how = WEIGHTS[name], GEOMETRIES[name]
        adjoint = self.random.random() < 0.5
        if name == "deep":
            size = (3, 3)
            x = self._of(IMAGES, 4 if adjoint else 32, *size)
            out = size
        else:
            x = self._pick(lambda v: v[0].ndim == 4 and v[0].shape[1] == 4 and min(v[0].shape[2:]) >= 2)
            if x is None:
                return None
            size = self.values[x][0].shape[2:]
            half = tuple(s // 2 for s in size)
            out = size if name != "down" else tuple(2 * s for s in size) if adjoint else half  # type: ignore[assignment]
        if x is None:
            return None
        if adjoint:
            return Step(f"conv_adjoint {name}", (x,), lambda xp, s: xp.conv_adjoint(s, xp.constant(w), how, out))
        return Step(f"conv {name}", (x,), lambda xp, x: xp.conv(x, xp.constant(w), how, out))

    def _products(self) -> Step | None:
        x = self._of(*SHAPE)
        plus, minus = np.maximum(WEIGHTS["same"], 0), np.minimum(WEIGHTS["same"], 0)
        how = GEOMETRIES["same"]
        if x is None:
            return None

        def call(xp: Verbs, x: Array) -> Array:
            one = xp.conv(xp.positive(x), xp.constant(plus), how, (6, 6))
            return xp.add(one, xp.conv(xp.negative(x), xp.constant(minus), how, (6, 6)))

        return Step("products", (x,), call)

    def _window(self) -> Step | None:
        x = self._of(*SHAPE)
        if x is None:
            return None
        window, out = self._one((POOL, (3, 3)), (OVERLAP, (6, 6)))
        verb = self._one("window_sum", "window_spread", "max_route")
        if verb == "window_sum":
            return Step(verb, (x,), lambda xp, x: xp.window_sum(x, window, out))
        s = self._of(IMAGES, 4, *out)
        if s is None:
            return None
        if verb == "window_spread":
            return Step(verb, (s,), lambda xp, s: xp.window_spread(s, window, (6, 6)))
        return Step(verb, (x, s), lambda xp, x, s: xp.max_route(x, s, window)) if self._exact(x) else None

    def _reduce(self) -> Step:
        x = self._any()
        rank = self.values[x][0].ndim
        axes = tuple(k for k in range(1, rank) if self.random.random() < 0.5) or (rank - 1,)
        verb = self._one("reduce_sum", "reduce_max", "reduce_min")
        return Step(f"{verb} {axes}", (x,), lambda xp, x: getattr(xp, verb)(x, axes))

    def _matrix(self) -> Step | None:
        if self.random.random() < 0.5:
            x = self._pick(lambda v: v[0].ndim > 1 and v[0].shape[-1] == 6)
            w = WEIGHTS[self._one("matrix", "narrow")]
            return None if x is None else Step("matmul constant", (x,), lambda xp, x: xp.matmul(x, xp.constant(w)))
        x, y = self._of(*SHAPE), self._of(*SHAPE)
        return None if x is None or y is None else Step("matmul", (x, y), lambda xp, x, y: xp.matmul(x, y))

    def _move(self) -> Step | None:
        x = self._any()
        shape = self.values[x][0].shape
        rank, axis = len(shape), int(self.random.integers(len(shape)))
        kind = self._one(
            "reshape", "transpose", "expand", "crop", "pad", "gather", "scatter_add", "concat", "transpose"
        )
        if kind == "reshape":
            flat = (*shape[: max(1, axis)], -1)
            ones = (*shape[: axis + 1], 1, *shape[axis + 1 :])
            wanted = self._one(flat, ones, SHAPE if math.prod(shape) == math.prod(SHAPE) else flat)
            return Step(f"reshape {wanted}", (x,), lambda xp, x: xp.reshape(x, wanted))
        if kind == "transpose":
            first = int(self.random.random() < 0.8)
            perm = (*range(first), *(first + self.random.permutation(rank - first)).tolist())
            return Step(f"transpose {perm}", (x,), lambda xp, x: xp.transpose(x, perm))
        if kind == "expand":
            wider = tuple(2 * size if size == 1 and k else size for k, size in enumerate(shape))
            wider = self._one(wider, SHAPE) if _broadcast(shape, SHAPE) else wider
            return Step(f"expand {wider}", (x,), lambda xp, x: xp.expand(x, wider))
        if kind in ("crop", "pad"):
            low = -1 if kind == "crop" else int(self._one(-1, 0, 1))
            begins = [low if k and k == axis and size > 2 else 0 for k, size in enumerate(shape)]
            ends = [int(self._one(-1, 0) if kind == "crop" else self._one(0, 1)) if k and size > 2 else 0
                    for k, size in enumerate(shape)]  # fmt: skip
            return Step(f"pad {begins} {ends}", (x,), lambda xp, x: xp.pad(x, begins, ends))
        size = shape[axis]
        if kind == "concat":
            y = self._of(*shape)
            if axis == 0:
                return None
            return Step(f"concat {axis}", (x, x if y is None else y), lambda xp, x, y: xp.concat([x, y, x], axis))
        if axis == 0 or size > 40:
            return None
        if kind == "gather":
            where = self.random.integers(size, size=size)
            return Step(f"gather {where} {axis}", (x,), lambda xp, x: xp.gather(x, where, axis))
        onto = self.random.integers(size + 1, size=size)
        return Step(f"scatter_add {onto} {axis}", (x,), lambda xp, r: xp.scatter_add(r, onto, axis, size + 1))

    def _steady(self, value: Found) -> bool:
        """Little is cancelled in its sums."""
        if value[0].ndim == 0 or value[0].shape[0] != IMAGES:
            return False
        flat = value[0].reshape(IMAGES, -1)
        return bool(np.abs(flat).sum(1).max() <= 20 * np.abs(flat.sum(1)).max())

    def _total(self) -> Step | None:
        x = self._pick(self._steady)
        return None if x is None else Step("total", (x,), lambda xp, x: xp.total(x))

    def _scaled(self) -> Step | None:
        """Something times a total: by then it must be added up."""
        t = self._of(IMAGES)
        x = self._pick(lambda v: v[0].ndim > 1 and v[0].shape[0] == IMAGES)
        if t is None or x is None:
            return None
        column = (IMAGES, *[1] * (self.values[x][0].ndim - 1))
        return Step("scaled", (x, t), lambda xp, x, t: xp.mul(x, xp.tanh(xp.reshape(t, column))))


def _broadcast(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def draw(seed: int, steps: int = 10) -> tuple[Drawn, dict[str, Floats]]:
    drawer = Drawer(seed)
    return drawer.program(steps), drawer.inputs


@contextmanager
def splitting(splits: int) -> Iterator[None]:
    """Inside the with every matrix product is cut into so many parts along k: small ones never are by themselves."""
    chosen = contraction.choose_tile
    forced = mock.patch.object(contraction, "choose_tile", lambda *a, **k: replace(chosen(*a, **k), splits=splits))
    with forced:
        yield


@contextmanager
def recording() -> Iterator[list[Group]]:
    """The groups of the programs that are lowered inside the with."""
    groups: list[Group] = []
    real = program_module.schedule

    def record(*given: Any) -> list[Group]:
        made = real(*given)
        groups.extend(made)
        return made

    with mock.patch.object(program_module, "schedule", record):
        yield groups


# Multiprocessors, and parts of a product along k.
TARGETS = ((1, 1), (64, 2))


def check_program(seed: int, steps: int = 10, dtype: Any = np.float32, tolerance: float = 1e-5) -> None:
    drawn, inputs = draw(seed, steps)
    expected = in_numpy(drawn.run, inputs)
    for multiprocessors, splits in TARGETS:
        with splitting(splits):
            found = on_device(drawn.run, inputs, multiprocessors, dtype)
        for k in drawn.outputs:
            try:
                agree({"": found[str(k)]}, {"": expected[str(k)]}, tolerance)
            except AssertionError as error:
                error.add_note(f"seed {seed}, {multiprocessors} multiprocessors, needed for it:\n{drawn.only(k)}")
                raise


def check_programs(seeds: range) -> None:
    for seed in seeds:
        check_program(seed)


def chunks(count: int, size: int) -> list[range]:
    return [range(k, k + size) for k in range(0, count, size)]


@pytest.mark.parametrize("seeds", chunks(160, 8), ids=lambda seeds: f"{seeds[0]}")
def test_random_programs_do_what_numpy_defines(seeds: range) -> None:
    check_programs(seeds)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", chunks(500, 10), ids=lambda seeds: f"{1000 + seeds[0]}")
def test_more_random_programs(seeds: range) -> None:
    for seed in seeds:
        check_program(1000 + seed, 6 + seed % 20)
        check_program(10_000 + seed, 12, np.float64, 1e-9)


@pytest.mark.parametrize("seeds", chunks(400, 50), ids=lambda seeds: f"{seeds[0]}")
def test_random_programs_are_ordered_and_placed(seeds: range) -> None:
    """Without compiling: more and longer programs."""
    for seed in seeds:
        drawn, inputs = draw(20_000 + seed, 24)
        shapes = {name: array.shape for name, array in inputs.items()}
        multiprocessors, splits = TARGETS[seed % 2]
        try:
            with splitting(splits), recording() as groups:
                launches, layout, outputs = places_of(drawn.run, multiprocessors, **shapes)
            check_places(launches, layout, outputs)
            check_order(groups, {name: value for name, value in outputs.items() if value.buffer.writer is not None})
            assert any(group.totals for group in groups) == any(step.name == "totals" for step in launches)
        except AssertionError as error:
            error.add_note(f"seed {20_000 + seed}\n{drawn}")
            raise


def test_random_programs_are_about_everything() -> None:
    """All kinds of kernels occur, groups with several operations and totals, splits, chunks, and exact comparisons."""
    names: dict[str, int] = {}
    tags: dict[str, int] = {}
    longest = most_totals = splits = settled = 0
    for seed in range(160):
        drawn, inputs = draw(seed)
        for step in drawn.steps:
            tag = step.tag.split()[0]
            tags[tag] = tags.get(tag, 0) + 1
        shapes = {name: array.shape for name, array in inputs.items()}
        for group in groups_of(drawn.run, **shapes):
            longest = max(longest, len(group.maps))
            most_totals = max(most_totals, len(group.totals))
            settled += isinstance(group.anchor, Settle)
        with splitting(2):
            launches, *_ = lower(Program("", drawn.run), shapes, target(64))
        for step_launched in launches:
            name = re.sub("^map_.*", "map", step_launched.name)
            names[name] = names.get(name, 0) + 1
            splits += "#define SPLIT 1" in step_launched.source
    wanted = {"map", "contraction", "conv_direct", "matmul", "window_sum", "window_spread", "max_winner", "max_route",
              "gather", "scatter_add", "place", "insert", "reduce", "totals"}  # fmt: skip
    assert wanted <= set(names)
    assert {"share", "keep", "greater", "nonzero", "expand", "transpose", "scaled", "total", "products"} <= set(tags)
    assert longest >= 4
    assert most_totals >= 3
    assert splits >= 3
    assert settled >= 10


def test_a_wrong_random_program_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups in another order, and places without lives, are seen in one of a few programs."""
    real = program_module.schedule
    for name, wrong in (
        ("schedule", lambda *given: real(*given)[::-1]),
        ("lay_out", lambda sizes, lives: Layout(dict.fromkeys(sizes, 0), max(sizes.values()) + ALIGNMENT)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(program_module, name, wrong)
            with pytest.raises(AssertionError, match="Not equal"):
                check_programs(range(5))


# --- what a large network takes ---------------------------------------------------------------------------------------

# Channels of VGG-16's convolutions; None is a max-pool. Pictures are 224 x 224.
VGG16 = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512, None)


def test_vgg16_at_batch_64_takes_little_memory_and_few_launches() -> None:
    """Activations, weights and the descent's own block of the body of VGG-16: 7 GB of the 16 that a batch may take.

    The rest is for the forward pass. The books add a pass for each layer, and no launch waits for the host.
    """
    n, size, before = 64, 224, 3
    layers: list[tuple[str, Floats | None]] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for k, channels in enumerate(VGG16):
        shapes[f"x{k}"] = (n, before, size, size)
        layers.append((f"x{k}", None if channels is None else np.ones((channels, before, 3, 3), np.float32)))
        before, size = (before, size // 2) if channels is None else (channels, size)
    shapes["start"] = (n, before, size, size)

    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        r, books = i["start"], {}
        for name, w in reversed(layers):
            books[f"in {name}"] = xp.total(r)
            if w is None:
                r = xp.max_route(i[name], r, Window((2, 2), (2, 2), (0, 0), (1, 1)))
            else:
                r, leak = z_plus(i[name], r, w, xp, mixed=False)
                books[f"leaked {name}"] = leak.signed
        return {"map": xp.reduce_sum(r, (1,)), **books}

    launches, _, outputs, _ = lower(Program("vgg16", run), shapes, target(132))
    block = plan(launches, outputs, FLOAT32).nbytes
    given = sum(4 * math.prod(shape) for shape in shapes.values())
    packed = {id(a.buffer): a.buffer.array.nbytes for launch in launches for a in launch.arguments
              if isinstance(a, Pointer) and isinstance(a.buffer, Constant)}  # fmt: skip
    assert block < 2e9
    assert block + given + sum(packed.values()) < 7e9
    convolutions = sum(channels is not None for channels in VGG16)
    assert len([launch for launch in launches if launch.name == "contraction"]) == 2 * convolutions
    assert len(launches) <= 4 * convolutions + 3 * (len(VGG16) - convolutions) + 2
