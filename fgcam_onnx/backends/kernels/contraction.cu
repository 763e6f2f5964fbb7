// A convolution, its adjoint, or a product with a weight matrix, as one implicit matrix product:
//
//   acc[m, pixel] = sum_k packed[k, m] * in[base(pixel) + offset(k)]          (0 where the tap lies outside the input)
//
// with k running over taps and input channels, m over the output channels of a group, pixel over images and output cells.
// The adjoint of a strided convolution is one such product for each residue class of its output cells (a *phase*): a
// stride-1 gather with fewer taps, so that no multiplication by zero is done. FINISH_RUN is generated: what the rule does
// with each sum (share with the relevance, times the activation, plus what arrived already), and where it is stored.
//
//   -DTM, -DTN    outputs of a thread: a block of 256 threads computes 16 TM channels of 16 TN pixels
//   -DAXES        2 (one or two spatial axes) or 3
//   -DTF32        1: products on tensor cores with operands rounded to TF32, sums in float; the weights come rounded
//   -DTERMS       pairs of input and weights that are added up. Two, (x+, w+) and (x-, w-) or the two halves of z^B, are
//                 one product: the second follows the first along k
//   -DUNIFORM     1: the k of a tile are channels of one tap, ``plane`` cells apart: whether a pixel's tap lies inside is
//                 asked once a tile
//   -DSPLIT       1: a block adds up a part of k; FINISH_RUN stores that partial sum
//   -DRUN         cells that are finished together: 1, or as many as a thread has side by side in memory, up to 16 bytes,
//                 where no run crosses the end of an image or of a row that is not next to its neighbour
//
// Nothing is added atomically, so the same input gives the same bits.
#ifndef TM
#define TM 8
#endif
#ifndef TN
#define TN 8
#endif
#ifndef AXES
#define AXES 2
#endif
#ifndef TF32
#define TF32 0
#endif
#ifndef TERMS
#define TERMS 1
#endif
#ifndef UNIFORM
#define UNIFORM 0
#endif
#ifndef SPLIT
#define SPLIT 0
#endif
#ifndef RUN
#define RUN 1
#endif
#ifndef FINISH_RUN
#define FINISH_PARAMETERS , real* out
#define FINISH_RUN(place, run) ((Run*)out)[(place) / RUN] = run;
#endif
#define BM (16 * TM)
#define BN (16 * TN)
#define BK (TM * TN == 64 ? 8 : 16)        // the largest tile has no registers left for a deeper one
#define PADDED_M (BM + 8)
#define PADDED_N (BN + 8)
#define PIECES ((BK * BM / LANES + 255) / 256)          // of the weight tile, per thread
#define GATHERED (BK * BN / 256)                        // of the input tile, per thread
#define BLOCKS (TM * TN * (int)sizeof(real) >= 64 || (WIDE && TN == 8) ? 2 : 3)    // a multiprocessor: ptxas leaves room for them

struct __align__(RUN * (int)sizeof(real)) Run { real lane[RUN]; };

// One phase, as the host writes it. Spatial axes are three; a missing one has size 1.
struct Phase {
    long long weights;                  // first packed weight
    int taps, tiles, tiles_first;       // first row of the tap table; k tiles in all, and of the first term
    int pixels;                         // images * cells of this phase
    int cells[3];                       // output cells of this phase, per axis
    int step[3], begin[3];              // input position of output cell i: i * step + begin
    int out_step[3], out_begin[3];      // output position of output cell i
};
// The sizes that the inner loop needs are arguments: those take no registers. The others are read where they are used.
struct Sizes {
    int m, groups, splits;
    int out[3];                         // spatial sizes of the output
    long long in_image, in_group, out_image, out_group, out_channel;
    long long packed_group;             // packed weights between groups
    long long whole;                    // elements of the output: where the next split's partial sums begin
};

#if TF32
__device__ __forceinline__ float rounded(float f)
{
#ifdef CUDA_ON_CPU
    return __uint_as_float(cuda_on_cpu::cvt_tf32(f));
#else
    unsigned u;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(f));
    return __uint_as_float(u);
