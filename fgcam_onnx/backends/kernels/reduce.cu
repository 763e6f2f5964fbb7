// Sum, maximum or minimum over the middle axis of [outer, length, inner] -> [outer, inner].
//
//   -DKERNEL    0 sum (added up in double), 1 maximum, 2 minimum; NaN wins, as in NumPy
//   -DSHORT     1: a thread a result, for short axes and many results: neighbours read neighbours
//               0: a block for each result and chunk of the axis. A long axis is cut into chunks and reduced twice, so
//               that one image's extreme values keep the whole device busy
#ifndef KERNEL
#define KERNEL 0
#endif
#ifndef SHORT
#define SHORT 0
#endif
#if KERNEL == 0
typedef double total_t;
#define START 0.0
#define JOIN(a, b) ((a) + (b))
#elif KERNEL == 1
typedef real total_t;
#define START (-LARGEST * 2)
#define JOIN(a, b) larger(a, b)
#else
typedef real total_t;
#define START (LARGEST * 2)
#define JOIN(a, b) smaller(a, b)
#endif

#if SHORT
extern "C" __global__ void __launch_bounds__(256) reduce_short(
    const real* __restrict__ x, real* __restrict__ out, const long long length, const long long inner,
    const long long results)
{
    const long long result = (long long)blockIdx.x * 256 + threadIdx.x;
    if (result >= results) return;
    const real* from = x + result / inner * length * inner + result % inner;
    total_t value = START;
    for (long long i = 0; i < length; ++i) {
        const total_t next = (total_t)from[i * inner];
        value = JOIN(value, next);
    }
    out[result] = (real)value;
}
#else
extern "C" __global__ void __launch_bounds__(256) reduce(
    const real* __restrict__ x, real* __restrict__ out, const long long length, const long long inner, const int chunks)
{
    __shared__ total_t shared[256];
    const long long result = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
    const long long first = length * chunk / chunks, last = length * (chunk + 1) / chunks;
    const real* from = x + result / inner * length * inner + result % inner;
    total_t value = START;
    for (long long i = first + threadIdx.x; i < last; i += 256) {
        const total_t next = (total_t)from[i * inner];
        value = JOIN(value, next);
    }
    shared[threadIdx.x] = value;
    __syncthreads();
#pragma unroll
    for (int half = 128; half; half >>= 1) {
        if (threadIdx.x < half) shared[threadIdx.x] = JOIN(shared[threadIdx.x], shared[threadIdx.x + half]);
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = (real)shared[0];   // [outer, inner, chunks]
}
#endif
