// Cells moved along one axis of [outer, axis, inner], one thread an output cell.
//
//   gather         out[o, j, i] = x[o, index[j], i]
//   scatter_add    out[o, j, i] = sum of r[o, reader, i] over the readers of j: a list for each j, so nothing is atomic
//   insert         out[o, begin + j, i] = x[o, j, i]: one of the arrays that are joined
//   place          out[cell] = x[cell - begin] inside, 0 around: padding and cropping of up to six axes
//
// -DKERNEL chooses one.
#define GATHER 0
#define SCATTER_ADD 1
#define PLACE 2
#define INSERT 3
#ifndef KERNEL
#define KERNEL GATHER
#endif
#ifndef FINISH
#define FINISH_PARAMETERS , real* out
#define FINISH(o, acc) out[o] = acc;
#endif

#if KERNEL == PLACE
struct Placed { long long cells; int in[6], out[6], begin[6]; };
extern "C" __global__ void __launch_bounds__(256) place(
    const real* __restrict__ x, const Placed* __restrict__ placed FINISH_PARAMETERS)
{
    const long long thread = (long long)blockIdx.x * 256 + threadIdx.x;
    if (thread >= placed->cells) return;
    const index_t o = (index_t)thread;
    index_t rest = o, at = 0, step = 1;
    bool inside = true;
#pragma unroll
    for (int axis = 5; axis >= 0; --axis) {
        const int position = (int)(rest % (index_t)placed->out[axis]) - placed->begin[axis];
        rest /= (index_t)placed->out[axis];
        inside &= (unsigned)position < (unsigned)placed->in[axis];
        at += inside ? (index_t)position * step : 0;
        step *= (index_t)placed->in[axis];
    }
    const real value = inside ? x[at] : (real)0;
    FINISH(o, value)
}
#else
struct Axis { long long cells, inner; int before, after; };        // sizes of the axis in the input and in the output
#if KERNEL == GATHER
extern "C" __global__ void __launch_bounds__(256) gather(
    const real* __restrict__ x, const int* __restrict__ index, const Axis* __restrict__ axis FINISH_PARAMETERS)
#elif KERNEL == INSERT
extern "C" __global__ void __launch_bounds__(256) insert(
    const real* __restrict__ x, const int begin, const Axis* __restrict__ axis, real* __restrict__ out)
#else
extern "C" __global__ void __launch_bounds__(256) scatter_add(
    const real* __restrict__ x, const int* __restrict__ first, const int* __restrict__ readers,
    const Axis* __restrict__ axis FINISH_PARAMETERS)
#endif
{
    const long long thread = (long long)blockIdx.x * 256 + threadIdx.x;
    if (thread >= axis->cells) return;
    const index_t o = (index_t)thread, inner = (index_t)axis->inner;
    const index_t i = o % inner;
#if KERNEL == INSERT
    const index_t row = o / inner / (index_t)axis->before, at = o / inner % (index_t)axis->before;
    out[(row * (index_t)axis->after + begin + at) * inner + i] = x[o];
#else
    const int j = (int)(o / inner % (index_t)axis->after);
    const index_t base = o / inner / (index_t)axis->after * (index_t)axis->before;
#if KERNEL == GATHER
    const real value = x[(base + index[j]) * inner + i];
#else
    real value = 0;
    for (int k = first[j]; k < first[j + 1]; ++k) value += x[(base + readers[k]) * inner + i];
#endif
    FINISH(o, value)
#endif
}
#endif
