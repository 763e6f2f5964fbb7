// numpy.matmul of any two arrays, a [.., rows, inner] and b [.., inner, columns], in tiles of 16 x 16.
//
// Products with a weight matrix go through contraction.cu; this one is for the rest, which is small: windows over
// channels, products of two activations.
#ifndef FINISH
#define FINISH_PARAMETERS , real* out
#define FINISH(o, acc) out[o] = acc;
#endif

// Leading axes are up to four; a broadcast one has stride 0.
struct Product {
    int rows, inner, columns;
    int lead[4];
    long long a_lead[4], b_lead[4], a_row, a_inner, b_inner, b_column;
};

extern "C" __global__ void __launch_bounds__(256) matmul(
    const real* __restrict__ a, const real* __restrict__ b, const Product* __restrict__ product FINISH_PARAMETERS)
{
    __shared__ real as[16][17], bs[16][17];
    const Product& p = *product;
    const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    const int row = blockIdx.y * 16 + ty, column = blockIdx.x * 16 + tx;
    long long from_a = 0, from_b = 0;
    int rest = blockIdx.z;
#pragma unroll
    for (int axis = 3; axis >= 0; --axis) {
        const int at = rest % p.lead[axis];
        rest /= p.lead[axis];
        from_a += at * p.a_lead[axis];
        from_b += at * p.b_lead[axis];
    }
    real acc = 0;
    for (int k0 = 0; k0 < p.inner; k0 += 16) {
        const int ka = k0 + tx, kb = k0 + ty;
        as[ty][tx] = row < p.rows && ka < p.inner ? a[from_a + row * p.a_row + ka * p.a_inner] : (real)0;
        bs[ty][tx] = column < p.columns && kb < p.inner ? b[from_b + kb * p.b_inner + column * p.b_column] : (real)0;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 16; ++k) acc = fma(as[ty][k], bs[k][tx], acc);
        __syncthreads();
    }
    if (row < p.rows && column < p.columns) {
        const index_t o = ((index_t)blockIdx.z * p.rows + row) * p.columns + column;
        FINISH(o, acc)
    }
}
