"""Every verb on onnxruntime, and as CUDA kernels on the CPU, against its definition in NumPy.

The verbs are enumerated from the abstract class, so that a new one without a case is noticed. What is proved besides:
the convolution verbs are adjoint to each other in float64 (<conv(x), s> = <x, adjoint(s)>), whatever the geometry; the
same for windows, gather and scatter; dead denominators, denormals and overflowing quotients follow one rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import backends
import numpy as np
import pytest
from backends import Named

from fgcam_onnx.backends.base import TINY, Array, Backend, Convolution, Program, Verbs, Window
from fgcam_onnx.backends.numpy import NumpyBackend, NumpyVerbs

Floats = np.ndarray
LARGEST = float(np.finfo(np.float32).max)
_KEYS = itertools.count()


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


@dataclass(frozen=True)
class Call:
    """One call of a verb: ``run(verbs, inputs)`` returns an array or several."""

    verb: str
    id: str
    inputs: Mapping[str, Floats]
    run: Callable[[Verbs, Mapping[str, Array]], Any]
    tolerance: float = 1e-6
    exact: bool = field(default=False)

    def answers(self, backend: Backend) -> dict[str, Floats]:
        def named(xp: Verbs, inputs: Mapping[str, Array]) -> dict[str, Array]:
            found = self.run(xp, inputs)
            return {f"{k}": array for k, array in enumerate(found if isinstance(found, tuple) else (found,))}

        inputs = {name: array.astype(backend.dtype) for name, array in self.inputs.items()}
        return backend.execute(Program(f"verb {next(_KEYS)}", named), inputs)


CALLS: list[Call] = []


def call(verb: str, tag: str, run: Callable[..., Any], *inputs: Floats, **options: Any) -> None:
    """``run(verbs, *inputs)``"""
    named = {f"i{k}": np.asarray(array, np.float32) for k, array in enumerate(inputs)}
    CALLS.append(Call(verb, f"{verb}-{tag}" if tag else verb, named, lambda xp, i: run(xp, *i.values()), **options))


def shared(result: tuple[Array, Any]) -> tuple[Array, Array, Array]:
    value, leak = result
    return value, leak.signed, leak.absolute


# --- elementwise ------------------------------------------------------------------------------------------------------

a, b, row, one = random(2, 3, 5, 4), random(2, 3, 5, 4, seed=1), random(3, 1, 4), random(1)
small = np.array([[0, -0.0, 1e-39, -1e-39, 1e-45, 1, -1, 3e38]], np.float32)

call("constant", "array", lambda xp, x: xp.add(x, xp.constant(row)), a)
call("constant", "number", lambda xp, x: xp.mul(x, xp.constant(0.25)), a)
call("constant", "float64_is_rounded", lambda xp, x: xp.add(x, xp.constant(np.array(1 / 3))), a)
call("constant", "large", lambda xp, x: xp.mul(x, xp.constant(random(2, 3, 40, 30))), random(2, 3, 40, 30, seed=2))
call("constant", "alone", lambda xp, x: xp.mul(xp.constant(random(2, 3)), xp.constant(2.0)), one)
call("shape", "", lambda xp, x: xp.reshape(x, (xp.shape(x)[0], -1)), a)
for verb in ("add", "sub", "mul", "div", "maximum", "minimum", "greater"):
    for tag, left, right in (("same", a, b), ("row", a, row), ("number", a, one), ("wider", row, b), ("equal", a, a)):
        call(verb, tag, lambda xp, x, y, verb=verb: getattr(xp, verb)(x, y), left, right)
call("power", "", lambda xp, x, y: xp.power(xp.absolute(x), y), a, b, tolerance=3e-6)
call("power", "integer_of_negative", lambda xp, x: xp.power(x, xp.constant(3.0)), a)
for verb in ("absolute", "exp", "tanh", "sigmoid", "erf", "nonzero", "positive", "negative"):
    call(verb, "", lambda xp, x, verb=verb: getattr(xp, verb)(x), a)
    call(verb, "far", lambda xp, x, verb=verb: getattr(xp, verb)(x), 9 * a)
    call(verb, "zeros", lambda xp, x, verb=verb: getattr(xp, verb)(x), np.minimum(small, 5),
         exact=verb in ("absolute", "nonzero", "positive", "negative"))  # fmt: skip
call("log", "", lambda xp, x: xp.log(xp.absolute(x)), a)


# --- share and keep ---------------------------------------------------------------------------------------------------

some_dead = np.abs(a) * (a > 0)
call("share", "alive", lambda xp, r, z: shared(xp.share(r, z)), a, b)
call("share", "some_dead", lambda xp, r, z: shared(xp.share(r, z)), b, some_dead)
call("share", "all_dead", lambda xp, r, z: shared(xp.share(r, z)), b, 0 * a)
call("share", "nonnegative", lambda xp, r, z: shared(xp.share(r, z, nonnegative=True)), b, some_dead)
call("share", "nonnegative_alive", lambda xp, r, z: shared(xp.share(r, z, nonnegative=True)), b, np.abs(a) + 0.1)
call("share", "negative_dead", lambda xp, r, z: shared(xp.share(r, z)), b, -some_dead)
call("share", "two_axes", lambda xp, r, z: shared(xp.share(r, z)), random(3, 5), random(3, 5, seed=1).clip(0))
call("share", "one_cell", lambda xp, r, z: shared(xp.share(r, z)), random(2, 1), np.array([[0.0], [2.0]]))
edges = np.array([[0, -0.0, TINY / 2, -TINY / 2, 1e-45, TINY, -TINY, 2 * TINY, 1, -2]], np.float32)
call("share", "denormals", lambda xp, r, z: shared(xp.share(r, z)), np.ones_like(edges), edges)
call("share", "denormals_nonnegative", lambda xp, r, z: shared(xp.share(r, z, nonnegative=True)),
     np.ones_like(edges), np.abs(edges))  # fmt: skip
call("share", "overflow", lambda xp, r, z: shared(xp.share(r, z)),
     np.array([[1e30, -1e30, 1e30, 0, 5]]), np.array([[1e-30, 1e-30, -1e-37, 1e-37, 1e-38 * 2]]))  # fmt: skip
call("share", "overflow_and_dead", lambda xp, r, z: shared(xp.share(r, z)),
     np.array([[1e30, -1e30, 3]]), np.array([[1e-30, 1e-30, 0]]))  # fmt: skip
# Several images of r over one of z: in blocks too, where a z of one cell for all must not meet other channels.
many, lone = random(3, 32, 5, 4, seed=3), random(1, 32, 5, 4, seed=4)
for tag, z in (("alive", np.abs(lone) + 0.1), ("some_dead", lone.clip(0)), ("all_dead", 0 * lone),
               ("of_a_channel", lone[:, :, :1, :1].clip(0)), ("of_a_line", lone[:, :, :1].clip(0))):  # fmt: skip
    call("share", f"one_for_all_{tag}", lambda xp, r, z: shared(xp.share(r, z)), many, z)
    call("share", f"one_for_all_nonnegative_{tag}", lambda xp, r, z: shared(xp.share(r, z, nonnegative=True)), many, z)
    call("keep", f"one_for_all_{tag}", lambda xp, r, z: shared(xp.keep(r, xp.nonzero(z))), many, z)
call("keep", "", lambda xp, r, y: shared(xp.keep(r, xp.nonzero(y))), b, some_dead)
call("keep", "row", lambda xp, r: shared(xp.keep(r, xp.constant(np.array([1.0, 0, 1]).reshape(3, 1, 1)))), b)
call("keep", "everything", lambda xp, r: shared(xp.keep(r, xp.constant(1.0))), b)
call("keep", "nothing", lambda xp, r: shared(xp.keep(r, xp.constant(np.zeros((1, 1, 5, 4))))), b)


# --- linear maps ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """A convolution's sizes: ci, co, kernel, spatial, and the rest. The output is the largest that ONNX would give."""

    ci: int
    co: int
    kernel: tuple[int, ...]
    spatial: tuple[int, ...]
    strides: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1

    @property
    def how(self) -> Convolution:
        return Convolution(self.strides, self.begins, self.dilations, self.group)

    @property
    def window(self) -> Window:
        return Window(self.kernel, self.strides, self.begins, self.dilations)

    @property
    def out(self) -> tuple[int, ...]:
        axes = zip(self.spatial, self.kernel, self.strides, self.begins, self.ends, self.dilations, strict=True)
        return tuple((size + b + e - (k - 1) * d - 1) // s + 1 for size, k, s, b, e, d in axes)

    @property
    def x(self) -> Floats:
        return random(2, self.ci, *self.spatial)

    @property
    def w(self) -> Floats:
        return random(self.co, self.ci // self.group, *self.kernel, seed=1)

    @property
    def s(self) -> Floats:
        return random(2, self.co, *self.out, seed=2)

    def __str__(self) -> str:
        words = (f"{name}{''.join(map(str, value))}" for name, value in
                 (("k", self.kernel), ("on", self.spatial), ("s", self.strides), ("b", self.begins), ("e", self.ends),
                  ("d", self.dilations)))  # fmt: skip
        return f"{self.ci}to{self.co}g{self.group}{''.join(words)}"


def geometries() -> list[Geometry]:
    found = []
    for stride, group in itertools.product((1, 2, 3), (1, 2)):
        found += [
            Geometry(4, 6, (3,), (10,), (stride,), (1,), (0,), (1,), group),
            Geometry(4, 6, (2,), (11,), (stride,), (0,), (3,), (2,), group),
            Geometry(4, 6, (3, 2), (7, 8), (stride, stride), (1, 0), (2, 1), (1, 1), group),
            Geometry(4, 6, (3, 2), (9, 7), (stride, 1), (0, 1), (1, 0), (2, 3), group),
            Geometry(4, 6, (2, 3, 2), (5, 6, 4), (1, stride, stride), (1, 0, 1), (0, 2, 0), (1, 1, 2), group),
        ]
    for stride in (2, 3, 4):  # few channels: the adjoint by phases
        found += [
            Geometry(3, 5, (5, 4), (13, 11), (stride, stride), (2, 1), (2, 0), (1, 1)),
            Geometry(1, 2, (2, 2), (9, 10), (stride, stride), (0, 0), (0, 0), (1, 1)),
            Geometry(2, 3, (3, 2), (12, 9), (stride, stride), (3, 1), (0, 4), (2, 3)),
            Geometry(1, 1, (1, 1), (6, 7), (stride, stride), (2, 5), (1, 0), (1, 1)),
        ]
    found += [
        Geometry(20, 3, (3, 3), (7, 6), (2, 2), (1, 1), (0, 1), (1, 1)),  # many: ConvTranspose
        Geometry(4, 4, (3, 3), (6, 5), (1, 1), (1, 2), (0, 1), (1, 2), 4),
        Geometry(4, 8, (2, 3), (6, 7), (3, 2), (1, 0), (1, 1), (1, 1), 4),
        Geometry(2, 3, (1, 1), (1, 1), (1, 1), (0, 0), (0, 0), (1, 1)),
        Geometry(2, 3, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1)),
        Geometry(2, 3, (2, 2), (5, 4), (1, 1), (3, 4), (2, 3), (1, 1)),  # windows on padding alone
        Geometry(2, 3, (2, 2), (9, 9), (4, 5), (0, 1), (0, 0), (1, 1)),  # cells that no window reads
        Geometry(2, 3, (1,), (1,), (3,), (0,), (0,), (1,)),
    ]
    return found


for g in geometries():
    call("conv", str(g), lambda xp, x, g=g: xp.conv(x, xp.constant(g.w), g.how, g.out), g.x, tolerance=2e-6)
    call("conv_adjoint", str(g), lambda xp, s, g=g: xp.conv_adjoint(s, xp.constant(g.w), g.how, g.spatial), g.s,
         tolerance=2e-6)  # fmt: skip
    if g.group == 1:
        x, r = random(2, 3, *g.spatial), random(2, 3, *g.out, seed=1)
        call("window_sum", str(g), lambda xp, x, g=g: xp.window_sum(x, g.window, g.out), x, tolerance=2e-6)
        call("window_spread", str(g), lambda xp, s, g=g: xp.window_spread(s, g.window, g.spatial), r, tolerance=2e-6)
        call("max_route", str(g), lambda xp, x, r, g=g: xp.max_route(x, r, g.window), x, r)
        call("max_route", f"ties-{g}", lambda xp, x, r, g=g: xp.max_route(x, r, g.window), np.round(x), r)
        call("max_route", f"one_for_all-{g}", lambda xp, x, r, g=g: xp.max_route(x, r, g.window),
             np.round(2 * x[:1]), np.concatenate([r, r[:1] - r[-1:]]))  # fmt: skip
        call("max_route", f"negative-{g}", lambda xp, x, r, g=g: xp.max_route(x, r, g.window), -1 - np.abs(x), r)


def of_one_sign(xp: Verbs, x: Array) -> Array:
    """What rounding() allows is only done where precision "fast" was asked for."""
    xp.rounding(one_sign=True)
    w = np.abs(random(70, 3, 3, 3))
    return xp.conv(xp.absolute(x), xp.constant(w), Convolution((1, 1), (1, 1), (1, 1)), (5, 4))


call("rounding", "", of_one_sign, a, tolerance=2e-6)

for tag, kernel, spatial, out in (
    ("touching", (2, 3), (6, 9), (3, 3)),
    ("touching_leftovers", (2, 3), (7, 11), (3, 3)),
    ("touching_over_the_end", (2, 3), (5, 8), (3, 3)),
    ("touching_mixed", (2, 3), (5, 11), (3, 3)),
    ("whole", (5, 4), (5, 4), (1, 1)),
    ("one_cell", (1, 1), (1, 1), (1, 1)),
):
    window = Window(kernel, kernel, (0, 0), (1, 1))
    x, r = random(2, 3, *spatial), random(2, 3, *out, seed=1)
    call("window_sum", tag, lambda xp, x, w=window, out=out: xp.window_sum(x, w, out), x, tolerance=2e-6)
    call("window_spread", tag, lambda xp, s, w=window, size=spatial: xp.window_spread(s, w, size), r)
    call("max_route", tag, lambda xp, x, r, w=window: xp.max_route(x, r, w), x, r)

call("matmul", "", lambda xp, x: xp.matmul(x, xp.constant(random(5, 3))), random(2, 5))
call("matmul", "three_axes", lambda xp, x: xp.matmul(x, xp.constant(random(5, 3))), random(2, 4, 5))
call("matmul", "broadcast", lambda xp, x: xp.matmul(x, xp.constant(random(4, 5, 3))), random(2, 1, 2, 5))
call("matmul", "constant_first", lambda xp, x: xp.matmul(xp.constant(random(3, 3)), x), random(2, 3, 7))
call("matmul", "one_cell", lambda xp, x: xp.matmul(x, xp.constant(random(1, 1))), random(1, 1))


# --- reductions and index moves ---------------------------------------------------------------------------------------

for verb in ("reduce_sum", "reduce_max", "reduce_min"):
    for axes in ((1,), (2, 3), (1, 2, 3), (3,)):
        call(verb, str(axes), lambda xp, x, verb=verb, axes=axes: getattr(xp, verb)(x, axes), a)
    call(verb, "size_one", lambda xp, x, verb=verb: getattr(xp, verb)(x, (1, 2)), random(2, 1, 1, 3))
for rank in (1, 2, 3, 4, 5):
    call("total", f"rank{rank}", lambda xp, x: xp.total(x), random(2, 3, 5, 4, 2)[(slice(None), *[0] * (5 - rank))])
call("reshape", "", lambda xp, x: xp.reshape(x, (2, 15, 4)), a)
call("reshape", "open", lambda xp, x: xp.reshape(x, (2, -1, 2)), a)
call("reshape", "same", lambda xp, x: xp.reshape(x, (2, 3, 5, 4)), a)
call("transpose", "", lambda xp, x: xp.transpose(x, (0, 2, 3, 1)), a)
call("transpose", "constant", lambda xp, x: xp.matmul(x, xp.transpose(xp.constant(random(6, 4)), (1, 0))), a)
call("expand", "", lambda xp, x: xp.expand(x, (2, 3, 5, 4)), random(2, 3, 1, 1))
call("expand", "same", lambda xp, x: xp.expand(x, (2, 3, 5, 4)), a)
call("concat", "", lambda xp, x, y: xp.concat([x, y, x], 1), a, b)
call("concat", "last", lambda xp, x, y: xp.concat([x, y], 3), a, random(2, 3, 5, 1))
call("concat", "constant", lambda xp, x: xp.concat([x, xp.constant(np.zeros((2, 1, 5, 4)))], 1), a)
for tag, begins, ends in (
    ("around", (0, 0, 1, 2), (0, 1, 0, 3)),
    ("crop", (0, -1, -1, 0), (0, 0, -2, -1)),
    ("crop_and_pad", (0, 0, -2, 1), (0, 1, 2, -3)),
    ("nothing", (0, 0, 0, 0), (0, 0, 0, 0)),
    ("crop_one_axis_both_ends", (0, 0, 0, -1), (0, 0, 0, -1)),
):
    call("pad", tag, lambda xp, x, begins=begins, ends=ends: xp.pad(x, begins, ends), a, exact=True)
for tag, indices in (("some", [2, 0]), ("repeated", [1, 1, 4, 1]), ("one", [3]), ("all_reversed", [4, 3, 2, 1, 0])):
    where = np.asarray(indices)
    call("gather", tag, lambda xp, x, where=where: xp.gather(x, where, 2), a, exact=True)
    call("scatter_add", tag, lambda xp, r, where=where: xp.scatter_add(r, where, 2, 5), random(2, 3, len(indices), 4))
call("scatter_add", "last_axis", lambda xp, r: xp.scatter_add(r, np.array([6, 6, 0, 2]), 3, 7), a)
call("sum_to", "same", lambda xp, x: xp.sum_to(x, (2, 3, 5, 4)), a)
call("sum_to", "space", lambda xp, x: xp.sum_to(x, (2, 3, 1, 1)), a)
call("sum_to", "fewer_axes", lambda xp, x: xp.sum_to(x, (3, 1, 4)), a)
call("sum_to", "number", lambda xp, x: xp.sum_to(x, ()), a)


# --- the tests --------------------------------------------------------------------------------------------------------


def verbs() -> set[str]:
    return {name for name, value in vars(Verbs).items() if callable(value) and not name.startswith("_")}


def test_no_verb_is_forgotten() -> None:
    """Every method of the abstract class, and every abstract one among them, has at least one call here."""
    assert Verbs.__abstractmethods__ <= verbs()
    assert {c.verb for c in CALLS} == verbs()
    assert len({c.id for c in CALLS}) == len(CALLS)


def agree(c: Call, found: Mapping[str, Floats], expected: Mapping[str, Floats], flushed: float = 0.0) -> None:
    """``flushed``: what a backend may take for 0: a GPU flushes denormals."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].shape == np.shape(array)
        assert np.array_equal(np.isnan(found[name]), np.isnan(array))
        if c.exact:
            np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=flushed, equal_nan=True)
        else:
            finite = np.abs(array[np.isfinite(array)])
            np.testing.assert_allclose(found[name], array, rtol=c.tolerance, atol=c.tolerance * finite.max(initial=0.0))


@pytest.mark.parametrize("c", CALLS, ids=lambda c: c.id)
@pytest.mark.parametrize("on", backends.named(backends.COMPILED))
def test_a_backend_does_what_numpy_defines(c: Call, on: Named) -> None:
    plain, compiled = c.answers(NumpyBackend(on.backend.dtype)), c.answers(on.backend)
    assert all(np.asarray(v).dtype in (np.float32, np.float64) for v in plain.values())
    assert all(v.dtype == on.backend.dtype for v in compiled.values())
    agree(c, compiled, plain, flushed=TINY if on.id == "cupy" else 0.0)


def test_a_wrong_verb_is_noticed() -> None:
    """0.1 % in one cell, and a transposed result of the right size, are each seen."""
    c = next(c for c in CALLS if c.verb == "conv")
    plain = c.answers(NumpyBackend(np.float32))
    wrong = plain["0"].copy()
    wrong.flat[np.abs(wrong).argmax()] *= 1.001
    with pytest.raises(AssertionError):
        agree(c, {"0": wrong}, plain)
    with pytest.raises(AssertionError):
        agree(c, {"0": plain["0"][::-1]}, plain)


def inner(p: Floats, q: Floats) -> float:
    return float((p.astype(np.float64) * q).sum())


def check_adjoint(there: Floats, x: Floats, back: Floats, s: Floats) -> None:
    """<there, s> = <x, back>"""
    assert back.shape == x.shape
    assert there.shape == s.shape
    scale = np.abs(there * s).sum()
    assert abs(inner(there, s) - inner(x, back)) <= 1e-12 * max(scale, 1e-30)


@pytest.mark.parametrize("g", geometries(), ids=str)
def test_adjoints(g: Geometry) -> None:
    """<conv(x), s> = <x, conv_adjoint(s)>, and the same for windows: a check that knows no implementation."""
    xp = NumpyVerbs(np.float64)
    x, w, s = (v.astype(np.float64) for v in (g.x, g.w, g.s))
    check_adjoint(xp.conv(x, w, g.how, g.out), x, xp.conv_adjoint(s, w, g.how, g.spatial), s)
    pooled = random(2, g.ci, *g.out).astype(np.float64)
    check_adjoint(xp.window_sum(x, g.window, g.out), x, xp.window_spread(pooled, g.window, g.spatial), pooled)


def test_a_wrong_adjoint_is_noticed() -> None:
    g = geometries()[0]
    xp = NumpyVerbs(np.float64)
    x, w, s = (v.astype(np.float64) for v in (g.x, g.w, g.s))
    with pytest.raises(AssertionError):
        check_adjoint(xp.conv(x, w, g.how, g.out), x, 1.001 * xp.conv_adjoint(s, w, g.how, g.spatial), s)


@pytest.mark.parametrize("g", geometries()[:20], ids=str)
def test_conv_is_a_plain_loop(g: Geometry) -> None:
    """The definition itself against one multiplication at a time."""
    x, w = g.x[:1].astype(np.float64), g.w.astype(np.float64)
    expected = np.zeros((1, g.co, *g.out))
    per_group = g.co // g.group
    for co, *cell in np.ndindex(g.co, *g.out):
        for ci, *tap in np.ndindex(*w.shape[1:]):
            at = [c * s - b + t * d for c, s, b, t, d in zip(cell, g.strides, g.begins, tap, g.dilations, strict=True)]
            if all(0 <= p < size for p, size in zip(at, g.spatial, strict=True)):
                expected[(0, co, *cell)] += w[(co, ci, *tap)] * x[(0, co // per_group * w.shape[1] + ci, *at)]
    found = NumpyVerbs(np.float64).conv(x, w, g.how, g.out)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_gather_and_scatter_are_adjoint() -> None:
    xp, where = NumpyVerbs(np.float64), np.array([4, 1, 1, 0, 4, 4])
    x, s = a.astype(np.float64), random(2, 3, 6, 4).astype(np.float64)
    check_adjoint(xp.gather(x, where, 2), x, xp.scatter_add(s, where, 2, 5), s)


def test_share_drops_dead_denominators_and_clamps_the_rest() -> None:
    """Below the smallest normal float32 a denominator is 0; above it the quotient is at most the largest number."""
    r = np.array([[1, 1, 1, -1, 1e30, -1e30, 6]], np.float32)
    z = np.array([[0, TINY / 2, -TINY / 2, 1e-45, 1e-30, 1e-30, -2]], np.float32)
    for backend in (NumpyBackend(np.float32), *backends.compiled()):
        c = Call("share", "hand", {"r": r, "z": z}, lambda xp, i: shared(xp.share(i["r"], i["z"])))
        s, signed, absolute = c.answers(backend).values()
        np.testing.assert_array_equal(s, [[0, 0, 0, 0, LARGEST, -LARGEST, -3]])
        assert (signed.tolist(), absolute.tolist()) == ([2.0], [4.0])


def test_the_first_maximum_wins() -> None:
    """Window (1, 1, 1, 0), r = 6: (6, 0, 0, 0); a window on padding alone gives to nobody."""
    window = Window((2, 2), (2, 2), (0, 0), (1, 1))
    x = np.array([[[[1, 1], [1, 0]]]], np.float32)
    lonely = Window((2,), (1,), (1,), (3,))  # on two cells: reads positions -1 and 2
    for backend in (NumpyBackend(np.float32), *backends.compiled()):
        c = Call("max_route", "hand", {"x": x, "r": np.full((1, 1, 1, 1), 6, np.float32)},
                 lambda xp, i: xp.max_route(i["x"], i["r"], window))  # fmt: skip
        assert c.answers(backend)["0"].ravel().tolist() == [6, 0, 0, 0]
        c = Call("max_route", "empty", {"x": x[0, :, :1] - 5, "r": np.full((1, 1, 1), 6, np.float32)},
                 lambda xp, i: xp.max_route(i["x"], i["r"], lonely))  # fmt: skip
        assert c.answers(backend)["0"].ravel().tolist() == [0, 0]


def test_a_program_may_return_what_it_was_given() -> None:
    """An identity rule alone between start and target: input and output are one symbol."""
    c = Call("same", "", {"r": a}, lambda xp, i: (i["r"], xp.total(i["r"]), i["r"]))
    for backend in (NumpyBackend(np.float32), *backends.compiled()):
        found = c.answers(backend)
        np.testing.assert_array_equal(found["0"], a)
        np.testing.assert_array_equal(found["2"], a)
