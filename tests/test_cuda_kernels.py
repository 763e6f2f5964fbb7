"""What the CUDA kernels compute, run on the CPU, against the NumPy backend in float64.

What is proved: contractions with every tile that can be chosen, and every other kernel, give the numbers of the
definition: within 2e-6 of the sum of the absolute terms in float32, 1e-12 in float64, 1.2e-3 with operands rounded to
TF32 (which are then really rounded). The order of threads and blocks changes no bit. A kernel writes to its results
alone, and no cell outside of a window, NaN or not, changes what the window gives. A kernel with one mistake is caught.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
from cuda_on_cpu import CompilerMissing, CpuModule, thread_order
from cuda_programs import run

from fgcam_onnx.backends.base import TINY, Array, Convolution, Verbs, Window
from fgcam_onnx.backends.cuda import contraction, launch, text
from fgcam_onnx.backends.cuda.contraction import Tile
from fgcam_onnx.backends.cuda.operations import Buffer, Contraction, Value
from fgcam_onnx.backends.numpy import NumpyVerbs

ORDERS = (0, 1, 12345, 77)
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}
TF32 = 1.2e-3
Floats = np.ndarray


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    try:
        CpuModule('extern "C" __global__ void nothing() {}')
    except CompilerMissing as missing:
        pytest.skip(str(missing))


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def defined(body: Callable[..., Any], *inputs: Floats) -> list[Floats]:
    """What ``body`` means: NumPy's verbs in float64."""
    with np.errstate(all="ignore"):
        found = body(NumpyVerbs(np.float64), *(array.astype(np.float64) for array in inputs))
    return list(found) if isinstance(found, tuple) else [found]


def close(found: Floats, expected: Floats, scale: Floats | float, tolerance: float) -> None:
    """|found - expected| <= tolerance * scale in each cell; infinities and NaN where they belong."""
    assert found.shape == expected.shape
    plain = np.isfinite(expected)
    np.testing.assert_array_equal(found[~plain], expected[~plain])
    assert np.isfinite(found[plain]).all()
    error = np.abs(found[plain].astype(np.float64) - expected[plain])
    bound = (tolerance * np.broadcast_to(scale, expected.shape))[plain]
    assert (error <= bound).all(), (
        f"error {error.max()}, {(error / np.maximum(bound, 1e-300)).max()} of what is allowed"
    )


def check(body: Callable[..., Any], *inputs: Floats, dtype: str = "float32", **options: Any) -> list[Floats]:
    """``body`` on the CPU's kernels against NumPy, each result by its largest finite cell."""
    found = run(body, *inputs, dtype=dtype, **options)
    for one, expected in zip(found, defined(body, *inputs), strict=True):
        finite = np.abs(expected[np.isfinite(expected)])
        close(one, expected, float(finite.max(initial=0)), TOLERANCE[dtype])
    return found


