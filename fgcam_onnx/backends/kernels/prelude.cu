// What every kernel starts with. CUDA C without includes; a source is this file, some #defines, and one kernel file.
//
//   -DREAL=float | double     the arithmetic of the whole program
//   -DWIDE=0 | 1              offsets of 32 or 64 bits: 32 serve arrays of less than 2^31 elements
#ifndef REAL
#define REAL float
#endif
#ifndef WIDE
#define WIDE 0
#endif
typedef REAL real;
typedef long long index_arg;            // offsets and strides, as the host passes them
#if WIDE
typedef unsigned long long index_t;
typedef long long offset_t;
#else
typedef unsigned index_t;
typedef int offset_t;
#endif

// The zero rule of all backends: a denominator below the smallest normal float counts as 0, with or without -ftz.
#define TINY ((real)1.17549435e-38f)
#define LARGEST (sizeof(real) == 4 ? (real)3.402823466e+38f : (real)1.7976931348623157e+308)

// r / z, 0 where z is dead, never infinite unless an operand is.
__device__ __forceinline__ real share(const real r, const real z)
{
    if (fabs(z) < TINY) return (real)0;
    const real s = r / z;
    return s > LARGEST ? LARGEST : s < -LARGEST ? -LARGEST : s;
}

// a > b, false for NaN. A comparison of floats would flush denormals first; they are ordered as their bits are.
__device__ __forceinline__ int in_order(const float x)
{
    const int bits = __float_as_int(x);
    return bits == (int)0x80000000 ? 0 : bits ^ ((bits >> 31) & 0x7fffffff);    // -0 is 0
}
__device__ __forceinline__ bool exceeds(const float a, const float b)
{
    return a == a && b == b && in_order(a) > in_order(b);
}
__device__ __forceinline__ bool exceeds(const double a, const double b) { return a > b; }

// NaN wins, as in NumPy.
__device__ __forceinline__ real larger(const real a, const real b) { return exceeds(a, b) || a != a ? a : b; }
__device__ __forceinline__ real smaller(const real a, const real b) { return exceeds(b, a) || a != a ? a : b; }

__device__ __forceinline__ real nonzero(const float x) { return (__float_as_int(x) & 0x7fffffff) ? (real)1 : (real)0; }
__device__ __forceinline__ real nonzero(const double x) { return x != 0.0 ? (real)1 : (real)0; }

__device__ __forceinline__ real sigmoid(const real x) { return (real)1 / ((real)1 + exp(-x)); }

// A 16-byte piece of an array: what one thread reads or writes at a time.
#define LANES (16 / (int)sizeof(real))
struct __align__(16) Piece { real lane[LANES]; };
