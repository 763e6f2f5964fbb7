// The books: each result is the sum of the blocks' sums that belong to it, in a fixed order. A block of threads a result.
//
// The sums themselves were taken by the kernels that had the cells in their registers anyway (generated; see
// fgcam_onnx/backends/cuda/text.py). spans[k] = {first, count} lists where a result's parts lie: result i reads the spans
// from of[i] to of[i + 1], in turn.
extern "C" __global__ void __launch_bounds__(256) totals(
    const double* __restrict__ parts, const int2* __restrict__ spans, const int* __restrict__ of, real* __restrict__ out)
{
    __shared__ double shared[256];
    double sum = 0;
    for (int k = of[blockIdx.x]; k < of[blockIdx.x + 1]; ++k)
        for (int i = threadIdx.x; i < spans[k].y; i += 256) sum += parts[spans[k].x + i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) out[blockIdx.x] = (real)sum;
}
