// Runs CUDA C kernels on the CPU, for numeric tests.  Linux, g++, C++17; as under NVRTC a kernel includes nothing.
//
// Blocks run one after another, so `static` is a correct __shared__.  Kernels without barriers are a plain loop over
// the threads; with barriers every thread is a fiber.  The order of threads and of blocks is the caller's, because CUDA
// promises none: a result that changes with it is a bug.  A barrier that some thread never reaches is reported.
//
// A test run compiles several hundred small kernels, so that little is left to do for one: nothing is included, and the
// scheduler is an object file of its own (this file with CUDA_ON_CPU_RUNTIME defined), linked into every library.
#pragma once
#define CUDA_ON_CPU 1

#define __global__
#define __device__
#define __host__
#define __constant__ static
// One section for all shared memory: it is filled with NaN before each block, as on a GPU it holds anything.
#define __shared__ static __attribute__((section("cuda_shared")))
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__

using size_t = decltype(sizeof 0);

#define CUDA_ON_CPU_VECTOR(T, name, align2, align4)                                                                  \
    struct alignas(align2) name##2 { T x, y; };                                                                      \
    struct name##3 { T x, y, z; };                                                                                   \
    struct alignas(align4) name##4 { T x, y, z, w; };                                                                \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                \
    static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                        \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDA_ON_CPU_VECTOR(signed char, char, 2, 4)
CUDA_ON_CPU_VECTOR(unsigned char, uchar, 2, 4)
CUDA_ON_CPU_VECTOR(int, int, 8, 16)
CUDA_ON_CPU_VECTOR(unsigned, uint, 8, 16)
CUDA_ON_CPU_VECTOR(long long, longlong, 16, 16)
CUDA_ON_CPU_VECTOR(float, float, 8, 16)
CUDA_ON_CPU_VECTOR(double, double, 16, 16)
struct dim3 { unsigned x = 1, y = 1, z = 1; };

#define CUDA_ON_CPU_SHARED __attribute__((visibility("hidden")))    // by all of a library, and by no other library
extern CUDA_ON_CPU_SHARED uint3 threadIdx, blockIdx;
extern CUDA_ON_CPU_SHARED dim3 blockDim, gridDim;
static const int warpSize = 32;

