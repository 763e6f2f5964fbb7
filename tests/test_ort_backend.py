"""The compiled graph's own ways: channels in blocks, sums that are added up after the run, merged convolutions.

``test_verbs`` holds each verb to its definition, with channels too few to fill a block. Here they fill blocks, and
verbs follow one another, since what a verb does depends on the layout in which the last one left its result.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import test_verbs
from test_verbs import Call, Geometry, agree, random, shared

from fgcam_onnx.backends import blocked
from fgcam_onnx.backends.base import Array, Convolution, Program, Verbs, Window
from fgcam_onnx.backends.numpy import NumpyBackend
from fgcam_onnx.backends.ort import OrtBackend, OrtVerbs, Symbol
from fgcam_onnx.errors import BackendError

Floats = np.ndarray
Run = Callable[[Verbs, Mapping[str, Array]], Any]
BLOCK = blocked.block_size() or 16
# Shares are over sums of a convolution: of these numbers none is a difference in which float32 loses digits.
SEED = {8: 10}.get(BLOCK, 0)
BACKEND = OrtBackend(threads=1)

needs_blocks = pytest.mark.skipif(
    blocked.block_size() is None, reason="onnxruntime has no blocked layout on this processor"
)


def same(run: Run, inputs: Mapping[str, Floats], tolerance: float = 2e-6) -> None:
    """The compiled program gives what NumPy does."""
    c = Call("", "", {name: np.asarray(x, np.float32) for name, x in inputs.items()}, run, tolerance)
    agree(c, c.answers(BACKEND), c.answers(NumpyBackend(np.float32)))


def operators(run: Run, inputs: Mapping[str, Floats], block: int | None = BLOCK) -> list[str]:
    """What the program is written as, in order; blocked convolutions and turnings with their domain."""
    verbs = OrtVerbs(block)
    run(verbs, {name: verbs.input(name, x) for name, x in inputs.items()})
    return [f"blocked {n.op_type}" if n.domain == blocked.DOMAIN else n.op_type for n in verbs._nodes]


# --- convolutions -----------------------------------------------------------------------------------------------------

B = BLOCK
GEOMETRIES = [
    *(
        Geometry(ci, co, kernel, (9, 8), (stride, stride), begins, ends, (1, 1), group)
        for (ci, co, group), stride, (kernel, begins, ends) in itertools.product(
            ((B, 2 * B, 1), (2 * B, B + 3, 1), (B + 4, B, 1), (3, B, 1), (B, 3, 1), (2 * B, 2 * B, 2 * B),
             (2 * B, 4 * B, 2)),
            (1, 2, 3),
            (((3, 3), (1, 1), (1, 1)), ((1, 1), (0, 0), (0, 0)), ((5, 2), (2, 0), (1, 1))),
        )
    ),
    Geometry(B, 2 * B, (3, 3), (6, 5), (1, 1), (1, 1), (1, 1), (1, 1), B),  # two outputs of each channel
    Geometry(2 * B, 2 * B, (3, 3), (6, 5), (1, 1), (1, 1), (1, 1), (1, 1), 4),  # groups of half a block
    Geometry(2 * B, 2 * B, (3, 3), (6, 5), (2, 2), (1, 1), (1, 1), (1, 1), 4),
    Geometry(B, B, (3, 3), (8, 9), (2, 1), (1, 1), (1, 1), (1, 1)),
    Geometry(2 * B, 2 * B, (3, 3), (9, 9), (2, 2), (2, 2), (2, 2), (2, 2), 2 * B),
    Geometry(B, B, (2, 3), (10, 9), (2, 3), (0, 2), (1, 0), (3, 1)),
    Geometry(B, B, (2, 2), (9, 9), (4, 5), (0, 1), (0, 0), (1, 1)),  # cells that no window reads; 20 phases
    Geometry(B, B, (2, 2), (9, 9), (4, 4), (0, 1), (0, 0), (1, 1)),  # as many phases as are taken apart
    Geometry(B, B, (2, 2), (5, 4), (1, 1), (3, 4), (2, 3), (1, 1)),  # windows on padding alone
    Geometry(B, 2 * B, (3, 3), (2, 2), (2, 2), (2, 2), (2, 2), (1, 1)),
]  # fmt: skip


@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
def test_convolutions_of_whole_blocks(g: Geometry) -> None:
    """Dense, grouped, depthwise; channels that fill their blocks and that do not; every stride and its phases."""
    same(lambda xp, i: xp.conv(i["x"], xp.constant(g.w), g.how, g.out), {"x": g.x})
    same(lambda xp, i: xp.conv_adjoint(i["s"], xp.constant(g.w), g.how, g.spatial), {"s": g.s})


@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
def test_the_z_plus_rule_in_blocks(g: Geometry) -> None:
    """Two halves, merged; shares with and without dead cells; both adjoints; the books."""

    def run(xp: Verbs, i: Mapping[str, Array]) -> tuple[Array, ...]:
        plus, minus = xp.constant(np.maximum(g.w, 0)), xp.constant(np.minimum(g.w, 0))
        above, below = xp.positive(i["x"]), xp.negative(i["x"])
        z = xp.add(xp.conv(above, plus, g.how, g.out), xp.conv(below, minus, g.how, g.out))
        s, leak = xp.share(i["r"], z, nonnegative=True)
        back = [xp.mul(x, xp.conv_adjoint(s, w, g.how, g.spatial)) for x, w in ((above, plus), (below, minus))]
        r = xp.add(*back)
        return r, xp.total(r), leak.signed, leak.absolute

    dead = g.x.copy()
    dead[:, :, : g.spatial[0] // 2] = 0
    for x in (g.x, dead, np.abs(g.x)):
        same(run, {"x": x, "r": g.s}, tolerance=5e-6)


@needs_blocks
def test_what_is_blocked() -> None:
    """Between two convolutions nothing is turned; an image is not turned at all; other channels stay as they were."""
    w = random(BLOCK, BLOCK, 3, 3)
    how = Convolution((1, 1), (1, 1), (1, 1))

    def chain(xp: Verbs, i: Mapping[str, Array]) -> Array:
        s, _ = xp.share(xp.conv(i["x"], xp.constant(w), how, (6, 6)), xp.conv(i["x"], xp.constant(w), how, (6, 6)))
        return xp.mul(i["x"], xp.conv_adjoint(s, xp.constant(w), how, (6, 6)))

    found = operators(chain, {"x": random(1, BLOCK, 6, 6)})
    assert found.count("blocked ReorderInput") == 1
    assert found.count("blocked Conv") == 3
    assert "blocked ReorderOutput" not in found
    assert not any("blocked" in op for op in operators(chain, {"x": random(1, BLOCK, 6, 6)}, block=None))

    def image(xp: Verbs, i: Mapping[str, Array]) -> Array:
        return xp.conv(i["x"], xp.constant(random(BLOCK, 3, 3, 3)), how, (6, 6))

    assert operators(image, {"x": random(1, 3, 6, 6)}) == ["blocked Conv"]
    odd = Convolution((1, 1), (1, 1), (1, 1), 5)
    assert operators(lambda xp, i: xp.conv(i["x"], xp.constant(random(5, 1, 3, 3)), odd, (6, 6)),
                     {"x": random(1, 5, 6, 6)}) == ["Conv"]  # fmt: skip


# --- what follows a convolution ---------------------------------------------------------------------------------------

KERNEL = random(2 * BLOCK, BLOCK, 1, 1)
POINTWISE = Convolution((1, 1), (0, 0), (1, 1))
WINDOW = Window((2, 3), (2, 2), (0, 1), (1, 1))


def in_blocks(xp: Verbs, x: Array, w: Floats = KERNEL) -> Array:
    """An array that the compiled graph holds in blocks: [n, 2 B, h, w]."""
    return xp.conv(x, xp.constant(w), POINTWISE, xp.shape(x)[2:])


def gate(xp: Verbs, x: Array) -> Array:
    """[n, 2 B, 1, 1], in blocks."""
    return in_blocks(xp, xp.reduce_sum(x, (2, 3)))


def both(xp: Verbs, i: Mapping[str, Array]) -> Array:
    """[n, 2 B, h, w] in the plain layout, a quarter of it 0."""
    return xp.concat([xp.positive(i["y"]), i["x"]], 1)


POINTWISE_FUNCTIONS = ("absolute", "tanh", "sigmoid", "erf", "nonzero", "positive")
TILES = Window((3, 2), (3, 2), (0, 0), (1, 1))
FOLLOWING: dict[str, Run] = {
    "gate": lambda xp, i: xp.mul(in_blocks(xp, i["x"]), gate(xp, i["x"])),
    "gate_first": lambda xp, i: xp.mul(gate(xp, i["x"]), in_blocks(xp, i["x"])),
    "gate_alone": lambda xp, i: xp.mul(gate(xp, i["x"]), gate(xp, i["y"])),
    "one_for_each_channel": lambda xp, i: xp.mul(in_blocks(xp, i["x"]), xp.constant(random(2 * BLOCK, 1, 1))),
    "one_for_each_cell": lambda xp, i: xp.mul(in_blocks(xp, i["x"]), xp.constant(random(1, 1, 4, 6))),
    "number": lambda xp, i: xp.sub(xp.constant(1.0), in_blocks(xp, i["x"])),
    "plain": lambda xp, i: xp.sub(in_blocks(xp, i["x"]), both(xp, i)),
    "constant": lambda xp, i: xp.sub(in_blocks(xp, i["x"]), xp.constant(random(2, 2 * BLOCK, 4, 6))),
    "of_every_image": lambda xp, i: xp.sub(in_blocks(xp, i["x"]), in_blocks(xp, xp.constant(random(1, BLOCK, 4, 6)))),
    "functions": lambda xp, i: tuple(
        getattr(xp, name)(in_blocks(xp, i["x"])) for name in POINTWISE_FUNCTIONS
    ),
    "greater": lambda xp, i: xp.greater(in_blocks(xp, i["x"]), in_blocks(xp, i["y"])),
    "keep": lambda xp, i: shared(xp.keep(in_blocks(xp, i["x"]), xp.nonzero(in_blocks(xp, i["y"])))),
    "keep_plain": lambda xp, i: shared(xp.keep(in_blocks(xp, i["x"]), xp.nonzero(both(xp, i)))),
    "share_of_plain": lambda xp, i: shared(xp.share(both(xp, i), in_blocks(xp, i["x"]))),
    "share_by_plain": lambda xp, i: shared(xp.share(in_blocks(xp, i["x"]), both(xp, i))),
    "concat": lambda xp, i: xp.concat([in_blocks(xp, i["x"]), i["y"]], 1),
    "concat_odd": lambda xp, i: xp.concat([in_blocks(xp, i["x"]), xp.constant(random(2, 3, 4, 6))], 1),
    "concat_space": lambda xp, i: xp.concat([in_blocks(xp, i["x"]), in_blocks(xp, i["y"])], 2),
    "cut": lambda xp, i: xp.pad(in_blocks(xp, i["x"]), (0, -BLOCK, 0, 0), (0, 0, 0, 0)),
    "cut_and_convolved": lambda xp, i: in_blocks(xp, xp.pad(in_blocks(xp, i["x"]), (0, 0, 0, 0), (0, -BLOCK, 0, 0))),
    "cut_odd": lambda xp, i: xp.pad(in_blocks(xp, i["x"]), (0, -3, 0, 0), (0, -2, 0, 0)),
    "crop": lambda xp, i: xp.pad(in_blocks(xp, i["x"]), (0, 0, -1, 0), (0, 0, 0, -2)),
    "pad": lambda xp, i: xp.pad(in_blocks(xp, i["x"]), (0, 1, 0, 0), (0, 0, 2, 0)),
    "reshape": lambda xp, i: xp.reshape(in_blocks(xp, i["x"]), (2, -1)),
    "transpose": lambda xp, i: xp.transpose(in_blocks(xp, i["x"]), (0, 2, 3, 1)),
    "expand": lambda xp, i: xp.expand(gate(xp, i["x"]), (2, 2 * BLOCK, 3, 5)),
    "gather": lambda xp, i: xp.gather(in_blocks(xp, i["x"]), np.array([2, 0, 2]), 1),
    "scatter": lambda xp, i: xp.scatter_add(in_blocks(xp, i["x"]), np.array([5, 0, 0, 3]), 2, 7),
    "matmul": lambda xp, i: xp.matmul(in_blocks(xp, i["x"]), xp.constant(random(6, 5))),
    "reduced": lambda xp, i: tuple(
        getattr(xp, f"reduce_{name}")(in_blocks(xp, i["x"]), axes)
        for name, axes in itertools.product(("sum", "min", "max"), ((1,), (2, 3), (1, 2, 3)))
    ),
    "window_sum": lambda xp, i: xp.window_sum(in_blocks(xp, i["x"]), WINDOW, (2, 3)),
    "window_spread": lambda xp, i: xp.window_spread(in_blocks(xp, i["x"]), TILES, (12, 13)),
    "window_spread_overlapping": lambda xp, i: xp.window_spread(in_blocks(xp, i["x"]), WINDOW, (8, 12)),
    "max_route": lambda xp, i: xp.max_route(
        in_blocks(xp, i["x"]), in_blocks(xp, xp.window_sum(i["y"], WINDOW, (2, 3))), WINDOW
    ),
    "returned_twice": lambda xp, i: (lambda b: (b, xp.total(b), b))(in_blocks(xp, i["x"])),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWING)
def test_what_follows_a_convolution(name: str) -> None:
    """Every verb on an array that lies in blocks: it stays there or is turned, and the answer is the same."""
    x, y = (random(2, BLOCK, 4, 6, seed=SEED + k) for k in range(2))
    same(FOLLOWING[name], {"x": x, "y": y}, tolerance=5e-6)


MERGED: dict[str, Run] = {
    "the_other_way_round": lambda xp, a, b: xp.add(b, a),
    "read_again": lambda xp, a, b: (xp.add(a, b), b),
    "summed_again": lambda xp, a, b: (xp.add(a, b), xp.total(b)),
    "shared_again": lambda xp, a, b: (xp.add(a, b), *shared(xp.share(a, b))),
    "divided_again": lambda xp, a, b: (xp.add(a, b), *shared(xp.share(b, a))),
    "added_again": lambda xp, a, b: (xp.add(a, b), xp.add(b, a), xp.add(b, b), a),
    "chained": lambda xp, a, b: xp.add(xp.add(a, b), xp.add(a, b)),
    "to_itself": lambda xp, a, b: xp.add(b, b),
}


@pytest.mark.parametrize("name", MERGED)
def test_a_convolution_that_was_merged_is_still_there(name: str) -> None:
    """conv(x) + conv(y) is one node, but somebody may want conv(y) alone."""

    def run(xp: Verbs, i: Mapping[str, Array]) -> Any:
        return MERGED[name](xp, in_blocks(xp, i["x"]), in_blocks(xp, i["y"]))

    x, y = (random(2, BLOCK, 4, 6, seed=SEED + k) for k in range(2))
    same(run, {"x": x, "y": y})


@needs_blocks
def test_a_sum_of_convolutions_is_one_node_less() -> None:
    found = operators(lambda xp, i: xp.add(in_blocks(xp, i["x"]), in_blocks(xp, i["y"])),
                      {"x": random(1, BLOCK, 4, 6), "y": random(1, BLOCK, 4, 6)})  # fmt: skip
    assert found.count("blocked Conv") == 2
    assert "Add" not in found


# --- totals -----------------------------------------------------------------------------------------------------------


def cut(xp: Verbs, x: Array, first: int, last: int) -> Array:
    """Channels first to last."""
    return xp.pad(x, (0, -first, 0, 0), (0, last + 1 - xp.shape(x)[1], 0, 0))


RANGES = ((0, 3), (3, 4), (4, BLOCK - 1), (0, BLOCK - 1), (1, 5))
TOTALS: dict[str, Run] = {
    "added": lambda xp, i: xp.add(xp.total(i["x"]), xp.total(i["y"])),
    "added_to_an_array": lambda xp, i: xp.add(xp.total(i["x"]), xp.reshape(xp.reduce_sum(i["y"], (1, 2, 3)), (2,))),
    "read_by_the_graph": lambda xp, i: xp.mul(xp.total(i["x"]), xp.constant(2.0)),
    "sum_read_by_the_graph": lambda xp, i: xp.absolute(xp.add(xp.total(i["x"]), xp.total(i["y"]))),
    "cut_read_by_the_graph": lambda xp, i: xp.absolute(xp.total(cut(xp, i["x"], 3, BLOCK - 2))),
    "leak_read_by_the_graph": lambda xp, i: xp.mul(xp.share(i["y"], xp.positive(i["x"]))[1].absolute, xp.constant(2.0)),
    "cuts": lambda xp, i: tuple(xp.total(cut(xp, i["x"], *ends)) for ends in RANGES),
    "cut_of_a_cut": lambda xp, i: xp.total(cut(xp, cut(xp, i["x"], 2, BLOCK - 2), 1, BLOCK - 6)),
    "cut_of_blocks": lambda xp, i: (
        lambda b: (xp.total(b), *(xp.total(cut(xp, b, c, 2 * BLOCK - 1)) for c in (BLOCK, 5)), b)
    )(in_blocks(xp, i["x"])),
    "cut_of_unsummed_blocks": lambda xp, i: (
        lambda b: (b, *(xp.total(cut(xp, b, c, 2 * BLOCK - 1)) for c in (5, BLOCK)), xp.total(b))
    )(in_blocks(xp, i["x"])),
    "other_batches": lambda xp, i: tuple(
        xp.total(value) for value in (i["x"], xp.reshape(i["x"], (4, -1)), xp.reshape(i["y"], (1, -1)))
    ),
    "added_before_others": lambda xp, i: (
        xp.add(xp.total(i["x"]), xp.total(i["y"])),
        xp.total(i["y"]),
        xp.add(xp.total(i["y"]), xp.add(xp.total(cut(xp, i["x"], 1, 2)), xp.total(i["x"]))),
        xp.total(i["x"]),
    ),
    "the_same_twice": lambda xp, i: (xp.total(i["x"]), xp.total(i["x"]), xp.add(xp.total(i["x"]), xp.total(i["x"]))),
}


@pytest.mark.parametrize("name", TOTALS)
def test_totals(name: str) -> None:
    """Sums for the books are taken after the run; a rule may still compute with one."""
    same(TOTALS[name], {"x": random(2, BLOCK, 4, 6), "y": random(2, BLOCK, 4, 6, seed=1)})


def test_totals_are_one_output() -> None:
    """However many sums the books ask for, one array comes back beside the map, and no sum is taken twice."""
    backend = OrtBackend(threads=1)
    x = random(2, BLOCK, 4, 6)

    def run(xp: Verbs, i: Mapping[str, Array]) -> dict[str, Array]:
        cuts = [cut(xp, i["x"], k, k) for k in range(BLOCK)]
        return {f"t{k}": xp.total(cut) for k, cut in enumerate(cuts)} | {"t": xp.total(i["x"])}

    found = backend.execute(Program("totals", run), {"x": x})
    assert len(found) == BLOCK + 1
    assert all(v.dtype == np.float32 for v in found.values())
    np.testing.assert_allclose(found["t3"], x[:, 3].sum((1, 2), dtype=np.float64), rtol=1e-6)
    (compiled,) = backend._compiled.values()
    assert len(compiled.session.get_outputs()) == 1
    assert operators(run, {"x": x}).count("ReduceSum") == 1


def test_rows_that_cancel_are_added_exactly() -> None:
    """2^30 + 1 - 2^30: in float32 the 1 would be lost beside what it is added to."""
    x = np.array([2.0**30, 1, -(2.0**30)], np.float32).reshape(1, 3, 1, 1)
    c = Call("total", "", {"x": x}, lambda xp, i: xp.total(i["x"]))
    assert c.answers(BACKEND)["0"] == 1


@pytest.mark.parametrize("shape", [(1, 2, 1500, 1500), (1, 1, 3_000_000), (1, BLOCK, 400, 500)])
def test_large_maps_are_summed_in_lines(shape: tuple[int, ...]) -> None:
    """Millions of cells that are added one after the other would be off by 1e-3; the books of a photo must close."""
    x = np.random.default_rng(0).random(shape, np.float32)
    c = Call(
        "total",
        "",
        {"x": x},
        lambda xp, i: (xp.total(i["x"]), shared(xp.share(i["x"], xp.mul(i["x"], xp.constant(0.0))))[1]),
    )
    expected = x.sum(dtype=np.float64)
    for found in c.answers(BACKEND).values():
        np.testing.assert_allclose(found, [expected], rtol=1e-6)


# --- the layout itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", test_verbs.CALLS, ids=lambda c: c.id)
def test_every_verb_without_blocks(c: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor for which onnxruntime has no such layout."""
    monkeypatch.setattr(blocked, "block_size", lambda: None)
    agree(c, c.answers(OrtBackend(threads=1)), c.answers(NumpyBackend(np.float32)))


