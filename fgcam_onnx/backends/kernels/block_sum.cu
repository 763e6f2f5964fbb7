// Sums over the 256 threads of a block, in a fixed order: the same bits every time. All threads call it.
__device__ __forceinline__ double block_sum(double v, double* shared)
{
    __syncthreads();
    shared[threadIdx.x] = v;
    __syncthreads();
#pragma unroll
    for (int half = 128; half; half >>= 1) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    return shared[0];
}