// ---------------------------------------------------------------------------------------------------------------- math
// Declared here rather than included; g++ knows these names and turns those with an instruction into it.
#define CUDA_ON_CPU_MATH1(name)                                                                                      \
    extern "C" double name(double);                                                                                  \
    extern "C" float name##f(float);                                                                                 \
    static inline float name(float x) { return name##f(x); }
#define CUDA_ON_CPU_MATH2(name)                                                                                      \
    extern "C" double name(double, double);                                                                          \
    extern "C" float name##f(float, float);                                                                          \
    static inline float name(float x, float y) { return name##f(x, y); }
CUDA_ON_CPU_MATH1(exp) CUDA_ON_CPU_MATH1(exp2) CUDA_ON_CPU_MATH1(exp10) CUDA_ON_CPU_MATH1(expm1)
CUDA_ON_CPU_MATH1(log) CUDA_ON_CPU_MATH1(log2) CUDA_ON_CPU_MATH1(log10) CUDA_ON_CPU_MATH1(log1p)
CUDA_ON_CPU_MATH1(sin) CUDA_ON_CPU_MATH1(cos) CUDA_ON_CPU_MATH1(tan)
CUDA_ON_CPU_MATH1(asin) CUDA_ON_CPU_MATH1(acos) CUDA_ON_CPU_MATH1(atan)
CUDA_ON_CPU_MATH1(sinh) CUDA_ON_CPU_MATH1(cosh) CUDA_ON_CPU_MATH1(tanh)
CUDA_ON_CPU_MATH1(asinh) CUDA_ON_CPU_MATH1(acosh) CUDA_ON_CPU_MATH1(atanh)
CUDA_ON_CPU_MATH1(erf) CUDA_ON_CPU_MATH1(erfc) CUDA_ON_CPU_MATH1(tgamma) CUDA_ON_CPU_MATH1(lgamma)
CUDA_ON_CPU_MATH1(sqrt) CUDA_ON_CPU_MATH1(cbrt) CUDA_ON_CPU_MATH1(fabs)
CUDA_ON_CPU_MATH1(floor) CUDA_ON_CPU_MATH1(ceil) CUDA_ON_CPU_MATH1(trunc)
CUDA_ON_CPU_MATH1(round) CUDA_ON_CPU_MATH1(rint) CUDA_ON_CPU_MATH1(nearbyint)
CUDA_ON_CPU_MATH2(pow) CUDA_ON_CPU_MATH2(fmod) CUDA_ON_CPU_MATH2(remainder) CUDA_ON_CPU_MATH2(atan2)
CUDA_ON_CPU_MATH2(hypot) CUDA_ON_CPU_MATH2(copysign) CUDA_ON_CPU_MATH2(nextafter) CUDA_ON_CPU_MATH2(fdim)
extern "C" double fma(double, double, double);
extern "C" float fmaf(float, float, float);
static inline float fma(float a, float b, float c) { return fmaf(a, b, c); }

// A NaN loses against a number, as in CUDA; written out because the library's fminf is a call.
template <class A, class B> inline auto max(A a, B b) { decltype(a + b) x = a, y = b; return x > y || y != y ? x : y; }
template <class A, class B> inline auto min(A a, B b) { decltype(a + b) x = a, y = b; return x < y || y != y ? x : y; }
static inline float fmaxf(float a, float b) { return max(a, b); }
static inline float fminf(float a, float b) { return min(a, b); }
static inline double fmax(double a, double b) { return max(a, b); }
static inline double fmin(double a, double b) { return min(a, b); }
static inline float fmax(float a, float b) { return max(a, b); }
static inline float fmin(float a, float b) { return min(a, b); }
static inline int abs(int x) { return x < 0 ? -x : x; }
static inline long long abs(long long x) { return x < 0 ? -x : x; }
static inline long long llabs(long long x) { return x < 0 ? -x : x; }
static inline float abs(float x) { return fabsf(x); }
static inline double abs(double x) { return fabs(x); }
template <class T> inline bool isnan(T x) { return __builtin_isnan(x); }
template <class T> inline bool isinf(T x) { return __builtin_isinf(x); }
template <class T> inline bool isfinite(T x) { return __builtin_isfinite(x); }
template <class T> inline bool signbit(T x) { return __builtin_signbit(x); }

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float rsqrt(float x) { return rsqrtf(x); }
static inline float normcdff(float x) { return 0.5f * erfcf(-0.70710678f * x); }
static inline double normcdf(double x) { return 0.5 * erfc(-0.70710678118654752 * x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
static inline float __expf(float x) { return expf(x); }
static inline float __exp10f(float x) { return exp10f(x); }
static inline float __logf(float x) { return logf(x); }
static inline float __log2f(float x) { return log2f(x); }
static inline float __sinf(float x) { return sinf(x); }
static inline float __cosf(float x) { return cosf(x); }
static inline float __powf(float x, float y) { return powf(x, y); }
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline int __float2int_rz(float x) { return (int)x; }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
static inline int __float2int_ru(float x) { return (int)ceilf(x); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __double2float_rn(double x) { return (float)x; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }

namespace cuda_on_cpu {
template <class To, class From> inline To as(From value) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To result;
    __builtin_memcpy(&result, &value, sizeof result);
    return result;
}
}  // namespace cuda_on_cpu
static inline int __float_as_int(float x) { return cuda_on_cpu::as<int>(x); }
static inline unsigned __float_as_uint(float x) { return cuda_on_cpu::as<unsigned>(x); }
static inline float __int_as_float(int x) { return cuda_on_cpu::as<float>(x); }
static inline float __uint_as_float(unsigned x) { return cuda_on_cpu::as<float>(x); }
static inline long long __double_as_longlong(double x) { return cuda_on_cpu::as<long long>(x); }
static inline double __longlong_as_double(long long x) { return cuda_on_cpu::as<double>(x); }

template <class T> inline T __ldg(const T* p) { return *p; }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
// Only one thread runs at a time, so plain reads and writes are atomic.
template <class T, class U> inline T atomicAdd(T* p, U v) { T old = *p; *p = old + (T)v; return old; }
template <class T, class U> inline T atomicSub(T* p, U v) { T old = *p; *p = old - (T)v; return old; }
template <class T, class U> inline T atomicMax(T* p, U v) { T old = *p; if ((T)v > old) *p = (T)v; return old; }
template <class T, class U> inline T atomicMin(T* p, U v) { T old = *p; if ((T)v < old) *p = (T)v; return old; }
template <class T, class U> inline T atomicOr(T* p, U v) { T old = *p; *p = old | (T)v; return old; }
template <class T, class U> inline T atomicAnd(T* p, U v) { T old = *p; *p = old & (T)v; return old; }
template <class T, class U> inline T atomicExch(T* p, U v) { T old = *p; *p = (T)v; return old; }
template <class T, class U, class V> inline T atomicCAS(T* p, U c, V v) {
    T old = *p;
    if (old == (T)c) *p = (T)v;
    return old;
}

// ------------------------------------------------------------------------------------------------ what both sides know
namespace cuda_on_cpu {
enum Operation : unsigned char { SYNC, SHUFFLE, BALLOT, MMA };
struct Lane {
    unsigned long long value;
    unsigned mask;
    int source;
    Operation operation;
    unsigned a[4], b[2];
    float c[4];
};
struct Warp { unsigned live, waiting; Lane lanes[32]; };
struct Launch {
    unsigned grid[3], block[3];
    void** arguments;
    char *stacks, *dynamic_shared;
    unsigned long long dynamic_bytes;
    int order, fibers, flush;
    // out: the block that failed, and what its threads were doing
    unsigned at[3];
    int waiting_block, waiting_warp, left;
};

extern CUDA_ON_CPU_SHARED Warp warps[];
extern CUDA_ON_CPU_SHARED int threads, current, vote_and, vote_or, vote_count, votes[3];
extern CUDA_ON_CPU_SHARED uint3 indices[];      // of the threads, in the order they run
extern CUDA_ON_CPU_SHARED void **arguments, *dynamic_shared;
CUDA_ON_CPU_SHARED void wait_block();
CUDA_ON_CPU_SHARED Lane& wait_warp(unsigned mask, Operation operation);
// one_thread runs the kernel for threadIdx, all_threads for a whole block without barriers
CUDA_ON_CPU_SHARED int launch(Launch& launch, void (*one_thread)(), void (*all_threads)());
inline void* dyn_shared() { return dynamic_shared; }
}  // namespace cuda_on_cpu

// ---------------------------------------------------------------------------------------------------------- one kernel
namespace cuda_on_cpu {
template <int... I> struct Indices {};
template <int N, int... I> struct Count : Count<N - 1, N - 1, I...> {};
template <int... I> struct Count<0, I...> { using type = Indices<I...>; };
template <class T> struct Unreferenced { using type = T; };
template <class T> struct Unreferenced<T&> { using type = T; };

template <auto kernel> struct Call;
template <class... A, void (*kernel)(A...)> struct Call<kernel> {
    template <int... I> static inline void with(Indices<I...>) {
        kernel(*(typename Unreferenced<A>::type*)arguments[I]...);
    }
    static void one_thread() { with(typename Count<sizeof...(A)>::type{}); }
    static void all_threads() {
        for (int i = 0; i < threads; ++i) {
            threadIdx = indices[i];
            one_thread();
        }
    }
};
template <auto kernel> int launch(Launch& how) {
    return launch(how, Call<kernel>::one_thread, Call<kernel>::all_threads);
}
}  // namespace cuda_on_cpu

// ---------------------------------------------------------------------------------------------- parameters of a kernel
namespace cuda_on_cpu {
// Told to the caller, who checks the arguments: a GPU takes a float64 array for a float* without a word.
template <class T> struct Kind { static constexpr int value = __is_enum(T) ? 'i' : 's'; };
template <class T> struct Kind<const T> : Kind<T> {};
template <class T> struct Kind<volatile T> : Kind<T> {};
template <class T> struct Kind<const volatile T> : Kind<T> {};
template <class T> struct Kind<T*> { static constexpr int value = 'p'; };
#define CUDA_ON_CPU_KIND(T, letter) template <> struct Kind<T> { static constexpr int value = letter; };
CUDA_ON_CPU_KIND(float, 'f') CUDA_ON_CPU_KIND(double, 'f') CUDA_ON_CPU_KIND(void, 'v')
CUDA_ON_CPU_KIND(bool, 'i') CUDA_ON_CPU_KIND(char, 'i') CUDA_ON_CPU_KIND(signed char, 'i')
CUDA_ON_CPU_KIND(unsigned char, 'i') CUDA_ON_CPU_KIND(short, 'i') CUDA_ON_CPU_KIND(unsigned short, 'i')
CUDA_ON_CPU_KIND(int, 'i') CUDA_ON_CPU_KIND(unsigned, 'i') CUDA_ON_CPU_KIND(long, 'i')
CUDA_ON_CPU_KIND(unsigned long, 'i') CUDA_ON_CPU_KIND(long long, 'i') CUDA_ON_CPU_KIND(unsigned long long, 'i')

struct Parameter { int kind, size, target, target_size; };
template <class T> struct Describe { static constexpr Parameter value{Kind<T>::value, sizeof(T), 0, 0}; };
template <class T> struct Describe<T&> : Describe<T> {};
template <class T> constexpr int size_or_0() {
    if constexpr (Kind<T>::value == 'v') return 0;
    else return sizeof(T);
}
template <class T> struct Describe<T*> { static constexpr Parameter value{'p', 8, Kind<T>::value, size_or_0<T>()}; };

// returns how many there are
template <class... A> int describe(void (*)(A...), Parameter* out) {
    ((*out++ = Describe<A>::value), ...);
    return sizeof...(A);
}
}  // namespace cuda_on_cpu

// -------------------------------------------------------------------------------------------- barriers and collectives
// The empty asm stands in the kernel itself: no analysis of the calls may keep shared memory in registers across it.
#define CUDA_ON_CPU_FENCE asm volatile("" ::: "memory")
static __forceinline__ void __syncthreads() { CUDA_ON_CPU_FENCE; cuda_on_cpu::wait_block(); CUDA_ON_CPU_FENCE; }
static __forceinline__ int __syncthreads_and(int p) {
    cuda_on_cpu::vote_and &= !!p;
    __syncthreads();
    return cuda_on_cpu::votes[0];
}
static __forceinline__ int __syncthreads_or(int p) {
    cuda_on_cpu::vote_or |= !!p;
    __syncthreads();
    return cuda_on_cpu::votes[1];
}
static __forceinline__ int __syncthreads_count(int p) {
    cuda_on_cpu::vote_count += !!p;
    __syncthreads();
    return cuda_on_cpu::votes[2];
}
static __forceinline__ void __syncwarp(unsigned mask = ~0u) {
    CUDA_ON_CPU_FENCE;
    cuda_on_cpu::wait_warp(mask, cuda_on_cpu::SYNC);
    CUDA_ON_CPU_FENCE;
}
static inline unsigned __activemask() {     // what CUDA promises of it: at least the caller
    return 1u << cuda_on_cpu::current % 32;
}
static inline unsigned __ballot_sync(unsigned mask, int p) {
    cuda_on_cpu::warps[cuda_on_cpu::current / 32].lanes[cuda_on_cpu::current % 32].value = !!p;
    return (unsigned)cuda_on_cpu::wait_warp(mask, cuda_on_cpu::BALLOT).value;
}
static inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
static inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, !p) == 0; }

namespace cuda_on_cpu {
inline Lane& my_lane() { return warps[current / 32].lanes[current % 32]; }
template <class T> inline T exchange(unsigned mask, T value, int source) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    Lane& lane = my_lane();
    __builtin_memcpy(&lane.value, &value, sizeof value);
    lane.source = source;
    CUDA_ON_CPU_FENCE;
    wait_warp(mask, SHUFFLE);
    CUDA_ON_CPU_FENCE;
    __builtin_memcpy(&value, &lane.value, sizeof value);
    return value;
}
inline int lane_number() { return current % 32; }
inline int segment(int width) { return lane_number() & ~(width - 1); }

// cvt.rna.tf32.f32: to nearest, ties away from zero
inline unsigned cvt_tf32(float x) {
    unsigned u = as<unsigned>(x);
    return (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000u) & ~0x1fffu;
}
// d may be c
inline void mma_tf32_m16n8k8(float* d, const unsigned* a, const unsigned* b, const float* c) {
    Lane& lane = my_lane();
    __builtin_memcpy(lane.a, a, sizeof lane.a);
    __builtin_memcpy(lane.b, b, sizeof lane.b);
    __builtin_memcpy(lane.c, c, sizeof lane.c);
    CUDA_ON_CPU_FENCE;
    wait_warp(~0u, MMA);
    CUDA_ON_CPU_FENCE;
    __builtin_memcpy(d, lane.c, sizeof lane.c);
}
}  // namespace cuda_on_cpu

template <class T> inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return cuda_on_cpu::exchange(mask, value, cuda_on_cpu::segment(width) + (source & (width - 1)));
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    int lane = cuda_on_cpu::lane_number(), source = lane + (int)delta;
    return cuda_on_cpu::exchange(mask, value, source < cuda_on_cpu::segment(width) + width ? source : lane);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    int lane = cuda_on_cpu::lane_number(), source = lane - (int)delta;
    return cuda_on_cpu::exchange(mask, value, source >= cuda_on_cpu::segment(width) ? source : lane);
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    int lane = cuda_on_cpu::lane_number(), source = lane ^ bits;
    return cuda_on_cpu::exchange(mask, value, source < cuda_on_cpu::segment(width) + width ? source : lane);
}