@pytest.mark.parametrize("g", GEOMETRIES[::4], ids=str)
def test_convolutions_without_blocks(g: Geometry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "block_size", lambda: None)
    for c in (
        Call("", "", {"x": g.x}, lambda xp, i: xp.conv(i["x"], xp.constant(g.w), g.how, g.out), 2e-6),
        Call("", "", {"s": g.s}, lambda xp, i: xp.conv_adjoint(i["s"], xp.constant(g.w), g.how, g.spatial), 2e-6),
    ):
        agree(c, c.answers(OrtBackend(threads=1)), c.answers(NumpyBackend(np.float32)))


def test_blocks_by_hand() -> None:
    """Two blocks of two channels on two cells: 00 01 | 10 11 | 20 21 | 30 31 becomes 00 10 01 11 | 20 30 21 31."""
    x = np.array([[[[0, 1]], [[10, 11]], [[20, 21]], [[30, 31]]]], np.float32)
    assert blocked.blocked_channels(x, 2).ravel().tolist() == [0, 10, 1, 11, 20, 30, 21, 31]
    w = np.array([[[[1]], [[2]]], [[[3]], [[4]]]], np.float32)  # w[co, ci] = 1 2 / 3 4
    assert blocked.blocked_kernel(w, 2, inputs=True).ravel().tolist() == [1, 3, 2, 4]
    assert blocked.blocked_kernel(w[:, :1], 2, inputs=False).ravel().tolist() == [1, 3]
    assert blocked.blocked_kernel(w[:1], 2, inputs=True).ravel().tolist() == [1, 0, 2, 0]