#endif
}
__device__ __forceinline__ void multiply_add(float* d, const unsigned* a, const unsigned* b)
{
#ifdef CUDA_ON_CPU
    cuda_on_cpu::mma_tf32_m16n8k8(d, a, b, d);
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
#else
__device__ __forceinline__ real rounded(real f) { return f; }
#endif

extern "C" __global__ void __launch_bounds__(256, BLOCKS) contraction(
    const real* __restrict__ first, const real* __restrict__ second, const real* __restrict__ packed,
    const int4* __restrict__ taps, const Phase* phases, const Sizes* sizes, const int depth, const int height,
    const int width, const int plane, const int padded_m FINISH_PARAMETERS)
{
    __shared__ __align__(16) real weights[2][BK * PADDED_M];
    __shared__ __align__(16) real gathered[2][BK * PADDED_N];
    const Sizes& s = *sizes;
    const int group = blockIdx.z / s.splits % s.groups;
    const Phase& p = phases[blockIdx.z / s.splits / s.groups];
    const int tid = threadIdx.x;
    const int m0 = blockIdx.y * BM;
    const int n0 = blockIdx.x * BN;
    if (n0 >= p.pixels) return;         // phases differ in size; the whole block leaves
    const int cells = p.cells[0] * p.cells[1] * p.cells[2];

    // What this thread gathers: one pixel's column, every (256 / BN)-th k.
    const int column = tid % BN, row = tid / BN;
    const int pixel = n0 + column;
    const bool here = pixel < p.pixels;
    const int image = here ? pixel / cells : 0;
    const int cell = here ? pixel - image * cells : 0;
    const int x = cell % p.cells[2] * p.step[2] + p.begin[2];
    const int line = cell / p.cells[2] % p.cells[1] * p.step[1] + p.begin[1];
    const int y = here ? line : -(1 << 29);     // a thread without a pixel reads from nowhere
#if AXES == 3
    const int z = cell / (p.cells[2] * p.cells[1]) * p.step[0] + p.begin[0];
    const offset_t base = ((offset_t)z * height + line) * width + x;
#else
    const offset_t base = (offset_t)line * width + x;
#endif
    // Offsets and not pointers: half the registers.
#if UNIFORM
    const offset_t origin = (offset_t)(image * s.in_image + group * s.in_group) + base + (offset_t)row * plane;
    const int table = p.taps;
#else
    const offset_t origin = (offset_t)(image * s.in_image + group * s.in_group) + base;
    const int table = p.taps + row;
#endif
    const offset_t corner = (offset_t)(p.weights + group * s.packed_group) + m0;

#if TERMS == 2
    const int tiles_first = p.tiles_first;
#endif
    // Does the tap of a row of the table, {offset, dz, dy, dx}, lie inside the input?
    auto inside = [&](const int4& t) -> bool {
#if AXES == 3
        if ((unsigned)(z + t.y) >= (unsigned)depth) return false;
#endif
        return ((unsigned)(y + t.z) < (unsigned)height) & ((unsigned)(x + t.w) < (unsigned)width);
    };
    Piece from_weights[PIECES];
    real from_input[GATHERED];
    auto load = [&](int tile) {
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            const int e = tid + 256 * i;
            if (PIECES * 256 * LANES == BK * BM || e < BK * BM / LANES)
                from_weights[i] = *(const Piece*)(packed + (corner + (offset_t)(tile * BK + e / (BM / LANES)) * padded_m + e % (BM / LANES) * LANES));
        }
#if TERMS == 2
        const real* __restrict__ in = tile < tiles_first ? first : second;
#else
        const real* __restrict__ in = first;
#endif
#if UNIFORM
        const int4 t = __ldg(taps + (table + tile * BK));
        const bool there = inside(t);
        const offset_t at = origin + t.x;
#pragma unroll
        for (int i = 0; i < GATHERED; ++i)
            from_input[i] = there ? __ldg(in + (at + (offset_t)(256 / BN * i) * plane)) : (real)0;
#else
#pragma unroll
        for (int i = 0; i < GATHERED; ++i) {
            const int4 t = __ldg(taps + (table + tile * BK + 256 / BN * i));
            from_input[i] = inside(t) ? __ldg(in + (origin + t.x)) : (real)0;
        }
#endif
    };
    auto store = [&](int buffer) {
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            const int e = tid + 256 * i;
            if (PIECES * 256 * LANES == BK * BM || e < BK * BM / LANES) {
                // By pieces and not by cells: else NVRTC writes one of two cell by cell.
                ((Piece*)weights[buffer])[e / (BM / LANES) * (PADDED_M / LANES) + e % (BM / LANES)] = from_weights[i];
            }
        }
#pragma unroll
        for (int i = 0; i < GATHERED; ++i) gathered[buffer][(row + 256 / BN * i) * PADDED_N + column] = rounded(from_input[i]);
    };

#if SPLIT
    const int part = blockIdx.z % s.splits;
    const int begin = (int)((long long)p.tiles * part / s.splits), end = (int)((long long)p.tiles * (part + 1) / s.splits);
#else
    const int begin = 0, end = p.tiles;
#endif
#if TF32
    // Eight warps, 2 x 4: each computes 8 TM channels of 4 TN pixels in fragments of 16 x 8. Which channel is which row
    // of a fragment is free: row g + 8 h of fragment i is channel 16 i + 2 g + h, so that the two rows of a thread lie
    // side by side in shared memory and land in the registers where mma wants them. No two threads meet at a bank.
    const int lane = tid & 31, warp = tid >> 5, g = lane >> 2, t4 = lane & 3;
    const int wm = (warp >> 2) * (BM / 2), wn = (warp & 3) * (BN / 4);
    float acc[BM / 32][BN / 32][4] = {};