// ---------------------------------------------------------------------------------------------------- context switches
#ifdef CUDA_ON_CPU_RUNTIME
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {
constexpr int MAX_THREADS = 1024;
// Stacks are not a power of two apart: then the hot ends of all would share a few cache sets.
constexpr size_t STACK = (64 << 10) + 320;
constexpr unsigned CANARY = 0x5afe57acu;

static void fiber_main();

#if defined(__x86_64__)
struct Context { void* stack_pointer; };
extern "C" __attribute__((visibility("hidden"))) void cuda_on_cpu_switch(void** from, void* to);
// Floating point modes stay as they are: all fibers share them.
asm(R"(
    .text
    .p2align 4
    .type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
inline void prepare(Context& context, char* stack) {
    void** top = (void**)(((size_t)stack + STACK) & ~(size_t)15);
    *--top = nullptr;                   // the return address of fiber_main, which never returns
    *--top = (void*)fiber_main;
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context.stack_pointer = top;
}
inline void switch_context(Context& from, Context& to) { cuda_on_cpu_switch(&from.stack_pointer, to.stack_pointer); }
inline unsigned get_modes() { return __builtin_ia32_stmxcsr(); }
inline void set_modes(unsigned modes) { __builtin_ia32_ldmxcsr(modes); }
constexpr unsigned FLUSH_DENORMALS = 0x8040;    // FTZ | DAZ
#else
}
#include <ucontext.h>
namespace cuda_on_cpu {
struct Context { ucontext_t state; };
inline void prepare(Context& context, char* stack) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = stack;
    context.state.uc_stack.ss_size = STACK;
    context.state.uc_link = nullptr;
    makecontext(&context.state, fiber_main, 0);
}
inline void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
inline unsigned get_modes() { return 0; }
inline void set_modes(unsigned) {}
constexpr unsigned FLUSH_DENORMALS = 0;         // denormals are kept on other processors
#endif

// ----------------------------------------------------------------------------------------------------------- scheduler
enum State : unsigned char { READY, AT_BLOCK, AT_WARP, DONE };
enum Outcome { FINE, DIVERGED, STACK_OVERFLOW, FOREIGN_MASK, NO_FIBERS };
struct Fiber { Context context; uint3 index; State state; };

Warp warps[MAX_THREADS / 32];
int threads, current, vote_and, vote_or, vote_count, votes[3];
uint3 indices[MAX_THREADS];
void **arguments, *dynamic_shared;
static Fiber fibers[MAX_THREADS];
static Context scheduler;
static int order[MAX_THREADS];
static int live, at_block, position, outcome;
static bool with_fibers;
static char* stacks;
static void (*body)();

static void stop(Outcome why) {
    outcome = why;
    if (with_fibers) switch_context(fibers[current].context, scheduler);
}
// Hands over to the next thread in order that can run; when none can, back to the scheduler, which sees who is left.
static void hand_over() {
    int from = current;
    // seen before the neighbour runs on what is left of its own stack
    if ((char*)__builtin_frame_address(0) < stacks + (size_t)from * STACK) stop(STACK_OVERFLOW);
    for (int left = threads; left; --left) {
        if (++position == threads) position = 0;
        int to = order[position];
        if (fibers[to].state != READY) continue;
        current = to;
        threadIdx = fibers[to].index;
        if (to != from) switch_context(fibers[from].context, fibers[to].context);
        return;
    }
    switch_context(fibers[from].context, scheduler);
}
static void release_block() {
    votes[0] = vote_and, votes[1] = vote_or, votes[2] = vote_count;
    vote_and = 1, vote_or = vote_count = at_block = 0;
    for (int i = 0; i < threads; ++i)
        if (fibers[i].state == AT_BLOCK) fibers[i].state = READY;
}
void wait_block() {
    if (!with_fibers) return stop(NO_FIBERS);
    fibers[current].state = AT_BLOCK;
    if (++at_block == live) release_block();
    hand_over();
}

// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32, fragment layout of the PTX ISA; products are exact, sums double
static void multiply(Warp& w) {
    double a[16][8], b[8][8];
    for (int m = 0; m < 16; ++m)
        for (int k = 0; k < 8; ++k)
            a[m][k] = as<float>(w.lanes[(m & 7) * 4 + (k & 3)].a[(m >> 3) + 2 * (k >> 2)] & ~0x1fffu);
    for (int k = 0; k < 8; ++k)
        for (int n = 0; n < 8; ++n) b[k][n] = as<float>(w.lanes[n * 4 + (k & 3)].b[k >> 2] & ~0x1fffu);
    for (int m = 0; m < 16; ++m) {
        double sum[8];
        for (int n = 0; n < 8; ++n) sum[n] = w.lanes[(m & 7) * 4 + (n >> 1)].c[2 * (m >> 3) + (n & 1)];
        for (int k = 0; k < 8; ++k)
            for (int n = 0; n < 8; ++n) sum[n] += a[m][k] * b[k][n];
        for (int n = 0; n < 8; ++n) w.lanes[(m & 7) * 4 + (n >> 1)].c[2 * (m >> 3) + (n & 1)] = (float)sum[n];
    }
}
// The last lane of a group to arrive computes the results of all, so that one wait is enough for an exchange.
// false: these lanes wait at different operations
static bool release_warp(int number, unsigned group) {
    Warp& w = warps[number];
    unsigned long long values[32];
    unsigned ballot = 0;
    Operation operation = w.lanes[__builtin_ctz(group)].operation;
    for (unsigned rest = group; rest; rest &= rest - 1) {
        int i = __builtin_ctz(rest);
        if (w.lanes[i].operation != operation) return false;
        values[i] = w.lanes[i].value;
        if (operation == BALLOT && values[i]) ballot |= 1u << i;
    }
    if (operation == MMA) {
        if (group != ~0u) return false;
        multiply(w);
    }
    for (unsigned rest = group; rest; rest &= rest - 1) {
        int i = __builtin_ctz(rest);
        Lane& lane = w.lanes[i];
        if (operation == BALLOT) lane.value = ballot;
        // from a lane that takes no part CUDA gives anything: a NaN here, so that using it shows
        if (operation == SHUFFLE) lane.value = group >> lane.source & 1 ? values[lane.source] : ~0ull;
        fibers[number * 32 + i].state = READY;
    }
    w.waiting &= ~group;
    return true;
}
// Releases the lanes that wait with this mask once all of it that still live have come.
static bool try_release(int number, unsigned mask) {
    Warp& w = warps[number];
    unsigned group = mask & w.live;
    if (!group || (w.waiting & group) != group) return true;
    for (unsigned rest = group; rest; rest &= rest - 1)
        if (w.lanes[__builtin_ctz(rest)].mask != mask) return true;
    return release_warp(number, group);
}
Lane& wait_warp(unsigned mask, Operation operation) {
    Warp& w = warps[current / 32];
    int i = current % 32;
    if (!with_fibers || !(mask >> i & 1)) {
        stop(with_fibers ? FOREIGN_MASK : NO_FIBERS);
        return w.lanes[i];
    }
    w.lanes[i].mask = mask;
    w.lanes[i].operation = operation;
    w.waiting |= 1u << i;
    fibers[current].state = AT_WARP;
    if (!try_release(current / 32, mask)) stop(DIVERGED);
    hand_over();
    return w.lanes[i];
}
static void finish() {
    int number = current / 32;
    Warp& w = warps[number];
    if (*(unsigned*)(stacks + (size_t)current * STACK) != CANARY) stop(STACK_OVERFLOW);
    fibers[current].state = DONE;
    --live;
    w.live &= ~(1u << current % 32);
    if (live && at_block == live) release_block();      // a thread that has left counts as arrived
    for (unsigned rest = w.waiting; rest; rest &= rest - 1) {
        int i = __builtin_ctz(rest);
        if (w.waiting >> i & 1 && !try_release(number, w.lanes[i].mask)) stop(DIVERGED);
    }
    hand_over();
}
static void fiber_main() {
    body();
    finish();
    __builtin_trap();
}
static void run_block() {
    live = threads;
    at_block = vote_or = vote_count = 0;
    vote_and = 1;
    for (int i = 0; i < threads; i += 32) {
        warps[i / 32].live = threads - i >= 32 ? ~0u : (1u << (threads - i)) - 1;
        warps[i / 32].waiting = 0;
    }
    for (int i = 0; i < threads; ++i) {
        fibers[i].state = READY;
        prepare(fibers[i].context, stacks + (size_t)i * STACK);
    }
    position = 0;
    current = order[0];
    threadIdx = fibers[current].index;
    switch_context(scheduler, fibers[current].context);
    if (!outcome && live) outcome = DIVERGED;
}

// -------------------------------------------------------------------------------------------------------------- launch
// from the linker, where a kernel has shared memory
extern "C" __attribute__((weak, visibility("hidden"))) char __start_cuda_shared[], __stop_cuda_shared[];

// Orders: 0 forward, 1 backward, otherwise the seed of a shuffle.
inline unsigned draw(unsigned long long& state) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return unsigned(state >> 33);
}
static void shuffle(int kind) {
    for (int i = 0; i < threads; ++i) order[i] = kind == 1 ? threads - 1 - i : i;
    if (kind == 0 || kind == 1) return;
    unsigned long long state = (unsigned)kind;
    for (int i = threads - 1; i > 0; --i) {
        int j = int(draw(state) % unsigned(i + 1)), other = order[j];
        order[j] = order[i], order[i] = other;
    }
}
// Of blocks there may be millions, so a shuffle of them keeps no table: it walks in steps that share no factor with
// their number.
struct BlockOrder {
    unsigned long long count, step = 1, first = 0;
    BlockOrder(unsigned long long n, int kind) : count(n) {
        if (kind == 1) step = first = n - 1;
        if (kind == 0 || kind == 1 || n < 3) return;
        unsigned long long state = (unsigned)kind;
        first = draw(state) % n;
        step = draw(state) % n;
        while (common_factor(step, n) != 1) ++step;
    }
    static unsigned long long common_factor(unsigned long long a, unsigned long long b) {
        while (b) {
            unsigned long long rest = a % b;
            a = b, b = rest;
        }
        return a;
    }
    unsigned long long next(unsigned long long block) const { return (block + step) % count; }
};

