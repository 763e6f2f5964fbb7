// Grouped and depthwise convolution and its adjoint, one thread an output cell.
//
//   conv:     acc[n, co, o] = sum_{ci, tap} w[co, ci, tap] x[n, group ci, o stride - begin + tap dilation]
//   adjoint:  acc[n, ci, i] = sum_{co, tap} w[co, ci, tap] s[n, group co, (i + begin - tap dilation) / stride, if whole]
//
// With few channels in a group there is no matrix to multiply: this reads little and waits for memory.
//   -DADJOINT    0 | 1
//   -DTERMS      1 or 2 pairs of input and weights, added up
#ifndef ADJOINT
#define ADJOINT 0
#endif
#ifndef TERMS
#define TERMS 1
#endif
#ifndef FINISH
#define FINISH_PARAMETERS , real* out
#define FINISH(o, acc) out[o] = acc;
#endif
#define BLOCKS (WIDE && TERMS == 2 ? 3 : 4)     // on a multiprocessor: without a number ptxas spills to fit more of them

// Of the convolution, whichever way it is walked. Spatial axes are three. ``ci``, ``co``: channels of one group.
struct Grouped {
    long long cells;
    int groups, ci, co;
    int in[3], out[3], kernel[3], stride[3], begin[3], dilation[3];
};

// The other side's position for tap k of position i, or -1.
__device__ __forceinline__ int partner(const Grouped& g, int axis, int i, int k)
{
#if ADJOINT
    const int q = i + g.begin[axis] - k * g.dilation[axis];
    return q < 0 || q % g.stride[axis] || q / g.stride[axis] >= g.out[axis] ? -1 : q / g.stride[axis];
#else
    const int p = i * g.stride[axis] - g.begin[axis] + k * g.dilation[axis];
    return p < 0 || p >= g.in[axis] ? -1 : p;
#endif
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS) conv_direct(
    const real* __restrict__ first, const real* __restrict__ second, const real* __restrict__ w_first,
    const real* __restrict__ w_second, const Grouped* __restrict__ sizes FINISH_PARAMETERS)
{
    const Grouped& g = *sizes;
    const long long thread = (long long)blockIdx.x * 256 + threadIdx.x;
    if (thread >= g.cells) return;
    const index_t o = (index_t)thread;
    const int* here = ADJOINT ? g.in : g.out;
    const int* there = ADJOINT ? g.out : g.in;
    const int mine = ADJOINT ? g.ci : g.co, theirs = ADJOINT ? g.co : g.ci;
    const int cells = here[0] * here[1] * here[2], others = there[0] * there[1] * there[2];
    const int taps = g.kernel[0] * g.kernel[1] * g.kernel[2];
    const index_t plane = o / cells;
    const int cell = (int)(o - plane * cells);
    const int channel = (int)(plane % (index_t)(mine * g.groups)), group = channel / mine;
    const index_t image = plane / (index_t)(mine * g.groups);
    const index_t base = (image * (index_t)g.groups + group) * (index_t)theirs * others;
    // w [co, ci / group, taps]: the steps along the other side's channels
    const index_t corner = ADJOINT ? (index_t)group * g.co * g.ci * taps + (index_t)(channel - group * mine) * taps
                                   : (index_t)channel * g.ci * taps;
    const int stride = ADJOINT ? g.ci * taps : taps;

    real acc = 0;
    for (int i = 0; i < g.kernel[0]; ++i) {
        const int z = partner(g, 0, cell / (here[1] * here[2]), i);
        if (z < 0) continue;
        for (int j = 0; j < g.kernel[1]; ++j) {
            const int y = partner(g, 1, cell / here[2] % here[1], j);
            if (y < 0) continue;
            for (int k = 0; k < g.kernel[2]; ++k) {
                const int x = partner(g, 2, cell % here[2], k);
                if (x < 0) continue;
                const index_t at = base + (index_t)((z * there[1] + y) * there[2] + x);
                const index_t weight = corner + (index_t)((i * g.kernel[1] + j) * g.kernel[2] + k);
                for (int c = 0; c < theirs; ++c) {
                    acc = fma(w_first[weight + (index_t)c * stride], first[at + (index_t)c * others], acc);
#if TERMS == 2
                    acc = fma(w_second[weight + (index_t)c * stride], second[at + (index_t)c * others], acc);
#endif
                }
            }
        }
    }
    FINISH(o, acc)
}
