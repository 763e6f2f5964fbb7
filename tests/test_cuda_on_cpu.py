"""The harness that runs CUDA kernels without a GPU: a bug in it would pass wrong kernels."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import nvrtc
import pytest
from cuda_on_cpu import CompilerMissing, CpuModule, thread_order
from cuda_on_cpu.module import CpuKernel
from numpy.typing import NDArray

ORDERS = (0, 1, 12345)
TINY = np.float32(1e-40)  # denormal in float32


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    try:
        CpuModule('extern "C" __global__ void nothing() {}')
    except CompilerMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def compiler() -> nvrtc.Nvrtc:
    found = nvrtc.find()
    if found is None:
        pytest.skip("NVRTC is missing: pip install nvidia-cuda-nvrtc")
    return found


def kernel(body: str, parameters: str, *, before: str = "", flush_denormals: bool | None = None) -> CpuKernel:
    code = f'{before}\nextern "C" __global__ void __launch_bounds__(1024) k({parameters}) {{ {body} }}'
    return CpuModule(code, flush_denormals=flush_denormals).get_function("k")


# ------------------------------------------------------------------------------------------------------------ arguments


def test_arguments_of_each_kind_arrive() -> None:
    shape = np.dtype([("rows", np.int32), ("scale", np.float64), ("sizes", np.int32, 3)], align=True)
    given = np.array((3, 0.25, (4, 5, 6)), dtype=shape)
    k = kernel(
        """out[0] = x[1]; out[1] = i; out[2] = f; out[3] = d; out[4] = s.rows * s.scale + s.sizes[2];
           out[5] = l; out[6] = e; out[7] = none == nullptr; out[8] = empty == nullptr; out[9] = b; out[10] = raw[2];
           out[11] = v.w;""",
        "const float* __restrict__ x, int i, float f, double d, Shape s, long long l, double e, const float* none, "
        "const float* empty, bool b, const float* raw, float4 v, double* out",
        before="struct Shape { int rows; double scale; int sizes[3]; };",
    )
    x = np.array([1, 2, 3], np.float32)
    out = np.zeros(12)
    v = np.array((1, 2, 3, 4), dtype=[(name, np.float32) for name in "xyzw"])
    raw = SimpleNamespace(pointer=x.ctypes.data)
    empty = np.empty((0, 3), np.float32)
    arguments = (x, np.int32(-7), np.float32(1.5), np.float64(0.1), given, 2**40, 0.3, None, empty, np.True_, raw)
    k((1,), (1,), (*arguments, v[()], out))
    assert out.tolist() == [2, -7, 1.5, 0.1, 6.75, 2**40, 0.3, 1, 1, 1, 3, 4]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        (np.zeros(1), "pointer to float64, its parameter a pointer to float32"),
        (np.zeros(1, np.int32), "pointer to integer32"),
        (np.float32(1), "float of 4 bytes, its parameter a pointer"),
        (3, "integer of 8 bytes"),
    ],
)
def test_a_wrong_argument_is_refused(argument: object, words: str) -> None:
    k = kernel("", "float* x")
    with pytest.raises(TypeError, match=words):
        k((1,), (1,), (argument,))
    with pytest.raises(TypeError, match="1 parameters, not 2"):
        k((1,), (1,), (None, None))


def test_launches_that_a_gpu_refuses() -> None:
    k = kernel("", "")
    for grid, block in (((0,), (1,)), ((1, 65536), (1,)), ((1,), (1025,)), ((1,), (64, 32)), ((1, 1, 1, 1), (1,))):
        with pytest.raises(ValueError, match="k: "):
            k(grid, block, ())


def test_options_names_and_errors(tmp_path: Path) -> None:
    code = """
    // extern "C" __global__ void gone(int n) {}
    extern "C" __global__ void __launch_bounds__((2) * (SIZE), 1) first(float* x) { x[0] = SIZE; }
    extern "C" __launch_bounds__(32) __global__ void second(float* x) { x[0] = -SIZE; }
    """
    module = CpuModule(code, ("-DSIZE=16", "--std=c++17", "-I/nowhere"), cache=tmp_path)
    assert module.names == ["first", "second"]
    x = np.zeros(1, np.float32)
    module.get_function("second")((1,), (1,), (x,))
    assert x[0] == -16
    with pytest.raises(KeyError, match="gone"):
        module.get_function("gone")
    with pytest.raises(RuntimeError, match=r"kernel\.cu:1:\d+: error: .*no_such_function"):
        CpuModule('extern "C" __global__ void k() { no_such_function(); }', cache=tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".o", ".so"}, "a failed build leaves nothing"


def test_several_builds_of_one_kernel_at_once(tmp_path: Path) -> None:
    code = 'extern "C" __global__ void k(float* x) { x[0] = 5; }'

    def build(_: int) -> float:
        x = np.zeros(1, np.float32)
        CpuModule(code, cache=tmp_path).get_function("k")((1,), (1,), (x,))
        return float(x[0])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(build, range(4))) == [5] * 4
    assert len(list(tmp_path.iterdir())) == 2


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilerMissing, match="g\\+\\+"):
        CpuModule('extern "C" __global__ void k() {}', cache=tmp_path)


# -------------------------------------------------------------------------------------------------- the order of things


@pytest.mark.parametrize("barrier", ["", "__syncthreads();"])
def test_order_of_threads_and_blocks(barrier: str) -> None:
    k = kernel(
        f"""if (blockIdx.y < gridDim.y) {{ {barrier} }}
            int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
            int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
            seen[atomicAdd(count, 1)] = block * blockDim.x * blockDim.y * blockDim.z + thread;""",
        "int* seen, int* count",
    )
    total = 5 * 2 * 3 * 4 * 2 * 3
    found = {}
    for order in (*ORDERS, 7):
        seen, count = np.full(total, -1, np.int32), np.zeros(1, np.int32)
        with thread_order(order):
            k((5, 2, 3), (4, 2, 3), (seen, count))
        assert sorted(seen) == list(range(total))
        found[order] = seen.tolist()
    assert found[0] == list(range(total))
    assert found[1] == found[0][::-1]
    assert len({tuple(order) for order in found.values()}) == 4


REVERSE = """
    __shared__ float row[64];
    row[threadIdx.x] = x[threadIdx.x];
    {barrier}
    x[threadIdx.x] = row[63 - threadIdx.x];