int launch(Launch& l, void (*one_thread)(), void (*all_threads)()) {
    gridDim = {l.grid[0], l.grid[1], l.grid[2]};
    blockDim = {l.block[0], l.block[1], l.block[2]};
    threads = blockDim.x * blockDim.y * blockDim.z;
    arguments = l.arguments, stacks = l.stacks, dynamic_shared = l.dynamic_shared;
    body = one_thread;
    with_fibers = l.fibers;
    outcome = FINE;
    shuffle(l.order);
    for (int i = 0; i < threads; ++i) {
        unsigned k = (unsigned)order[i];
        indices[i] = {k % blockDim.x, k / blockDim.x % blockDim.y, k / blockDim.x / blockDim.y};
        fibers[k].index = indices[i];
        if (with_fibers) *(unsigned*)(stacks + (size_t)i * STACK) = CANARY;
    }
    unsigned long long blocks = (unsigned long long)gridDim.x * gridDim.y * gridDim.z;
    BlockOrder block_order(blocks, l.order);
    unsigned modes = get_modes();
    set_modes(l.flush ? modes | FLUSH_DENORMALS : modes & ~FLUSH_DENORMALS);
    unsigned long long k = block_order.first;
    for (unsigned long long n = 0; n < blocks && !outcome; ++n, k = block_order.next(k)) {
        unsigned long long row = k / gridDim.x;
        blockIdx = {unsigned(k % gridDim.x), unsigned(row % gridDim.y), unsigned(row / gridDim.y)};
        if (__start_cuda_shared != nullptr)
            __builtin_memset(__start_cuda_shared, 0xff, size_t(__stop_cuda_shared - __start_cuda_shared));
        if (l.dynamic_bytes) __builtin_memset(dynamic_shared, 0xff, l.dynamic_bytes);
        with_fibers ? run_block() : all_threads();
    }
    set_modes(modes);
    l.at[0] = blockIdx.x, l.at[1] = blockIdx.y, l.at[2] = blockIdx.z;
    l.waiting_block = l.waiting_warp = l.left = 0;
    for (int i = 0; i < threads && with_fibers; ++i) {
        l.waiting_block += fibers[i].state == AT_BLOCK;
        l.waiting_warp += fibers[i].state == AT_WARP;
        l.left += fibers[i].state == DONE;
    }
    return outcome;
}
}  // namespace cuda_on_cpu
#endif  // CUDA_ON_CPU_RUNTIME