# --- contractions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """A convolution of n images: its sizes, ``out`` included."""

    n: int
    ci: int
    co: int
    kernel: tuple[int, ...]
    spatial: tuple[int, ...]
    out: tuple[int, ...]
    strides: tuple[int, ...]
    begins: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1

    @property
    def how(self) -> Convolution:
        return Convolution(self.strides, self.begins, self.dilations, self.group)

    @property
    def window(self) -> Window:
        return Window(self.kernel, self.strides, self.begins, self.dilations)

    def weights(self, seed: int = 0) -> Floats:
        return random(self.co, self.ci // self.group, *self.kernel, seed=seed + 10)

    def given(self, adjoint: bool, seed: int = 0) -> Floats:
        """What the convolution, or its adjoint, reads."""
        return (
            random(self.n, self.co, *self.out, seed=seed)
            if adjoint
            else random(self.n, self.ci, *self.spatial, seed=seed)
        )

    def linear(self, xp: Verbs, x: Array, w: Floats, adjoint: bool) -> Array:
        if adjoint:
            return xp.conv_adjoint(x, xp.constant(w), self.how, self.spatial)
        return xp.conv(x, xp.constant(w), self.how, self.out)


GEOMETRIES = {
    "line": Geometry(3, 5, 7, (3,), (11,), (6,), (2,), (1,), (1,)),
    "uneven": Geometry(2, 5, 6, (3, 2), (7, 9), (4, 8), (2, 1), (1, 0), (1, 2)),
    "padding_alone": Geometry(2, 2, 3, (2, 2), (5, 4), (9, 10), (1, 1), (3, 4), (1, 1)),
    "unread": Geometry(2, 3, 17, (2, 1), (9, 9), (3, 2), (4, 5), (0, 1), (1, 1)),
    "one_cell": Geometry(1, 1, 1, (1,), (1,), (1,), (1,), (0,), (1,)),
    "groups": Geometry(1, 34, 34, (2, 2), (4, 3), (3, 3), (1, 1), (0, 1), (1, 1), 2),
    "runs": Geometry(2, 6, 37, (3, 3), (6, 4), (6, 4), (1, 1), (1, 1), (1, 1)),  # cells finished four at a time
    "blocks": Geometry(2, 3, 150, (1, 2), (11, 13), (11, 13), (1, 1), (0, 1), (1, 1)),
    "deep": Geometry(1, 40, 33, (3, 3), (4, 4), (2, 2), (2, 2), (1, 1), (1, 1)),
    "one_tap_a_tile": Geometry(2, 16, 32, (3, 2), (5, 4), (3, 2), (2, 1), (1, 0), (1, 2)),
    "volume": Geometry(2, 3, 4, (2, 3, 2), (4, 5, 4), (5, 2, 2), (1, 2, 2), (1, 0, 1), (1, 1, 2)),
    "volume_one_tap_a_tile": Geometry(1, 16, 16, (2, 2, 2), (3, 2, 3), (2, 2, 2), (1, 1, 2), (0, 1, 1), (1, 1, 1)),
    "volume_deep": Geometry(1, 9, 18, (3, 3, 3), (3, 4, 3), (2, 2, 3), (2, 2, 1), (1, 1, 1), (1, 1, 1)),
}
FLAT = [name for name, g in GEOMETRIES.items() if len(g.kernel) < 3]
VOLUMES = [name for name, g in GEOMETRIES.items() if len(g.kernel) == 3]
SIZES = (1, 4, 8)
TILES = [
    *(("float32", Tile(tm, tn, False, 1)) for tm, tn in itertools.product(SIZES, SIZES)),
    *(("float32", Tile(tm, tn, True, 1)) for tm, tn in itertools.product(SIZES[1:], SIZES[1:])),
    *(("float64", Tile(tm, tn, False, 1)) for tm, tn in itertools.product(SIZES[:2], SIZES[:2])),
]


def named(dtype: str, tile: Tile) -> str:
    return f"{dtype}-{tile.tm}x{tile.tn}" + "-tf32" * tile.tf32


EVERY_TILE = pytest.mark.parametrize(("dtype", "tile"), TILES, ids=[named(*t) for t in TILES])


def contract(
    g: Geometry, tile: Tile, dtype: str, *, adjoint: bool = False, terms: int = 1, splits: int = 1,
    wide: bool | None = None, inputs: Sequence[Floats] | None = None,
) -> list[Floats]:  # fmt: skip
    """What kernels give, what is defined, and the sum of the absolute terms."""
    xs = inputs or [g.given(adjoint, seed) for seed in range(terms)]
    ws = [g.weights(seed) for seed in range(terms)]

    def body(xp: Verbs, *xs: Array, ws: Sequence[Floats] = ws) -> Array:
        return functools.reduce(xp.add, [g.linear(xp, x, w, adjoint) for x, w in zip(xs, ws, strict=True)])

    split = Tile(tile.tm, tile.tn, tile.tf32, splits)
    names: list[str] = []
    (found,) = run(body, *xs, dtype=dtype, tile=split, wide=wide, names=names)
    assert [name.split("_")[0] for name in names] == ["contraction"] + ["map"] * (splits > 1)
    (expected,) = defined(body, *xs)
    (scale,) = defined(functools.partial(body, ws=[np.abs(w) for w in ws]), *(np.abs(x) for x in xs))
    return [found, expected, scale]


def check_contraction(g: Geometry, tile: Tile, dtype: str, **options: Any) -> None:
    found, expected, scale = contract(g, tile, dtype, **options)
    close(found, expected, scale, TF32 if tile.tf32 else TOLERANCE[dtype])


def check_geometries(names: Sequence[str], tile: Tile, dtype: str, splits: int, wide: bool | None = None) -> None:
    for name, adjoint in itertools.product(names, (False, True)):
        for terms in (1, 2):
            check_contraction(GEOMETRIES[name], tile, dtype, adjoint=adjoint, terms=terms, splits=splits, wide=wide)


@EVERY_TILE
@pytest.mark.parametrize("splits", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_contractions(dtype: str, tile: Tile, splits: int) -> None:
    """Convolutions and adjoints of one and two axes, one and two terms; some parts of k may be empty."""
    check_geometries(FLAT, tile, dtype, splits)


@EVERY_TILE
def test_contractions_of_volumes(dtype: str, tile: Tile) -> None:
    check_geometries(VOLUMES, tile, dtype, 1)


@EVERY_TILE
@pytest.mark.parametrize(("names", "splits"), [(["groups", "unread", "deep"], 1), (["volume", "volume_deep"], 2)])
def test_contractions_with_wide_offsets(dtype: str, tile: Tile, names: list[str], splits: int) -> None:
    """Offsets of 64 bits change no number."""
    check_geometries(names, tile, dtype, splits, wide=True)
    g = GEOMETRIES[names[-1]]
    narrow = contract(g, tile, dtype, splits=splits, wide=False)[0]
    assert np.array_equal(narrow, contract(g, tile, dtype, splits=splits, wide=True)[0])


@pytest.mark.parametrize("tile", [t for _, t in TILES if t.tf32], ids=lambda t: f"{t.tm}x{t.tn}")
def test_tf32_rounds(tile: Tile) -> None:
    """Operands are rounded to ten bits: the result is that of rounded arrays in float32, not that of the arrays."""
    g = GEOMETRIES["deep"]
    found, expected, scale = contract(g, tile, "float32")
    error = np.abs(found - expected) / scale
    assert 1e-5 < error.max() <= TF32
    rounded = [rounded_to_tf32(g.given(False)), rounded_to_tf32(g.weights())]
    (expected,) = defined(lambda xp, x: g.linear(xp, x, rounded[1], False), rounded[0])
    close(found, expected, scale, TOLERANCE["float32"])


def rounded_to_tf32(x: Floats) -> Floats:
    """To nearest, ties away from zero: cvt.rna.tf32.f32."""
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def check_orders(body: Callable[..., Any], *inputs: Floats, **options: Any) -> None:
    """The order of threads and blocks changes no bit."""
    found = []
    for order in ORDERS:
        with thread_order(order):
            found.append([array.tobytes() for array in run(body, *inputs, **options)])
    assert all(one == found[0] for one in found), "results depend on the order of threads"


@EVERY_TILE
@pytest.mark.parametrize("splits", [1, 3])
def test_contractions_in_any_order(dtype: str, tile: Tile, splits: int) -> None:
    g = GEOMETRIES["deep"]
    split = Tile(tile.tm, tile.tn, tile.tf32, splits)
    for adjoint in (False, True):
        linear = functools.partial(g.linear, w=g.weights(), adjoint=adjoint)
        check_orders(linear, g.given(adjoint), dtype=dtype, tile=split)


def check_nan(g: Geometry, tile: Tile, dtype: str, adjoint: bool) -> None:
    """A NaN reaches the cells whose windows hold it, whatever weight it meets, and no other cell."""
    xp = NumpyVerbs(np.float64)
    ones = np.ones((g.n, 1, *(g.spatial if adjoint else g.out)))
    spread = xp.window_sum(ones, g.window, g.out) if adjoint else xp.window_spread(ones, g.window, g.spatial)
    x = g.given(adjoint)
    unread = np.broadcast_to(spread == 0, x.shape)
    assert unread.any()
    quiet, loud = np.where(unread, 0, x), np.where(unread, np.nan, x)
    before, after = (contract(g, tile, dtype, adjoint=adjoint, inputs=[given])[0] for given in (quiet, loud))
    assert np.array_equal(before, after), "cells that nothing reads change the result"

    one = np.zeros_like(x)
    one[0, 0].flat[np.argmax(~unread[0, 0])] = np.nan
    found, expected, _ = contract(g, tile, dtype, adjoint=adjoint, inputs=[one])
    # NumPy's blocks of products see a NaN in one channel in all channels of the group, as the kernel does.
    assert 0 < np.isnan(expected).sum() < expected.size
    assert np.array_equal(np.isnan(found), np.isnan(expected))


NAN_CASES = (("unread", False), ("padding_alone", True))


@EVERY_TILE
def test_nan_stays_where_it_is_read(dtype: str, tile: Tile) -> None:
    for name, adjoint in NAN_CASES:
        check_nan(GEOMETRIES[name], tile, dtype, adjoint)


def test_choose_tile_answers_these_tiles() -> None:
    """The variants above are what the backend uses: every tile that it can choose is among them."""
    known = {(dtype, t.tm, t.tn, t.tf32) for dtype, t in TILES}
    for rows, out, double, tf32, wide in itertools.product((1, 17, 65, 200), (1, 17, 65, 200), *[(False, True)] * 3):
        operation = Contraction(
            inputs=(Value.whole(Buffer((1, 4, out), "input")),), weights=(np.zeros((rows, 4, 1)),),
            how=Convolution((1,), (0,), (1,)), spatial=(out,), adjoint=False,
        )  # fmt: skip
        t = contraction.choose_tile(operation, multiprocessors=4, double=bool(double), tf32=bool(tf32), wide=bool(wide))
        assert ("float64" if double else "float32", t.tm, t.tn, t.tf32) in known


# --- what is done with the sum ----------------------------------------------------------------------------------------

# For each kernel that ends with a generated part: a program for it, what it reads, and the shape of its result.
Anchored = tuple[Callable[[Verbs, Array], Array], Floats]


def anchored() -> dict[str, Anchored]:
    window = Window((2, 2), (1, 1), (0, 0), (1, 1))
    where = np.array([2, 0, 0, 1])
    w = np.abs(random(20, 6, 2, 2))
    depthwise, one = np.abs(random(6, 1, 2, 2)), Convolution((1, 1), (0, 0), (1, 1), 6)
    how = Convolution((1, 1), (0, 0), (1, 1))
    x = random(2, 6, 5, 4)
    return {
        "contraction": (lambda xp, x: xp.conv(x, xp.constant(w), how, (4, 3)), x),
        "adjoint": (lambda xp, s: xp.conv_adjoint(s, xp.constant(w), how, (5, 4)), random(2, 20, 4, 3)),
        "conv_direct": (lambda xp, x: xp.conv(x, xp.constant(depthwise), one, (4, 3)), x),
        "window_sum": (lambda xp, x: xp.window_sum(x, window, (4, 3)), x),
        "window_spread": (lambda xp, s: xp.window_spread(s, window, (6, 5)), x),
        "max_route": (lambda xp, r: xp.max_route(xp.constant(random(2, 6, 6, 5)), r, window), x),
        "gather": (lambda xp, x: xp.gather(x, where, 2), x),
        "scatter_add": (lambda xp, r: xp.scatter_add(r, where, 3, 5), x),
        "place": (lambda xp, x: xp.pad(x, (0, 1, -1, 0), (0, 0, 2, 0)), x),
        "matmul": (lambda xp, x: xp.matmul(xp.constant(np.abs(random(3, 5))), x), x),
    }


FINISHES: dict[str, Callable[..., Any]] = {
    "share": lambda xp, acc, x, y, low: xp.share(x, acc)[0],
    "arrived": lambda xp, acc, x, y, low: xp.add(xp.mul(x, acc), y),
    "box": lambda xp, acc, x, y, low: xp.add(xp.mul(xp.sub(acc, low), x), y),
    "masked": lambda xp, acc, x, y, low: xp.keep(xp.share(x, acc)[0], xp.nonzero(xp.positive(y))),
    "several": lambda xp, acc, x, y, low: (xp.mul(x, acc), xp.add(acc, y), xp.total(xp.mul(x, acc))),
}


def flat(found: Any) -> Any:
    """A result with its leak as a tuple of arrays."""
    if isinstance(found, tuple) and len(found) == 2 and hasattr(found[1], "signed"):
        return found[0], found[1].signed, found[1].absolute
    return found


def finished(linear: Any, finish: Any) -> Callable[..., Any]:
    return lambda xp, x, *more: flat(finish(xp, linear(xp, x), *more))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize("anchor", anchored())
def test_what_follows_the_sum(anchor: str, finish: str, wide: bool) -> None:
    """Shares, products and what arrived already, in the kernel that computed the sum; split contractions, too."""
    linear, x = anchored()[anchor]
    shape = defined(linear, x)[0].shape
    more = [random(*shape, seed=1), random(*shape, seed=2), random(shape[0], 1, 1, 1)]
    if finish in ("share", "masked"):  # a quotient is as exact as its denominator: terms of one sign do not cancel
        x = np.abs(x)
    body = finished(linear, FINISHES[finish])
    tiles = [Tile(4, 1, False, 1), Tile(1, 4, False, 2)] if anchor in ("contraction", "adjoint") else [None]
    for dtype, tile in itertools.product(("float32", "float64"), tiles):
        check(body, x, *more, dtype=dtype, tile=tile, wide=wide)


EDGES = [0, -0.0, TINY / 2, -TINY / 2, 1e-45, -1e-45, TINY, -TINY, 2 * TINY, 1, -2, 1e-30, -1e-30, np.nan, np.inf, 3e38]
DIVIDED = [1, -1, 1e30, -1e30, 0, 3e38, -3e38, 1e-30]


def check_share(linear: Callable[[Verbs, Array], Array], dtype: str, **options: Any) -> None:
    """share(r, linear(z)), linear the identity: the zero rule, and what overflows, bit by bit but for the last ones."""
    largest = float(np.finfo(dtype).max)
    numerators = [*DIVIDED, 1e300, -1e300] if dtype == "float64" else DIVIDED
    r, z = (v.astype(dtype) for v in np.meshgrid(numerators, EDGES))
    r, z = (np.ascontiguousarray(v.T[None, None]) for v in (r, z))  # [1, 1, numerators, edges]
    x = np.zeros((1, 20, *r.shape[2:]), dtype)
    x[:, :1] = z
    body = finished(linear, lambda xp, acc, r: xp.share(r, acc))
    wide_r = np.zeros_like(x)
    wide_r[:, :1] = r
    s = run(body, x, wide_r, dtype=dtype, **options)[0][:, :1]
    with np.errstate(all="ignore"):
        dead = np.abs(z) < TINY
        expected = np.clip(np.where(dead, 0, r / np.where(dead, 1, z)), -largest, largest)
        if dtype == "float32":  # denormal quotients are flushed
            expected = np.where(np.abs(expected) < TINY, 0, expected)
    np.testing.assert_allclose(s, expected, rtol=1e-6 if dtype == "float32" else 1e-14, atol=0)
    assert np.abs(s[np.isfinite(z) & ~dead]).max() == largest


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(("tm", "tn"), [(1, 1), (4, 4)])
def test_dead_denormal_and_tiny_denominators_in_contractions(dtype: str, splits: int, tm: int, tn: int) -> None:
    w = np.zeros((20, 20, 1, 1))
    w[0, 0] = 1
    how = Convolution((1, 1), (0, 0), (1, 1))
    shape = (10 if dtype == "float64" else 8, len(EDGES))
    check_share(lambda xp, x: xp.conv(x, xp.constant(w), how, shape), dtype, tile=Tile(tm, tn, False, splits))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dead_denormal_and_tiny_denominators_elsewhere(dtype: str) -> None:
    shape = (10 if dtype == "float64" else 8, len(EDGES))
    alone, depthwise = Window((1, 1), (1, 1), (0, 0), (1, 1)), Convolution((1, 1), (0, 0), (1, 1), 20)
    ones = np.ones((20, 1, 1, 1))
    check_share(lambda xp, x: xp.conv(x, xp.constant(ones), depthwise, shape), dtype)
    check_share(lambda xp, x: xp.conv_adjoint(x, xp.constant(ones), depthwise, shape), dtype)
    check_share(lambda xp, x: xp.window_sum(x, alone, shape), dtype)
    check_share(lambda xp, x: xp.window_spread(x, alone, shape), dtype)
    check_share(lambda xp, x: xp.gather(x, np.arange(20), 1), dtype)
    check_share(lambda xp, x: x, dtype)


# --- grouped convolutions, a thread a cell ----------------------------------------------------------------------------

GROUPED = {
    "depthwise": Geometry(2, 4, 4, (3, 3), (6, 5), (4, 5), (2, 1), (1, 2), (1, 1), 4),
    "two_to_one": Geometry(2, 8, 4, (3, 2), (9, 7), (3, 6), (3, 1), (1, 0), (1, 1), 4),
    "one_to_three": Geometry(3, 2, 6, (2,), (11,), (5,), (2,), (0,), (2,), 2),
    "unread": Geometry(1, 4, 4, (2, 1), (9, 9), (3, 2), (4, 5), (0, 1), (1, 1), 2),
    "padding_alone": Geometry(1, 4, 4, (2, 2), (5, 4), (9, 10), (1, 1), (3, 4), (1, 1), 2),
    "volume": Geometry(2, 4, 6, (2, 3, 2), (5, 6, 4), (4, 3, 2), (1, 2, 2), (0, 1, 0), (1, 1, 2), 2),
    "blocks": Geometry(2, 30, 30, (1, 2), (9, 8), (9, 7), (1, 1), (0, 0), (1, 1), 15),
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", GROUPED)
def test_grouped_convolutions(name: str, dtype: str, wide: bool) -> None:
    for adjoint, terms in itertools.product((False, True), (1, 2)):
        check_grouped(GROUPED[name], dtype, adjoint, terms, wide)


def check_grouped(g: Geometry, dtype: str, adjoint: bool, terms: int, wide: bool = False) -> None:
    xs, ws = [g.given(adjoint, k) for k in range(terms)], [g.weights(k) for k in range(terms)]

    def body(xp: Verbs, *xs: Array, ws: Sequence[Floats] = ws) -> Array:
        return functools.reduce(xp.add, [g.linear(xp, x, w, adjoint) for x, w in zip(xs, ws, strict=True)])

    names: list[str] = []
    (found,) = run(body, *xs, dtype=dtype, wide=wide, names=names)
    assert names == ["conv_direct"]
    (scale,) = defined(functools.partial(body, ws=[np.abs(w) for w in ws]), *(np.abs(x) for x in xs))
    close(found, defined(body, *xs)[0], scale, TOLERANCE[dtype])
    check_orders(body, *xs, dtype=dtype, wide=wide)


# --- windows ----------------------------------------------------------------------------------------------------------

# (window, spatial, out)
WINDOWS = {
    "small": (Window((3, 2), (2, 1), (1, 0), (1, 2)), (7, 7), (4, 5)),
    "large": (Window((17, 19), (3, 5), (4, 6), (1, 1)), (18, 16), (4, 3)),
    "padding_alone": (Window((2, 2), (1, 1), (3, 4), (1, 1)), (5, 4), (9, 10)),
    "over_the_end": (Window((2, 3), (2, 3), (0, 0), (1, 1)), (5, 8), (3, 3)),
    "leftovers": (Window((2, 2), (4, 5), (0, 1), (1, 1)), (9, 9), (2, 2)),
    "holes_on_padding": (Window((2,), (1,), (1,), (3,)), (2,), (3,)),
    "line": (Window((3,), (2,), (1,), (2,)), (300,), (149,)),
    "volume": (Window((2, 3, 2), (1, 2, 2), (1, 0, 1), (1, 1, 2)), (5, 6, 4), (5, 2, 2)),
    "one_cell": (Window((1, 1), (1, 1), (0, 0), (1, 1)), (1, 1), (1, 1)),
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name: str, dtype: str, wide: bool) -> None:
    check_window(name, dtype, wide=wide)


def check_window(name: str, dtype: str = "float32", **options: Any) -> None:
    """Sums and their adjoint; the first maximum, among ties, infinities and NaN, in any order of threads."""
    window, spatial, out = WINDOWS[name]
    x, r = random(2, 3, *spatial), random(2, 3, *out, seed=1)
    options["dtype"] = dtype
    check(lambda xp, x: xp.window_sum(x, window, out), x, **options)
    check(lambda xp, s: xp.window_spread(s, window, spatial), r, **options)
    odd = np.random.default_rng(3).choice(
        np.array([-np.inf, np.nan, 0, -1, np.inf], np.float32), x.shape, p=[0.6, *[0.1] * 4]
    )
    for given in (x, np.round(x), -1 - np.abs(x), np.full_like(x, -np.inf), np.full_like(x, np.nan), odd):
        check(lambda xp, x, r: xp.max_route(x, r, window), given, r, **options)
    check_orders(lambda xp, x, r: xp.max_route(x, r, window), x, r, **options)


# --- reductions, products, moves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reductions(dtype: str, wide: bool) -> None:
    """Over leading, middle, last and apart axes; a thread a result, a block a result, and what lies between."""
    for shape, axes, kernel in (
        ((2, 3, 5, 4), (1,), "reduce_short"),
        ((2, 3, 5, 4), (1, 3), "reduce_short"),
        ((40, 2, 9, 5), (1,), "reduce_short"),
        ((3, 33, 400), (1,), "reduce_short"),
        ((1, 1), (0, 1), ""),
        ((2, 700), (1,), "reduce"),
        ((2, 33, 5), (1,), "reduce"),
        ((300, 2), (0,), "reduce"),
    ):
        names: list[str] = []
        run(lambda xp, x, axes=axes: xp.reduce_max(x, axes), random(*shape), dtype=dtype, wide=wide, names=names)
        assert kernel in names or not kernel
        check_reduction(random(*shape), axes, dtype=dtype, wide=wide)


def check_reduction(x: Floats, axes: tuple[int, ...], dtype: str = "float32", **options: Any) -> None:
    for verb in ("reduce_sum", "reduce_max", "reduce_min"):
        body = functools.partial(_reduced, verb=verb, axes=axes)
        (found,) = run(body, x, dtype=dtype, **options)
        (expected,) = defined(body, x)
        (scale,) = defined(body, np.abs(x)) if verb == "reduce_sum" else (np.abs(expected),)
        close(found, expected, scale, TOLERANCE[dtype])
        check_orders(body, x, dtype=dtype, **options)


def _reduced(xp: Verbs, x: Array, *, verb: str, axes: tuple[int, ...]) -> Array:
    return getattr(xp, verb)(x, axes)


@pytest.mark.parametrize("inner", [1, 2])
def test_long_axes_are_reduced_in_chunks(inner: int) -> None:
    x = random(9001, inner)
    names: list[str] = []
    run(lambda xp, x: xp.reduce_max(x, (0,)), x, names=names, multiprocessors=8)
    assert names == ["reduce", "reduce"]
    check_reduction(x, (0,), multiprocessors=8)
    for k, verb in itertools.product((0, 4097, 9000), ("reduce_max", "reduce_min", "reduce_sum")):
        x[k, 0] = np.nan
        check(functools.partial(_reduced, verb=verb, axes=(0,)), x, multiprocessors=8)
        x[k, 0] = -np.inf
        check(functools.partial(_reduced, verb=verb, axes=(0,)), x, multiprocessors=8)
        x[k, 0] = 1


PRODUCTS = {
    "plain": ((17, 33), (33, 19)),
    "one_cell": ((1, 1), (1, 1)),
    "broadcast_left": ((2, 1, 5, 7), (3, 7, 4)),
    "broadcast_right": ((3, 1, 4, 5, 7), (2, 4, 7, 18)),
    "four_leading": ((2, 1, 3, 1, 3, 2), (1, 2, 3, 2, 2, 5)),
    "row": ((2, 1, 40), (40, 2)),
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str, dtype: str, wide: bool) -> None:
    check_product(name, dtype, wide=wide)


def check_product(name: str, dtype: str = "float32", **options: Any) -> None:
    a, b = (random(*shape, seed=k) for k, shape in enumerate(PRODUCTS[name]))
    names: list[str] = []
    (found,) = run(lambda xp, a, b: xp.matmul(a, b), a, b, dtype=dtype, names=names, **options)
    assert names == ["matmul"]
    close(found, a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b), TOLERANCE[dtype])
    check_orders(lambda xp, a, b: xp.matmul(a, b), a, b, dtype=dtype, **options)


MOVES: dict[str, Callable[[Verbs, Array, Array], Any]] = {
    "gather": lambda xp, x, y: xp.gather(x, np.array([4, 1, 1, 0]), 2),
    "gather_first": lambda xp, x, y: xp.gather(x, np.array([1]), 0),
    "gather_last": lambda xp, x, y: xp.gather(x, np.array([3, 0, 3, 3, 2]), 3),
    "scatter_add": lambda xp, x, y: xp.scatter_add(x, np.array([6, 6, 0, 6, 2]), 2, 8),
    "scatter_add_last": lambda xp, x, y: xp.scatter_add(x, np.array([0, 0, 0, 0]), 3, 1),
    "pad": lambda xp, x, y: xp.pad(x, (0, 1, 2, 3), (1, 0, 0, 2)),
    "pad_and_crop": lambda xp, x, y: xp.pad(x, (0, -1, 2, -3), (1, 0, -4, 2)),
    "crop": lambda xp, x, y: xp.pad(x, (0, -1, -1, 0), (0, 0, -2, -1)),
    "crop_then_product": lambda xp, x, y: xp.mul(
        xp.pad(x, (0, 0, -1, 0), (0,) * 4), xp.pad(y, (0,) * 4, (0, 0, -1, 0))
    ),
    "concat": lambda xp, x, y: xp.concat([x, y, x], 1),
    "concat_last": lambda xp, x, y: xp.concat([x, xp.pad(y, (0,) * 4, (0, 0, 0, -3)), x], 3),
    "transpose": lambda xp, x, y: xp.add(xp.transpose(x, (3, 0, 2, 1)), xp.transpose(y, (3, 0, 2, 1))),
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MOVES)
def test_moves(name: str, dtype: str, wide: bool) -> None:
    x, y = random(2, 3, 5, 4), random(2, 3, 5, 4, seed=1)
    check(MOVES[name], x, y, dtype=dtype, wide=wide)
    x[0, 1, 2, 3] = np.nan
    check(MOVES[name], x, y, dtype=dtype, wide=wide)
    check_orders(MOVES[name], x, y, dtype=dtype, wide=wide)


# --- the books --------------------------------------------------------------------------------------------------------


def totals(xp: Verbs, x: Array, y: Array, row: Array) -> tuple[Array, ...]:
    """Several in one kernel: of what is stored, of what is not, of leaks, of a broadcast operand's product."""
    s, leak = xp.share(x, xp.positive(y))
    sums = [xp.total(v) for v in (s, xp.mul(x, row), xp.absolute(x), xp.expand(row, xp.shape(x)))]
    return (s, leak.signed, leak.absolute, xp.add(sums[0], leak.signed), *sums)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 2, 5, 4), (2, 3, 5, 1), (3, 4, 40, 40), (1, 1, 1, 1), (2, 3, 37, 41)])