@needs_blocks
@pytest.mark.parametrize("wrong", ["order", "value", "missing", "broken"])
def test_a_layout_that_answers_otherwise_is_not_used(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe finds: another order of channels, another number, an operator that is not there, one that fails."""
    ask = blocked.block_size.__wrapped__
    assert ask() == BLOCK
    real, run = blocked.blocked_kernel, blocked._run
    if wrong == "order":
        monkeypatch.setattr(blocked, "blocked_kernel", lambda w, b, inputs: real(w, b, inputs=inputs)[..., ::-1])
    elif wrong == "value":
        monkeypatch.setattr(blocked, "_run", lambda *args: [y + (y == y.max()) for y in run(*args)])
    elif wrong == "missing":
        monkeypatch.setattr(blocked, "VERSION", 99)
    else:

        def fail(*args: object) -> None:
            raise BackendError("no")

        monkeypatch.setattr(blocked, "_run", fail)
    assert ask() is None


def test_a_wrong_answer_is_noticed() -> None:
    """The comparison of this file sees one cell of a blocked result moved to the next channel."""
    c = Call("", "", {"x": random(2, BLOCK, 4, 6)}, lambda xp, i: in_blocks(xp, i["x"]))
    found, plain = c.answers(BACKEND), c.answers(NumpyBackend(np.float32))
    agree(c, found, plain)
    with pytest.raises(AssertionError):
        agree(c, {"0": np.roll(found["0"], 1, axis=1)}, plain)


@needs_blocks
def test_a_gate_that_met_other_channels_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks, [n, c, 1, 1] must not be broadcast over [n, c, h, w]: the same check, with that rule taken out."""
    real = OrtVerbs._elementwise

    def careless(self: OrtVerbs, op: str, inputs: Any, **attributes: Any) -> Symbol:
        shape = np.broadcast_shapes(*(x.shape for x in inputs))
        if all(x.blocked for x in inputs):
            return replace(self._emit(op, [x.name for x in inputs], shape, **attributes), blocked=True)
        return real(self, op, inputs, **attributes)

    monkeypatch.setattr(OrtVerbs, "_elementwise", careless)
    with pytest.raises(AssertionError):
        test_what_follows_a_convolution("gate")