#else
    const int tx = tid & 15, ty = tid >> 4;
    real acc[TM][TN] = {};
#endif
    if (begin < end) {
        load(begin);
        store(begin & 1);
    }
    __syncthreads();
    for (int tile = begin; tile < end; ++tile) {
        const int now = tile & 1;
        if (tile + 1 < end) load(tile + 1);
        const real* A = weights[now];
        const real* B = gathered[now];
#if TF32
#pragma unroll
        for (int k = 0; k < BK; k += 8) {
            unsigned a[BM / 32][4], b[BN / 32][2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float* channels_at = A + (k + t4 + 4 * half) * PADDED_M + wm + 2 * g;
                const float* pixels_at = B + (k + t4 + 4 * half) * PADDED_N + wn + g;
#pragma unroll
                for (int i = 0; i < BM / 32; ++i) {
                    const float2 two = *(const float2*)(channels_at + 16 * i);
                    a[i][2 * half] = __float_as_uint(two.x);
                    a[i][2 * half + 1] = __float_as_uint(two.y);
                }
#pragma unroll
                for (int j = 0; j < BN / 32; ++j) b[j][half] = __float_as_uint(pixels_at[8 * j]);
            }
#pragma unroll
            for (int i = 0; i < BM / 32; ++i)
#pragma unroll
                for (int j = 0; j < BN / 32; ++j) multiply_add(acc[i][j], a[i], b[j]);
        }
#else
        // A thread owns runs of up to four channels and pixels, 64 apart: shared memory is read 16 bytes at a time.
#pragma unroll
        for (int k = 0; k < BK; ++k) {
            real a[TM], b[TN];
#pragma unroll
            for (int i = 0; i < TM; ++i) a[i] = A[k * PADDED_M + (TM == 1 ? ty : ty * 4 + (i & 3) + (i >> 2) * 64)];
#pragma unroll
            for (int j = 0; j < TN; ++j) b[j] = B[k * PADDED_N + (TN == 1 ? tx : tx * 4 + (j & 3) + (j >> 2) * 64)];
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TN; ++j) acc[i][j] = fma(a[i], b[j], acc[i][j]);
        }
#endif
        if (tile + 1 < end) store(now ^ 1);
        __syncthreads();
    }

    // Where the results belong: one place a pixel, one step a channel.
    const int groups = s.groups, channels = s.m, wanted = p.pixels;
    auto put = [&](int m, index_t o, const Run& run) {
        o += (index_t)(m * s.out_channel);
        FINISH_RUN(o, run)
    };
    auto place = [&](int n) {
        const int size = p.cells[0] * p.cells[1] * p.cells[2], i = n / size, c = n - i * size;
        const int px = c % p.cells[2] * p.out_step[2] + p.out_begin[2];
        const int py = c / p.cells[2] % p.cells[1] * p.out_step[1] + p.out_begin[1];
#if AXES == 3
        const int pz = c / (p.cells[2] * p.cells[1]) * p.out_step[0] + p.out_begin[0];
        const long long at = ((long long)pz * s.out[1] + py) * s.out[2] + px;
#else
        const long long at = (long long)py * s.out[2] + px;
#endif
        const int g_ = blockIdx.z / s.splits % groups;
        return (index_t)(i * s.out_image + g_ * s.out_group + at + (SPLIT ? blockIdx.z % s.splits * s.whole : 0));
    };
#if TF32
#pragma unroll
    for (int j = 0; j < BN / 32; ++j)
#pragma unroll
        for (int c = 0; c < 2; c += RUN) {
            const int n = n0 + wn + 8 * j + 2 * t4 + c;
            if (n >= wanted) continue;
            const index_t o = place(n);
#pragma unroll
            for (int i = 0; i < BM / 32; ++i)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const int m = m0 + wm + 16 * i + 2 * g + r;
                    Run run;
#pragma unroll
                    for (int l = 0; l < RUN; ++l) run.lane[l] = acc[i][j][2 * r + c + l];
                    if (m < channels) put(m, o, run);
                }
        }
#else
#pragma unroll
    for (int j = 0; j < TN; j += RUN) {
        const int n = n0 + (TN == 1 ? tx : tx * 4 + (j & 3) + (j >> 2) * 64);
        if (n >= wanted) continue;
        const index_t o = place(n);
#pragma unroll
        for (int i = 0; i < TM; ++i) {
            const int m = m0 + (TM == 1 ? ty : ty * 4 + (i & 3) + (i >> 2) * 64);
            Run run;
#pragma unroll
            for (int l = 0; l < RUN; ++l) run.lane[l] = acc[i][j + l];
            if (m < channels) put(m, o, run);
        }
    }
#endif
}