def test_totals(shape: tuple[int, ...], dtype: str, wide: bool) -> None:
    check_totals(shape, dtype, wide=wide)


def check_totals(shape: tuple[int, ...], dtype: str = "float32", **options: Any) -> None:
    """Sums per image, of several images and several blocks an image, in pieces and cell by cell."""
    x, y = random(*shape), np.where(random(*shape, seed=1) > 0.5, 1, -1) * (1 + np.abs(random(*shape, seed=2)))
    row = random(shape[1], 1, 1)
    found, expected = run(totals, x, y, row, dtype=dtype, **options), defined(totals, x, y, row)
    scale = float(np.abs(x).sum() + np.abs(row).sum() * x[0, 0].size)
    for one, wanted in zip(found, expected, strict=True):
        close(one, wanted, scale, TOLERANCE[dtype])
    check_orders(totals, x, y, row, dtype=dtype, **options)


def test_totals_lose_no_small_cell_to_large_ones() -> None:
    """10^8 and 3 10^5 ones: sums of float32 in float32 would drop them one by one."""
    x = np.ones((1, 300_001), np.float32)
    x[0, 0] = 1e8
    (found,) = run(lambda xp, x: xp.total(x), x)
    assert found.tolist() == [np.float32(1e8 + 300_000)]


# --- nothing ----------------------------------------------------------------------------------------------------------

