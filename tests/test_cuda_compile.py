"""Every CUDA kernel of the backend, in every variant, is compiled by NVRTC as CuPy will compile it; no GPU is needed.

What is proved: each variant compiles for the architectures from Turing to Blackwell, and ptxas keeps everything in
registers: 0 bytes of spill. The sources are those of small programs, traced and lowered, so that the generated parts
are the real ones. The variants are enumerated from the code: the tiles from what ``choose_tile`` answers, the kernel
files from their folder, the elementwise functions from their table; a new one without a variant is noticed. The PTX
shows that memory is walked 16 bytes at a time, and that TF32 means tensor cores.

CI compiles a part of the product of variants and architectures, in which each kernel, tile and architecture occurs
(``pytest -m slow`` compiles the rest).
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import nvrtc
import pytest
from cuda_programs import launches

from fgcam_onnx.backends.base import Array, Convolution, Verbs, Window
from fgcam_onnx.backends.cuda import text
from fgcam_onnx.backends.cuda.contraction import Tile, choose_tile
from fgcam_onnx.backends.cuda.launch import KERNELS, Launch
from fgcam_onnx.backends.cuda.operations import Buffer, Contraction, Value

ARCHITECTURES = (75, 80, 90, 100)
DTYPES = ("float32", "float64")
KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\([^)]*\) (\w+)\(')


@dataclass(frozen=True)
class Variant:
    """One source with one kernel, by the words that tell it from the others."""

    words: tuple[str, ...]
    launch: Launch

    @property
    def id(self) -> str:
        return "-".join(self.words)

    @property
    def since(self) -> int:
        """The first architecture that can run it: tensor cores know TF32 from Ampere on."""
        return 80 if "tf32" in self.words else 75

    @property
    def seldom(self) -> bool:
        """Left to the long run: a contraction of volumes, wide offsets or float64 whose epilogue its kin have."""
        if {"wide", "float64"} <= {*self.words}:  # each of them is compiled alone
            return True
        less_plain = "contraction" in self.words and not {"3d", "wide", "float64"}.isdisjoint(self.words)
        return less_plain and {"share", "split"}.isdisjoint(self.words)


# --- contractions -----------------------------------------------------------------------------------------------------


def tiles(double: bool, tf32: bool, wide: bool, axes: int) -> list[Tile]:
    """All that ``choose_tile`` answers, for results of one to many rows and pixels."""
    found = {}
    for rows, pixels in itertools.product((1, 16, 17, 32, 64, 65, 128, 129, 4096), repeat=2):
        spatial = (*[1] * (axes - 1), pixels)
        operation = Contraction(
            inputs=(Value.whole(Buffer((1, 4, *spatial), "input")),),
            weights=(np.zeros((rows, 4, *[1] * axes), np.float32),),
            how=Convolution((1,) * axes, (0,) * axes, (1,) * axes),
            spatial=spatial,
            adjoint=False,
        )
        tile = choose_tile(operation, multiprocessors=1, double=double, tf32=tf32, wide=wide)
        found[tile.tm, tile.tn, tile.tf32] = Tile(tile.tm, tile.tn, tile.tf32, 1)
    return list(found.values())


# What real descents do with the sum: ``acc`` [n, c, ...], two more arrays like it, ``low`` [n, 1, ...].
EPILOGUES: dict[str, Callable[[Verbs, Array, Array, Array, Array], Array]] = {
    "plain": lambda xp, acc, x, y, low: acc,
    "share": lambda xp, acc, x, y, low: xp.share(x, acc)[0],
    "product": lambda xp, acc, x, y, low: xp.mul(x, acc),
    "arrived": lambda xp, acc, x, y, low: xp.add(xp.mul(x, acc), y),
    "box": lambda xp, acc, x, y, low: xp.add(xp.sub(xp.mul(x, acc), xp.mul(low, acc)), y),
    "masked": lambda xp, acc, x, y, low: xp.keep(xp.share(x, acc)[0], y)[0],
}


def contraction_launches(
    dtype: str, tile: Tile, axes: int, wide: bool, epilogue: str, size: int = 6, terms: int = 1, channels: int = 16
) -> list[Launch]:
    """``size``: of each axis of the picture; cells are finished together where their number is a multiple of four.

    ``channels``: a tile holds those of one tap where they fill tiles.
    """
    finish = EPILOGUES[epilogue]
    kernel, spatial = (3,) * axes, (size,) * axes
    how = Convolution((1,) * axes, (1,) * axes, (1,) * axes)
    weights = [np.ones((channels, channels, *kernel), np.float32) for _ in range(terms)]

    def body(xp: Verbs, s: Array, x: Array, y: Array, low: Array) -> Array:
        sums = [xp.conv_adjoint(s, xp.constant(w), how, spatial) for w in weights]
        return finish(xp, functools.reduce(xp.add, sums), x, y, low)

    full, one = (2, channels, *spatial), (2, *[1] * (axes + 1))
    return launches(body, full, full, full, one, dtype=dtype, tile=tile, wide=wide)


def contractions() -> Iterator[Variant]:
    for dtype, tf32, wide, axes in itertools.product(DTYPES, (False, True), (False, True), (2, 3)):
        if tf32 and dtype == "float64":
            continue
        for tile in tiles(dtype == "float64", tf32, wide, axes):
            if tf32 and not tile.tf32:
                continue  # too small for tensor cores: the same kernel as without
            size = (dtype, f"{tile.tm}x{tile.tn}", *["tf32"] * tf32, f"{axes}d", *["wide"] * wide)
            for epilogue in EPILOGUES:
                (launch,) = contraction_launches(dtype, tile, axes, wide, epilogue)
                yield Variant(("contraction", *size, epilogue), launch)
            for epilogue in ("share", "arrived", "box"):
                (launch,) = contraction_launches(dtype, tile, axes, wide, epilogue, size=5)
                yield Variant(("contraction", *size, f"{epilogue}_cell_by_cell"), launch)
                (launch,) = contraction_launches(dtype, tile, axes, wide, epilogue, channels=5)
                yield Variant(("contraction", *size, f"{epilogue}_tap_by_tap"), launch)
            for epilogue in ("share", "arrived"):
                (launch,) = contraction_launches(dtype, tile, axes, wide, epilogue, terms=2)
                yield Variant(("contraction", *size, f"{epilogue}_of_two_terms"), launch)
            # Parts of k are stored as they are, and a generated kernel adds them up.
            split = Tile(tile.tm, tile.tn, tile.tf32, 2)
            for terms, words in ((1, "split"), (2, "split_of_two_terms")):
                launch, _ = contraction_launches(dtype, split, axes, wide, "plain", terms=terms)
                yield Variant(("contraction", *size, words), launch)
    for dtype, wide, epilogue in itertools.product(DTYPES, (False, True), EPILOGUES):
        summed = contraction_launches(dtype, Tile(4, 4, False, 2), 2, wide, epilogue)[1]
        yield Variant(("summed", dtype, *["wide"] * wide, epilogue), summed)


# --- the other files --------------------------------------------------------------------------------------------------


def grouped() -> Iterator[Variant]:
    """A depthwise convolution and its adjoint, of one and two terms."""
    how = Convolution((2, 1), (1, 1), (1, 2), 4)
    for adjoint, terms in itertools.product((False, True), (1, 2)):
        weights = [np.ones((4, 1, 3, 3), np.float32) for _ in range(terms)]

        def body(
            xp: Verbs, x: Array, r: Array, y: Array, low: Array, *, finish: Any, weights: Any, back: bool
        ) -> Array:
            parts = (xp.positive(x), xp.negative(x))
            if back:
                sums = [xp.conv_adjoint(p, xp.constant(w), how, (7, 6)) for p, w in zip(parts, weights, strict=False)]
            else:
                sums = [xp.conv(p, xp.constant(w), how, (4, 4)) for p, w in zip(parts, weights, strict=False)]
            return finish(xp, functools.reduce(xp.add, sums), r, y, low)

        small, large, one = (2, 4, 4, 4), (2, 4, 7, 6), (2, 1, 1, 1)
        x, r = (small, large) if adjoint else (large, small)
        for epilogue, finish in EPILOGUES.items():
            run = functools.partial(body, finish=finish, weights=weights, back=adjoint)
            words = ("direct", "adjoint" if adjoint else "conv", f"{terms}terms", epilogue)
            yield from everyway(words, run, x, r, r, one, name="conv_direct")


def windows() -> Iterator[Variant]:
    window = Window((3, 2), (2, 1), (1, 0), (1, 2))
    small, large = (2, 3, 4, 5), (2, 3, 7, 7)
    for epilogue, finish in EPILOGUES.items():
        yield from everyway(("window_sum", epilogue), lambda xp, s, x, y, low, f=finish:
                            f(xp, xp.window_sum(s, window, (4, 5)), x, y, low),
                            large, small, small, (2, 1, 1, 1), name="window_sum")  # fmt: skip
        yield from everyway(("window_spread", epilogue), lambda xp, s, x, y, low, f=finish:
                            f(xp, xp.window_spread(s, window, (7, 7)), x, y, low),
                            small, large, large, (2, 1, 1, 1), name="window_spread")  # fmt: skip
        yield from everyway(("max_route", epilogue), lambda xp, s, x, y, low, f=finish:
                            f(xp, xp.max_route(x, s, window), x, y, low),
                            small, large, large, (2, 1, 1, 1), name="max_route")  # fmt: skip
    yield from everyway(("max_winner",), lambda xp, x, r: xp.max_route(x, r, window), large, small, name="max_winner")


def others() -> Iterator[Variant]:
    """Moves, reductions, products of two arrays, and the books."""
    whole, rows, one = (2, 3, 5, 4), (2, 3, 4, 4), (2, 1, 1, 1)
    where = np.array([4, 1, 1, 0])
    for epilogue in ("plain", "arrived", "box"):
        finish = EPILOGUES[epilogue]
        yield from everyway(("gather", epilogue), lambda xp, s, x, y, low, f=finish:
                            f(xp, xp.gather(s, where, 2), x, y, low),
                            whole, rows, rows, one, name="gather")  # fmt: skip
        yield from everyway(("scatter_add", epilogue), lambda xp, s, x, y, low, f=finish:
                            f(xp, xp.scatter_add(s, where, 2, 5), x, y, low),
                            rows, whole, whole, one, name="scatter_add")  # fmt: skip
        yield from everyway(("place", epilogue), lambda xp, s, x, y, low, f=finish:
                            f(xp, xp.pad(s, (0, 0, 1, 0), (0, 0, 0, 0)), x, y, low),
                            rows, whole, whole, one, name="place")  # fmt: skip
        yield from everyway(("matmul", epilogue), lambda xp, a, b, x, y, low, f=finish:
                            f(xp, xp.matmul(a, b), x, y, low),
                            (2, 3, 5, 6), (6, 4), whole, whole, one, name="matmul")  # fmt: skip
    yield from everyway(("insert",), lambda xp, x, y: xp.concat([x, y], 2), whole, rows, name="insert")
    for kind, (length, name) in itertools.product(("sum", "max", "min"), ((5, "reduce_short"), (99, "reduce"))):
        yield from everyway((name, kind), lambda xp, x, k=kind: getattr(xp, f"reduce_{k}")(x, (1,)), (2, length, 4),
                            name=name)  # fmt: skip
    yield from everyway(("totals",), lambda xp, x: xp.total(x), whole, name="totals")


def maps() -> Iterator[Variant]:
    """Generated kernels: each elementwise function; one cell and a piece a step; with and without totals."""
    odd, even, row = (2, 3, 5, 1), (2, 3, 5, 4), (3, 1, 1)

    def functions(xp: Verbs, x: Array, y: Array, row: Array) -> tuple[Array, ...]:
        found = [getattr(xp, f)(x) for f in ("absolute", "exp", "log", "tanh", "sigmoid", "erf", "nonzero")]
        return (*found, *(getattr(xp, f)(x, row) for f in ("power", "maximum", "minimum", "greater", "div")))

    def residual(xp: Verbs, a: Array, b: Array, r: Array) -> tuple[Array, ...]:
        s, leak = xp.share(r, xp.add(a, b))
        kept, masked = xp.keep(xp.mul(a, s), xp.nonzero(xp.sub(b, a)))
        given = xp.mul(b, s)
        sums = [xp.total(v) for v in (kept, given, xp.absolute(kept), xp.absolute(given))]
        return (kept, given, leak.signed, leak.absolute, masked.signed, masked.absolute, *sums)

    for shape, step in ((odd, "odd"), (even, "pieces")):
        yield from everyway(("map", "functions", step), functions, shape, shape, row)
        yield from everyway(("map", "walked", step), lambda xp, x, row: xp.mul(xp.transpose(x, (0, 2, 1, 3)), row),
                            shape, (5, 1, 1))  # fmt: skip
        yield from everyway(("map", "copy", step), lambda xp, x: xp.expand(x, (4, *x.shape)), shape)
        yield from everyway(("map", "books", step), residual, shape, shape, shape)
        yield from everyway(("map", "total", step), lambda xp, x: xp.total(x), shape)
        yield from everyway(("map", "row_total", step), lambda xp, x, row: xp.total(xp.mul(x, row)), shape, row)


def everyway(words: tuple[str, ...], body: Any, *shapes: tuple[int, ...], name: str = "") -> Iterator[Variant]:
    """Generated kernels of ``body``, or those called ``name``, in both precisions, with offsets of both widths."""
    for dtype, wide in itertools.product(DTYPES, (False, True)):
        found = launches(body, *shapes, dtype=dtype, wide=wide)
        wanted = [one for one in found if (one.name == name if name else one.name.startswith("map_"))]
        sources = {one.source: one for one in wanted}
        assert sources, f"{words}: none of {[one.name for one in found]}"
        for k, launch in enumerate(sources.values()):
            yield Variant((*words, *[str(k)] * (k > 0), dtype, *["wide"] * wide), launch)


# --- all of them ------------------------------------------------------------------------------------------------------

VARIANTS = [*contractions(), *grouped(), *windows(), *others(), *maps()]


def selection() -> list[Any]:
    """Every variant for every architecture; in CI the architectures take turns."""
    found = []
    for k, variant in enumerate(VARIANTS):
        able = [a for a in ARCHITECTURES if a >= variant.since]
        for j, architecture in enumerate(able):
            marks = [] if j == k % len(able) and not variant.seldom else [pytest.mark.slow]
            found.append(pytest.param(variant, architecture, id=f"{variant.id}-sm_{architecture}", marks=marks))
    return found


@pytest.fixture(scope="module")
def compiler() -> nvrtc.Nvrtc:
    found = nvrtc.find()
    if found is None:
        pytest.skip("NVRTC is missing: pip install nvidia-cuda-nvrtc")
    return found


# --- the tests --------------------------------------------------------------------------------------------------------


def test_no_kernel_is_forgotten() -> None:
    """Every file, every kernel in it, and every elementwise function has a variant; no two variants share a name."""
    files = sorted(KERNELS.glob("*.cu"))
    assert files
    sources = [variant.launch.source for variant in VARIANTS]
    names = {variant.launch.name for variant in VARIANTS}
    for file in files:
        content = file.read_text(encoding="utf-8")
        assert any(content in source for source in sources), f"{file.name} has no variant"
        missing = set(KERNEL.findall(content)) - names
        assert not missing, f"{file.name}: {missing} have no variant"
    generated = " ".join(source for source in sources if "map_" in source)
    calls = {function: re.sub(r"\{\d\}", r"\\w+", re.escape(call).replace(r"\{", "{").replace(r"\}", "}"))
             for function, call in text.FUNCTIONS.items()}  # fmt: skip
    assert {function for function, call in calls.items() if not re.search(f"= {call};", generated)} == set()
    assert len({variant.id for variant in VARIANTS}) == len(VARIANTS)


def test_every_architecture_and_every_tile_is_compiled_in_ci() -> None:
    chosen = [p.values for p in selection() if not p.marks]
    assert {architecture for _, architecture in chosen} == set(ARCHITECTURES)
    assert {variant.words for variant, _ in chosen} == {variant.words for variant in VARIANTS if not variant.seldom}
    # With the width of offsets and a contraction's last word, the epilogue, left out, nothing is seldom.
    assert {_kind(variant) for variant, _ in chosen} == {_kind(variant) for variant in VARIANTS}


def _kind(variant: Variant) -> tuple[str, ...]:
    words = variant.words[:-1] if "contraction" in variant.words else variant.words
    return tuple(word for word in words if word != "wide")


@pytest.mark.parametrize(("variant", "architecture"), selection())
def test_a_variant_compiles_without_spilling(compiler: nvrtc.Nvrtc, variant: Variant, architecture: int) -> None:
    usage = compiler.compile(variant.launch.source, architecture).kernels[variant.launch.name]
    assert usage.spill_bytes == 0
    assert usage.registers <= 128
    assert usage.shared_bytes <= 48 << 10


def test_a_spill_is_noticed(compiler: nvrtc.Nvrtc) -> None:
    """The largest tile with room for four blocks on a multiprocessor, which is half of its registers."""
    variant = next(v for v in VARIANTS if v.words == ("contraction", "float32", "8x8", "2d", "plain"))
    crowded = variant.launch.source.replace("__launch_bounds__(256, BLOCKS)", "__launch_bounds__(256, 4)")
    assert crowded != variant.launch.source
    assert compiler.compile(crowded, 80).kernels["contraction"].spill_bytes > 0


# --- what the PTX shows -----------------------------------------------------------------------------------------------


def chosen(*words: str) -> list[Variant]:
    found = [variant for variant in VARIANTS if set(words) <= set(variant.words)]
    assert found
    return found


def accesses(ptx: str, kind: str) -> list[str]:
    """The widths of all accesses of a kind, "ld.global" or "st.shared": "v4.f32", "f32", ..."""
    return re.findall(rf"\b{re.escape(kind)}(?:\.nc)?\.((?:v\d\.)?[a-z]\d+)\b", ptx)


PIECE = {"float32": {"v4.f32", "v4.b32", "v4.u32"}, "float64": {"v2.f64", "v2.b64", "v2.u64"}}


@pytest.mark.parametrize("architecture", [75, 90])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide", [False, True])
def test_generated_kernels_walk_memory_in_pieces(
    compiler: nvrtc.Nvrtc, dtype: str, wide: bool, architecture: int
) -> None:
    """The arrays of a residual Add, totals included: three are read and two written, 16 bytes at a time each."""
    (variant,) = (v for v in chosen("map", "books", "pieces", dtype) if ("wide" in v.words) == wide)
    ptx = compiler.ptx(variant.launch.source, architecture)
    read, written = accesses(ptx, "ld.global"), accesses(ptx, "st.global")
    assert len(read) == 3
    assert set(read) <= PIECE[dtype]
    assert len([width for width in written if width in PIECE[dtype]]) == 2
    assert {width for width in written if width not in PIECE[dtype]} <= {"f64", "b64"}  # a block's totals


def test_a_kernel_that_walks_cell_by_cell_is_noticed(compiler: nvrtc.Nvrtc) -> None:
    (variant,) = (v for v in chosen("map", "books", "odd", "float32") if "wide" not in v.words)
    assert PIECE["float32"].isdisjoint(accesses(compiler.ptx(variant.launch.source, 90), "ld.global"))


@pytest.mark.parametrize("variant", chosen("contraction", "2d", "plain"), ids=lambda v: v.id)
def test_contractions_read_in_pieces(compiler: nvrtc.Nvrtc, variant: Variant) -> None:
    """Weights come in pieces and go to shared memory in pieces; a thread's channels and pixels, too.

    On tensor cores the two rows of a fragment come together; weights are rounded before they get here.
    """
    dtype, size = variant.words[1:3]
    tm, tn = map(int, size.split("x"))
    piece = PIECE[dtype]
    ptx = compiler.ptx(variant.launch.source, 80)
    depth = 8 if tm * tn == 64 else 16
    lanes = 4 if dtype == "float32" else 2
    weights = -(-depth * 16 * tm // lanes // 256)  # of a tile, per thread; loaded in two places
    assert len([width for width in accesses(ptx, "ld.global") if width in piece]) == 2 * weights
    assert len([width for width in accesses(ptx, "st.shared") if width in piece]) == 2 * weights
    run = 1 if tn == 1 else 2 if "tf32" in variant.words else lanes
    stored = {1: dtype.replace("float", "f"), 2: dtype.replace("float", "v2.f"), 4: dtype.replace("float", "v4.f")}[run]
    assert accesses(ptx, "st.global") == [stored] * (tm * tn // run)
    shared = accesses(ptx, "ld.shared")
    if "tf32" in variant.words:
        assert "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32" in ptx
        assert ptx.count("cvt.rna.tf32.f32") == 2 * depth * 16 * tn // 256
        assert len([width for width in shared if width.startswith("v2")]) == depth * tm // 8
    else:
        assert "mma.sync" not in ptx
        pieces = sum(t // lanes for t in (tm, tn) if t > 1)
        assert len([width for width in shared if width in piece]) == depth * pieces
        assert len([width for width in shared if width not in piece]) == depth * (tm == 1) + depth * (tn == 1)
