// Sliding windows, one thread an output cell: sums, their adjoint, and the two steps of max-pooling's relevance.
//
//   window_sum       out = sum of the cells in each window
//   window_spread    out = sum of s over the windows that hold the cell
//   max_winner       winner = position of the first maximum in each window, -1 where a window lies on padding alone
//   max_route        out = sum of r over the windows that the cell won: overlaps add, nothing is added atomically
//
// -DKERNEL chooses one. A window that reaches over the end reads nothing there; padding never wins.
#define WINDOW_SUM 0
#define WINDOW_SPREAD 1
#define MAX_WINNER 2
#define MAX_ROUTE 3
#ifndef KERNEL
#define KERNEL WINDOW_SUM
#endif
#ifndef FINISH
#define FINISH_PARAMETERS , real* out
#define FINISH(o, acc) out[o] = acc;
#endif

// Spatial axes are three; a missing one has size 1. ``cells``: the threads that are wanted. ``winners``: windows that
// have one; r may have several images for each of them.
struct Windows {
    long long cells, winners;
    int in[3], out[3], kernel[3], stride[3], begin[3], dilation[3];
};

__device__ __forceinline__ int ceil_div(int a, int b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }
__device__ __forceinline__ int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

#if KERNEL == WINDOW_SUM || KERNEL == MAX_WINNER
// The taps of window ``o`` that fall into the input, along one axis: [low, high).
struct Taps { int low, high, first; };
__device__ __forceinline__ Taps taps_of(const Windows& w, int axis, int o)
{
    const int first = o * w.stride[axis] - w.begin[axis], d = w.dilation[axis];
    const int low = max(0, ceil_div(-first, d)), high = min(w.kernel[axis], ceil_div(w.in[axis] - first, d));
    return {low, high, first};
}
#else
// The taps through which windows read cell ``i``, along one axis: window (i + begin - tap * dilation) / stride, if whole.
struct Taps { int low, high, first; };
__device__ __forceinline__ Taps taps_of(const Windows& w, int axis, int i)
{
    const int first = i + w.begin[axis], d = w.dilation[axis];
    const int low = max(0, ceil_div(first - (w.out[axis] - 1) * w.stride[axis], d));
    const int high = min(w.kernel[axis], floor_div(first, d) + 1);
    return {low, high, first};
}
__device__ __forceinline__ int window_of(const Windows& w, int axis, const Taps& t, int tap)
{
    const int q = t.first - tap * w.dilation[axis];
    return q % w.stride[axis] ? -1 : q / w.stride[axis];
}
#endif

#if KERNEL == WINDOW_SUM
extern "C" __global__ void __launch_bounds__(256, 4) window_sum(
    const real* __restrict__ x, const Windows* __restrict__ windows FINISH_PARAMETERS)
#elif KERNEL == WINDOW_SPREAD
extern "C" __global__ void __launch_bounds__(256, 4) window_spread(
    const real* __restrict__ s, const Windows* __restrict__ windows FINISH_PARAMETERS)
#elif KERNEL == MAX_WINNER
extern "C" __global__ void __launch_bounds__(256, 4) max_winner(
    const real* __restrict__ x, const Windows* __restrict__ windows, int* __restrict__ winner)
#else
extern "C" __global__ void __launch_bounds__(256, 4) max_route(
    const int* __restrict__ winner, const real* __restrict__ r, const Windows* __restrict__ windows FINISH_PARAMETERS)
#endif
{
    const Windows& w = *windows;
    const long long thread = (long long)blockIdx.x * 256 + threadIdx.x;
    if (thread >= w.cells) return;
    const index_t o = (index_t)thread;
#if KERNEL == WINDOW_SUM || KERNEL == MAX_WINNER
    const int* size = w.out;
    const int* other = w.in;
#else
    const int* size = w.in;
    const int* other = w.out;
#endif
    const int plane_cells = size[0] * size[1] * size[2];
    const index_t plane = o / plane_cells;
    const int cell = (int)(o - plane * plane_cells);
    const index_t base = plane * (index_t)(other[0] * other[1] * other[2]);
    const Taps tz = taps_of(w, 0, cell / (size[1] * size[2]));
    const Taps ty = taps_of(w, 1, cell / size[2] % size[1]);
    const Taps tx = taps_of(w, 2, cell % size[2]);

#if KERNEL == WINDOW_SUM || KERNEL == MAX_WINNER
    real sum = 0;
    int best = -1;
    real most = 0;
    for (int i = tz.low; i < tz.high; ++i)
        for (int j = ty.low; j < ty.high; ++j)
            for (int k = tx.low; k < tx.high; ++k) {
                const int at = ((tz.first + i * w.dilation[0]) * w.in[1] + ty.first + j * w.dilation[1]) * w.in[2] + tx.first + k * w.dilation[2];
                const real value = x[base + at];
                sum += value;
                // -infinity never wins against nothing, as padding does not.
                if (exceeds(value, best < 0 ? -LARGEST * 2 : most)) { most = value; best = at; }
            }
#if KERNEL == WINDOW_SUM
    FINISH(o, sum)
#else
    winner[o] = best;
#endif
#else
    real sum = 0;
#if KERNEL == MAX_ROUTE
    const index_t shared = (index_t)w.winners;
    const index_t behind = base < shared || !shared ? 0 : base - base % shared;
#endif
    for (int i = tz.low; i < tz.high; ++i) {
        const int wz = window_of(w, 0, tz, i);
        if (wz < 0) continue;
        for (int j = ty.low; j < ty.high; ++j) {
            const int wy = window_of(w, 1, ty, j);
            if (wy < 0) continue;
            for (int k = tx.low; k < tx.high; ++k) {
                const int wx = window_of(w, 2, tx, k);
                if (wx < 0) continue;
                const index_t at = base + (index_t)((wz * w.out[1] + wy) * w.out[2] + wx);
#if KERNEL == WINDOW_SPREAD
                sum += s[at];
#else
                if (winner[at - behind] == cell) sum += r[at];
#endif
            }
        }
    }
    FINISH(o, sum)
#endif
}