EMPTY: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "map": (lambda xp, x: xp.mul(x, x), (0, 3, 4)),
    "total": (lambda xp, x: xp.total(x), (2, 0, 3)),
    "total_of_computed": (lambda xp, x: xp.total(xp.mul(x, x)), (2, 0, 3)),
    "no_images": (lambda xp, x: (xp.exp(x), xp.reduce_sum(x, (1,))), (0, 3)),
    "reduce_sum": (lambda xp, x: xp.reduce_sum(x, (1,)), (2, 0, 3)),
    "reduce_sum_of_computed": (lambda xp, x: xp.reduce_sum(xp.exp(x), (1,)), (2, 0, 3)),
    "reduce_nothing": (lambda xp, x: xp.reduce_max(x, (1,)), (0, 4)),
    "matmul": (lambda xp, x: xp.matmul(x, xp.constant(random(0, 4))), (3, 0)),
    "matmul_of_computed": (lambda xp, x: xp.matmul(xp.exp(x), xp.constant(random(0, 4))), (3, 0)),
    "no_rows": (lambda xp, x: xp.matmul(x, xp.constant(random(5, 4))), (0, 5)),
    "concat": (lambda xp, x: xp.concat([x, xp.constant(random(2, 3))], 1), (2, 0)),
    "concat_of_computed": (lambda xp, x: xp.concat([xp.exp(x), xp.constant(random(2, 3))], 1), (2, 0)),
    "gather": (lambda xp, x: xp.gather(x, np.zeros(0, int), 1), (2, 3)),
    "scatter_add": (lambda xp, x: xp.scatter_add(x, np.zeros(0, int), 1, 3), (2, 0)),
    "scatter_add_of_computed": (lambda xp, x: xp.scatter_add(xp.exp(x), np.zeros(0, int), 1, 3), (2, 0)),
    "pad": (lambda xp, x: xp.pad(x, (0, 1), (0, 2)), (2, 0)),
    "pad_of_computed": (lambda xp, x: xp.pad(xp.exp(x), (0, 1), (0, 2)), (2, 0)),
    "spread": (lambda xp, s: xp.window_spread(s, Window((2,), (1,), (0,), (1,)), (3,)), (2, 3, 0)),
    "route": (lambda xp, r: xp.max_route(xp.constant(random(2, 3, 1)), r, Window((2,), (1,), (0,), (1,))), (2, 3, 0)),
    "adjoint": (lambda xp, s: xp.conv_adjoint(s, xp.constant(random(3, 2, 2)), Convolution((1,), (0,), (1,)), (1,)),
                (2, 3, 0)),
    "conv": (lambda xp, x: xp.conv(x, xp.constant(random(3, 2, 2)), Convolution((1,), (0,), (1,)), (0,)), (2, 2, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_arrays_without_cells(name: str) -> None:
    body, shape = EMPTY[name]
    check(body, np.zeros(shape, np.float32))


# --- the checks themselves --------------------------------------------------------------------------------------------


def check_edges() -> None:
    check_share(lambda xp, x: xp.gather(x, np.arange(20), 1), "float32")


# A kernel file, what is changed in it, and the check that turns red.
MISTAKES: dict[str, tuple[str, str, str, Callable[[], Any]]] = {
    "contraction: no barrier between tiles": (
        "contraction.cu", "store(now ^ 1);\n        __syncthreads();", "store(now ^ 1);",
        lambda: check_contraction(GEOMETRIES["deep"], Tile(4, 1, False, 1), "float32")),
    "contraction: no barrier before the first tile": (
        "contraction.cu", "store(begin & 1);\n    }\n    __syncthreads();", "store(begin & 1);\n    }",
        lambda: check_contraction(GEOMETRIES["line"], Tile(1, 1, False, 1), "float32")),
    "contraction: a row too far": (
        "contraction.cu", "(unsigned)(y + t.z) < (unsigned)height", "(unsigned)(y + t.z) <= (unsigned)height",
        lambda: check_contraction(GEOMETRIES["padding_alone"], Tile(4, 4, False, 1), "float32")),
    "contraction: a column too far": (
        "contraction.cu", "(unsigned)(x + t.w) < (unsigned)width", "(unsigned)(x + t.w) <= (unsigned)width",
        lambda: check_contraction(GEOMETRIES["padding_alone"], Tile(4, 4, False, 1), "float32")),
    "contraction: a plane too far": (
        "contraction.cu", "(unsigned)(z + t.y) >= (unsigned)depth", "(unsigned)(z + t.y) > (unsigned)depth",
        lambda: check_contraction(GEOMETRIES["volume"], Tile(4, 4, False, 1), "float32")),
    "contraction: a tile of the other term": (
        "contraction.cu", "tile < tiles_first", "tile <= tiles_first",
        lambda: check_contraction(GEOMETRIES["line"], Tile(1, 4, False, 1), "float32", terms=2)),
    "contraction: a channel too many": (
        "contraction.cu",
        "= acc[i][j + l];\n            if (m < channels)",
        "= acc[i][j + l];\n            if (m <= channels)",
        lambda: check_contraction(GEOMETRIES["line"], Tile(1, 1, False, 1), "float32")),
    "contraction: a pixel too many": (
        "contraction.cu",
        "if (n >= wanted) continue;\n        const index_t o = place(n);\n#pragma unroll\n        for",
        "if (n > wanted) continue;\n        const index_t o = place(n);\n        for",
        lambda: check_contraction(GEOMETRIES["blocks"], Tile(8, 8, False, 1), "float32")),
    "contraction: one channel for all of a tile": (
        "contraction.cu", "(offset_t)(256 / BN * i) * plane", "(offset_t)(256 / BN * 0) * plane",
        lambda: check_contraction(GEOMETRIES["one_tap_a_tile"], Tile(4, 4, False, 1), "float32")),
    "contraction: one cell for all of a run": (
        "contraction.cu", "run.lane[l] = acc[i][j + l]", "run.lane[l] = acc[i][j]",
        lambda: check_contraction(GEOMETRIES["runs"], Tile(4, 8, False, 1), "float32")),
    "contraction: one cell for both of a run": (
        "contraction.cu", "acc[i][j][2 * r + c + l]", "acc[i][j][2 * r + c]",
        lambda: check_contraction(GEOMETRIES["runs"], Tile(4, 8, True, 1), "float32")),
    "contraction: every part adds up all": (
        "contraction.cu", "(long long)p.tiles * part / s.splits", "(long long)0 * part / s.splits",
        lambda: check_contraction(GEOMETRIES["deep"], Tile(4, 4, False, 1), "float32", splits=2)),
    "contraction: fragments exchanged": (
        "contraction.cu", "a[i][2 * half] = __float_as_uint(two.x)", "a[i][2 * half] = __float_as_uint(two.y)",
        lambda: check_contraction(GEOMETRIES["deep"], Tile(4, 4, True, 1), "float32")),
    "contraction: a phase's offset forgotten": (
        "contraction.cu", "* p.out_step[2] + p.out_begin[2]", "* p.out_step[2]",
        lambda: check_contraction(GEOMETRIES["line"], Tile(4, 4, False, 1), "float32", adjoint=True)),
    "contraction: the input is not rounded": (
        "contraction.cu", "= rounded(from_input[i])", "= from_input[i]",
        lambda: test_tf32_rounds(Tile(4, 4, True, 1))),
    "conv_direct: between strides": (
        "conv_direct.cu", "q % g.stride[axis] || ", "",
        lambda: check_grouped(GROUPED["depthwise"], "float32", True, 1)),
    "conv_direct: a window too many": (
        "conv_direct.cu", "/ g.stride[axis] >= g.out[axis]", "/ g.stride[axis] > g.out[axis]",
        lambda: check_grouped(GROUPED["depthwise"], "float32", True, 1)),
    "conv_direct: the first input twice": (
        "conv_direct.cu", "second[at + (index_t)c", "first[at + (index_t)c",
        lambda: check_grouped(GROUPED["two_to_one"], "float32", False, 2)),
    "conv_direct: a thread too many": (
        "conv_direct.cu", "if (thread >= g.cells) return;", "if (thread > g.cells) return;",
        lambda: check_grouped(GROUPED["depthwise"], "float32", False, 1)),
    "window: the last maximum": (
        "window.cu", "exceeds(value, best < 0 ? -LARGEST * 2 : most)",
        "best < 0 ? exceeds(value, -LARGEST * 2) : !exceeds(most, value)", lambda: check_window("small")),
    "window: a tap too far": (
        "window.cu", "min(w.kernel[axis], ceil_div(w.in[axis] - first, d))", "w.kernel[axis]",
        lambda: check_window("over_the_end")),
    "window: a tap too few": (
        "window.cu", "floor_div(first, d) + 1", "floor_div(first, d)", lambda: check_window("small")),
    "window: windows that are not there": (
        "window.cu", "max(0, ceil_div(first - (w.out[axis] - 1) * w.stride[axis], d))", "0",
        lambda: check_window("leftovers")),
    "window: between strides": (
        "window.cu", "q % w.stride[axis] ? -1 : ", "", lambda: check_window("small")),
    "reduce: no barrier": (
        "reduce.cu", "shared[threadIdx.x] = value;\n    __syncthreads();", "shared[threadIdx.x] = value;",
        lambda: check_reduction(random(2, 700), (1,))),
    "reduce: a result too many": (
        "reduce.cu", "if (result >= results) return;", "if (result > results) return;",
        lambda: check_reduction(random(5, 2), (0,))),
    "reduce: a cell in two chunks": (
        "reduce.cu", "length * (chunk + 1) / chunks", "min(length, length * (chunk + 1) / chunks + 1)",
        lambda: check_reduction(random(9001, 1), (0,), multiprocessors=8)),
    "reduce: NaN loses": (
        "prelude.cu", "exceeds(a, b) || a != a ? a : b", "exceeds(a, b) || b != b ? a : b",
        lambda: check(lambda xp, x: xp.reduce_max(x, (0,)), np.array([1, np.nan, 2]))),
    "move: padding that is not there": (
        "move.cu", "(unsigned)position < (unsigned)placed", "(unsigned)position <= (unsigned)placed",
        lambda: test_moves("pad", "float32", False)),
    "move: the last reader forgotten": (
        "move.cu", "k < first[j + 1]", "k + 1 < first[j + 1]", lambda: test_moves("scatter_add", "float32", False)),
    "move: sizes exchanged": (
        "move.cu", "/ (index_t)axis->after * (index_t)axis->before", "/ (index_t)axis->after * (index_t)axis->after",
        lambda: test_moves("gather", "float32", False)),
    "move: joined at the wrong place": (
        "move.cu", "axis->after + begin + at", "axis->after + at", lambda: test_moves("concat", "float32", False)),
    "matmul: no barrier before the next tile": (
        "matmul.cu", "fma(as[ty][k], bs[k][tx], acc);\n        __syncthreads();", "fma(as[ty][k], bs[k][tx], acc);",
        lambda: check_product("plain")),
    "matmul: a tile that reaches over": (
        "matmul.cu", "row < p.rows && ka < p.inner ?", "row < p.rows ?", lambda: check_product("plain")),
    "totals: every other part": (
        "totals.cu", "i += 256", "i += 512", lambda: check_totals((1, 1, 600, 600), multiprocessors=40)),
    "block_sum: no barrier after the cells are there": (
        "block_sum.cu", "shared[threadIdx.x] = v;\n    __syncthreads();", "shared[threadIdx.x] = v;",
        lambda: check_totals((3, 4, 40, 40))),
    "share: the smallest normal number is dead": (
        "prelude.cu", "fabs(z) < TINY", "fabs(z) <= TINY", check_edges),
    "share: no clamp": ("prelude.cu", "s > LARGEST ? LARGEST : ", "", check_edges),
}  # fmt: skip


def test_the_checks_pass_without_a_mistake() -> None:
    for *_, test in MISTAKES.values():
        test()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_kernel_is_noticed(mistake: str) -> None:
    """A barrier, a bound or a sign less in a copy of a kernel turns its check red."""
    file, right, wrong, test = MISTAKES[mistake]
    original = launch.kernel_file
    assert original(file).count(right) == 1, "the kernel has changed: find the line again"

    def changed(name: str) -> str:
        return original(name).replace(right, wrong) if name == file else original(name)

    with (
        mock.patch.object(launch, "kernel_file", changed),
        mock.patch.object(text, "kernel_file", changed),
        pytest.raises((AssertionError, RuntimeError)),
    ):
        test()


def test_filled_up_rows_that_read_something_are_noticed() -> None:
    """Rows of the tap table that fill up a tile must read nothing: 0 times NaN is NaN."""
    with mock.patch.object(contraction, "NOWHERE", 0), pytest.raises(AssertionError):
        check_nan(GEOMETRIES["padding_alone"], Tile(4, 4, False, 1), "float32", True)


def test_a_write_outside_is_noticed() -> None:
    original = launch.kernel_file
    with (
        mock.patch.object(launch, "kernel_file", lambda name: original(name).replace("out[result] =", "out[1] =")),
        pytest.raises(AssertionError, match="writes outside"),
    ):
        run(lambda xp, x: xp.reduce_sum(x, (0,)), random(5))