"""


def test_a_dropped_barrier_shows() -> None:
    x = np.arange(64, dtype=np.float32)
    for order in ORDERS:
        good, bad = x.copy(), x.copy()
        with thread_order(order):
            kernel(REVERSE.format(barrier="__syncthreads();"), "float* x")((1,), (64,), (good,))
            kernel(REVERSE.format(barrier=""), "float* x")((1,), (64,), (bad,))
        np.testing.assert_array_equal(good, x[::-1])
        assert np.isnan(bad).any(), "shared memory is not initialised"


def test_a_race_shows_in_one_of_the_orders() -> None:
    """Each thread reads what its right neighbour writes: right in order 0 even without the barrier."""
    body = "float next = x[threadIdx.x + 1]; {barrier} x[threadIdx.x] = next;"
    x = np.arange(65, dtype=np.float32)
    expected = np.append(x[1:], x[-1])
    right = {}
    for barrier in ("__syncthreads();", ""):
        k = kernel(body.format(barrier=barrier), "float* x")
        for order in ORDERS:
            out = x.copy()
            with thread_order(order):
                k((1,), (64,), (out,))
            right[barrier, order] = bool((out == expected).all())
    assert [right["__syncthreads();", order] for order in ORDERS] == [True] * 3
    assert [right["", order] for order in ORDERS] == [True, False, False]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("if (threadIdx.x < 16) __syncthreads(); else __syncwarp();", "never reach"),
        ("if (threadIdx.x % 2) __shfl_xor_sync(0xffffffffu, 1.0f, 1); else __syncwarp();", "never reach"),
        ("if (threadIdx.x % 2) __syncwarp(0x55555555u);", "mask does not name it"),
        ("volatile char big[80000]; for (int i = 0; i < 80000; ++i) big[i] = 1; __syncthreads();", "KiB of stack"),
    ],
)
def test_divergence_is_reported(body: str, words: str, order: int) -> None:
    with thread_order(order), pytest.raises(RuntimeError, match=words):
        kernel(body, "")((2,), (64,), ())


@pytest.mark.parametrize("order", ORDERS)
def test_threads_that_have_left_count_as_arrived(order: int) -> None:
    body = "if (threadIdx.x < 16) return; for (int i = 0; i < 3; ++i) { __syncthreads(); __syncwarp(); } x[0] += 1;"
    x = np.zeros(1, np.float32)
    with thread_order(order):
        kernel(body, "float* x")((2,), (40,), (x,))
    assert x[0] == 2 * 24


def test_a_barrier_made_by_a_macro_is_seen() -> None:
    pasted = kernel("PASTE(__sy, ncthreads)();", "", before="#define PASTE(a, b) a##b\n")
    assert pasted.barriers
    pasted((1,), (32,), ())


# ----------------------------------------------------------------------------------------------- exchanges and the like


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("ctype", "dtype"), [("float", "f4"), ("double", "f8"), ("int", "i4"), ("long long", "i8")])
def test_shuffles(ctype: str, dtype: str, order: int) -> None:
    k = kernel(
        """int t = threadIdx.x; T v = x[t];
           out[t] = __shfl_down_sync(0xffffffffu, v, 3); out[64 + t] = __shfl_up_sync(0xffffffffu, v, 5);
           out[128 + t] = __shfl_xor_sync(0xffffffffu, v, 9); out[192 + t] = __shfl_sync(0xffffffffu, v, 7, 16);
           unsigned half = t % 32 < 16 ? 0xffffu : 0xffff0000u;
           for (int step = 0; step <= t % 32 / 16; ++step) v = __shfl_xor_sync(half, v, 1, 16);
           out[256 + t] = v;""",
        "const T* x, T* out",
        before=f"typedef {ctype} T;",
    )
    x = np.random.default_rng(0).integers(-(2**30), 2**30, 64).astype(dtype)
    out = np.zeros((5, 64), dtype)
    with thread_order(order):
        k((1,), (64,), (x, out))
    t = np.arange(64)
    lane, warp = t % 32, t // 32 * 32
    np.testing.assert_array_equal(out[0], x[np.where(lane + 3 < 32, t + 3, t)])
    np.testing.assert_array_equal(out[1], x[np.where(lane >= 5, t - 5, t)])
    np.testing.assert_array_equal(out[2], x[warp + (lane ^ 9)])
    np.testing.assert_array_equal(out[3], x[warp + lane // 16 * 16 + 7])
    np.testing.assert_array_equal(out[4], np.where(lane < 16, x[t ^ 1], x))


@pytest.mark.parametrize("order", ORDERS)
def test_votes(order: int) -> None:
    k = kernel(
        """int t = threadIdx.x, p = x[t];
           out[t] = __syncthreads_count(p); out[96 + t] = __syncthreads_or(t == 95);
           out[192 + t] = __syncthreads_and(p);
           out[288 + t] = __ballot_sync(~0u, p); out[384 + t] = __any_sync(~0u, p) + 2 * __all_sync(~0u, t < 64);""",
        "const int* x, unsigned* out",
    )
    x = np.random.default_rng(1).integers(0, 2, 96).astype(np.int32)
    x[32:64] = 0
    out = np.zeros((5, 96), np.uint32)
    with thread_order(order):
        k((1,), (96,), (x, out))
    assert (out[0] == x.sum()).all()
    assert (out[1] == 1).all()
    assert (out[2] == 0).all()
    ballots = (x.reshape(3, 32).astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1)
    np.testing.assert_array_equal(out[3], np.repeat(ballots, 32))
    np.testing.assert_array_equal(out[4], np.repeat([3, 2, 1], 32))


@pytest.mark.parametrize("order", ORDERS)
def test_reduction_with_static_and_dynamic_shared_memory(order: int) -> None:
    k = kernel(
        """extern __shared__ float part[];
           __shared__ float sum;
           float v = 0.0f;
           for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
           for (int o = 16; o; o >>= 1) v += __shfl_down_sync(0xffffffffu, v, o);
           if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
           __syncthreads();
           if (threadIdx.x == 0) {
               sum = 0.0f;
               for (int i = 0; i < blockDim.x / 32; ++i) sum += part[i];
           }
           __syncthreads();
           if (threadIdx.x == blockDim.x - 1) out[blockIdx.x] = sum;""",
        "const float* __restrict__ x, float* __restrict__ out, int n",
    )
    x = np.random.default_rng(2).random(5000, np.float32)
    out = np.zeros(3, np.float32)
    with thread_order(order):
        k((3,), (256,), (x, out, np.int32(x.size)), shared_mem=32)
    np.testing.assert_allclose(out.sum(), x.sum(dtype=np.float64), rtol=1e-6)


def test_shared_memory_of_templates_and_inlined_functions() -> None:
    before = """
    template <int N> __device__ float total(float v) {
        __shared__ float s[N];
        s[threadIdx.x] = v;
        __syncthreads();
        float sum = 0.0f;
        for (int i = 0; i < N; ++i) sum += s[i];
        return sum;
    }
    __device__ __forceinline__ float first(float v) {
        __shared__ float s;
        if (threadIdx.x == 0) s = v;
        __syncthreads();
        return s;
    }"""
    body = (
        "__shared__ float s[32]; s[threadIdx.x] = 1.0f; x[threadIdx.x] = total<32>(threadIdx.x) + first(5.0f) + s[3];"
    )
    x = np.zeros(32, np.float32)
    kernel(body, "float* x", before=before)((1,), (32,), (x,))
    np.testing.assert_array_equal(x, 31 * 16 + 5 + 1)


def to_tf32(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.parametrize("order", ORDERS)
def test_tensor_core_product(order: int) -> None:
    k = kernel(
        """int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, w = threadIdx.x / 32;
           a += w * 128; b += w * 64; c += w * 128;
           unsigned fa[4] = {TF(a[g * 8 + t]), TF(a[(g + 8) * 8 + t]), TF(a[g * 8 + t + 4]),
                             TF(a[(g + 8) * 8 + t + 4])};
           unsigned fb[2] = {TF(b[t * 8 + g]), TF(b[(t + 4) * 8 + g])};
           float d[4];
           for (int i = 0; i < 4; ++i) d[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
           for (int i = 0; i < 2; ++i) cuda_on_cpu::mma_tf32_m16n8k8(d, fa, fb, d);
           for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];""",
        "const float* a, const float* b, float* c",
        before="#define TF cuda_on_cpu::cvt_tf32",
    )
    rng = np.random.default_rng(3)
    a, b, c = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 16, 8), (2, 8, 8), (2, 16, 8)))
    expected = c + 2 * (to_tf32(a).astype(np.float64) @ to_tf32(b))
    assert np.abs(expected - c - 2 * (a @ b)).max() > 1e-4, "the operands are rounded"
    with thread_order(order):
        k((1,), (64,), (a, b, c))
    np.testing.assert_allclose(c, expected, rtol=1e-6, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- numbers


def test_denormals() -> None:
    """Flushed like CuPy's -ftz=true, kept where told and for float64, and the caller's setting comes back."""
    x = np.full(2, TINY)
    for flush, expected in ((None, 0), (True, 0), (False, 2 * TINY)):
        out = np.ones(2, np.float32)
        k = kernel("y[threadIdx.x] = x[threadIdx.x] * 2.0f;", "const float* x, float* y", flush_denormals=flush)
        k((1,), (2,), (x, out))
        assert (out == np.float32(expected)).all(), flush
    assert (x * np.float32(2) > 0).all()

    y = np.full(1, 1e-310)
    kernel("/* not a float */ __syncthreads(); y[0] *= 2.0;", "double* y")((1,), (1,), (y,))
    assert y[0] == 2e-310


def test_functions() -> None:
    body = """
    out[0] = fmaxf(NAN_, x); out[1] = fminf(x, NAN_); out[2] = fmaf(x, x, -4.0f); out[3] = rsqrtf(4.0f);
    out[4] = __fdividef(1.0f, x); out[5] = erff(x); out[6] = tanhf(x); out[7] = powf(x, 3.0f); out[8] = __ldg(&out[7]);
    out[9] = isnan(NAN_) + 2 * isnan(x); out[10] = max(3, min(x, 2.5f)); out[11] = floorf(-x / 4.0f);
    out[12] = __int_as_float(__float_as_int(x)); out[13] = __longlong_as_double(__double_as_longlong(0.5));
    out[14] = exp(x); out[15] = log(exp((double)x)); out[16] = __fdiv_rn(x, 3.0f); __threadfence();
    float4 v = make_float4(1, 2, 3, x); int2 i = make_int2(4, 5);
    double2 d = make_double2(6, 7); out[17] = v.w + i.y + d.x;
    out[18] = x * 3.0f - product;
    """
    before = "#define NAN_ __int_as_float(0x7fc00000)"
    out = np.zeros(19, np.float32)
    third = np.float32(1) / np.float32(3)
    product = third * np.float32(3)
    kernel(body, "float x, float product, float* out", before=before)((1,), (1,), (np.float32(2), product, out))
    expected = [2, 2, 0, 0.5, 0.5, 0.99532227, 0.9640276, 8, 8, 1, 3, -1, 2, 0.5, np.exp(2), 2, 2 / 3, 13, 6 - product]
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    out[:] = 1
    kernel(body, "float x, float product, float* out", before=before)((1,), (1,), (third, product, out))
    assert out[18] == 0, "a * b - c is not contracted: fmaf would leave the rounding of the product"


# ---------------------------------------------------------------------------------------------------------------- NVRTC

SPILLS = """
extern "C" __global__ void __launch_bounds__(1024) spills(float* x, int n) {
    float v[96], s = 0.0f;
    for (int i = 0; i < 96; ++i) v[i] = x[i * n + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < 96; ++i) for (int j = 0; j < 4; ++j) s = fmaf(v[i], v[(i * 7 + j * 13) % 96], s);
    for (int i = 0; i < 96; ++i) x[i * n + threadIdx.x] = v[95 - i] * s;
}
"""


@pytest.mark.parametrize("architecture", [75, 80, 90, 100])
def test_nvrtc_compiles(compiler: nvrtc.Nvrtc, architecture: int) -> None:
    if architecture not in compiler.architectures():
        pytest.skip(f"this NVRTC knows no sm_{architecture}")
    reverse = 'extern "C" __global__ void k(float* x) {' + REVERSE.format(barrier="__syncthreads();") + "}"
    compiled = compiler.compile(reverse + SPILLS, architecture)
    assert compiled.cubin.startswith(b"\x7fELF")
    small, large = compiled.kernels["k"], compiled.kernels["spills"]
    assert small.spill_bytes == small.stack_bytes == large.shared_bytes == 0
    assert small.shared_bytes >= 64 * 4
    assert 0 < small.registers < large.registers <= 64
    assert large.spill_bytes > 0 < large.stack_bytes


def test_nvrtc_errors_show_the_log(compiler: nvrtc.Nvrtc) -> None:
    with pytest.raises(nvrtc.CompileError, match="no_such_function"):
        compiler.compile('extern "C" __global__ void k() { no_such_function(); }', 80)
    compiler.compile('extern "C" __global__ void k() { int i = SIZE; }', 80, ["-DSIZE=3"])
