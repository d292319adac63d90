// Everything a kernel does to memory or to the tensor core, one named function each: the only file with PTX.
// native/emulator/ptx.cuh is its twin for the CPU; kernels include <ptx.cuh> and never touch a pointer themselves.
// Constants from the compiler's command line: ELEMENT_F16 | ELEMENT_BF16 | ELEMENT_F32 | ELEMENT_TF32 (fp32 that is rounded to
// tf32 for the tensor core).
#pragma once
#ifdef ELEMENT_TF32
#define ELEMENT_F32
#endif

#define DEVICE static __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define UNROLL _Pragma("unroll")
#define PRAGMA(text) _Pragma(#text)
#define UNROLL_BY(n) PRAGMA(unroll n)

typedef unsigned int u32;  // two 16-bit elements; addresses in shared memory are ints, in bytes: their sums may not wrap
typedef long long i64;

#ifdef ELEMENT_F32
typedef float Element;
#else
typedef unsigned short Element;  // the bits of an fp16 or bf16 number
#endif

extern __shared__ __align__(16) unsigned char shared_memory[];

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE int block_z() { return blockIdx.z; }
DEVICE void block_barrier() { __syncthreads(); }
DEVICE void lockstep(int) {}  // for the emulator's counters: lanes in the same step (they only grow) run together

template <class T> DEVICE void keep(T& v) { asm volatile("" : "+r"(v)); }  // in a register from here on, not computed again

// ---- numbers ---------------------------------------------------------------------------------------------------
DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }

#include "numbers.cuh"

DEVICE float to_float(Element e) {
#if defined(ELEMENT_F32)
    return e;
#elif defined(ELEMENT_BF16)
    return __uint_as_float((u32)e << 16);
#else
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(e));
    return f;
#endif
}

DEVICE Element from_float(float f) {  // to nearest, ties to even
#if defined(ELEMENT_F32)
    return f;
#elif defined(ELEMENT_BF16) && __CUDA_ARCH__ < 800
    u32 b = __float_as_uint(f);
    return (b & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (unsigned short)((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
#elif defined(ELEMENT_BF16)
    unsigned short e;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(e) : "f"(f));
    return e;
#else
    unsigned short e;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(e) : "f"(f));
    return e;
#endif
}

DEVICE u32 pack(float low, float high) {  // two 16-bit elements in a register
#if defined(ELEMENT_F32)
    return 0;
#elif __CUDA_ARCH__ < 800
    return (u32)from_float(low) | (u32)from_float(high) << 16;
#elif defined(ELEMENT_BF16)
    u32 d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
#else
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
#endif
}

DEVICE u32 round_to_tf32(u32 bits) {  // of an fp32 number, to nearest, ties away from zero
    u32 rounded = bits;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
#endif
    return rounded;
}

// ---- memory ----------------------------------------------------------------------------------------------------
template <class T> DEVICE T load_global(const T* p) { return __ldg(p); }
template <class T> DEVICE void store_global(T* p, T v) { *p = v; }
DEVICE void store_pair(Element* p, float first, float second) {  // two neighbours at once
#ifdef ELEMENT_F32
    store_global(reinterpret_cast<float2*>(p), make_float2(first, second));
#else
    store_global(reinterpret_cast<u32*>(p), pack(first, second));
#endif
}
template <class T> DEVICE T load_shared(int a) { return *reinterpret_cast<const T*>(shared_memory + a); }
template <class T> DEVICE void store_shared(int a, T v) { *reinterpret_cast<T*>(shared_memory + a) = v; }

template <int BYTES> struct Vector;
template <> struct Vector<2> { typedef unsigned short type; };
template <> struct Vector<4> { typedef u32 type; };
template <> struct Vector<8> { typedef uint2 type; };
template <> struct Vector<16> { typedef uint4 type; };

DEVICE u32 shared_window(int a) { return (u32)__cvta_generic_to_shared(shared_memory + a); }

// Copies BYTES from global to shared memory; visible after copy_wait and, to other threads, a barrier.
template <int BYTES> DEVICE void copy_async(int to, const void* from) {
    typedef typename Vector<BYTES>::type V;
#if __CUDA_ARCH__ >= 800
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_window(to)), "l"(from) : "memory");
    } else if constexpr (BYTES >= 4) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_window(to)), "l"(from), "n"(BYTES) : "memory");
    } else
#endif
    store_shared<V>(to, __ldg(reinterpret_cast<const V*>(from)));
}
template <int BYTES> DEVICE void zero_shared(int to) { store_shared(to, typename Vector<BYTES>::type{}); }

DEVICE Element as_operand(Element e) {  // as the tensor core takes it
#ifdef ELEMENT_TF32
    return __uint_as_float(round_to_tf32(__float_as_uint(e)));
#else
    return e;
#endif
}

// Copies BYTES of elements to where the tensor core reads them: as they are, or rounded to tf32 on the way.
template <int BYTES> DEVICE void copy_operand(int to, const void* from) {
#ifdef ELEMENT_TF32
    typedef typename Vector<BYTES>::type V;
    V v = __ldg(reinterpret_cast<const V*>(from));
    u32* words = reinterpret_cast<u32*>(&v);
    UNROLL for (int k = 0; k < BYTES / 4; ++k) words[k] = round_to_tf32(words[k]);
    store_shared(to, v);
#else
    copy_async<BYTES>(to, from);
#endif
}

DEVICE void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int PENDING> DEVICE void copy_wait() {  // all but the newest PENDING groups have arrived
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// ---- tensor core (whole warps) -----------------------------------------------------------------------------------
template <int COUNT, bool TRANSPOSED> DEVICE void load_matrices(u32 (&r)[COUNT], int at) {
    static_assert(COUNT == 2 || COUNT == 4 || (COUNT == 1 && !TRANSPOSED), "ldmatrix loads 1, 2 or 4 matrices here");
    const u32 a = shared_window(at);
    if constexpr (COUNT == 1)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(a) : "memory");
    else if constexpr (COUNT == 4 && TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
    else if constexpr (COUNT == 4)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
    else if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(a) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(a) : "memory");
}

#if defined(ELEMENT_TF32)
#define MMA_ONE "m16n8k4.row.col.f32.tf32.tf32.f32"
#define MMA_TWO "m16n8k8.row.col.f32.tf32.tf32.f32"
#elif defined(ELEMENT_BF16)
#define MMA_ONE "m16n8k8.row.col.f32.bf16.bf16.f32"
#define MMA_TWO "m16n8k16.row.col.f32.bf16.bf16.f32"
#else
#define MMA_ONE "m16n8k8.row.col.f32.f16.f16.f32"
#define MMA_TWO "m16n8k16.row.col.f32.f16.f16.f32"
#endif

// c += A · B, 16 × 8, over one or two blocks of the inner dimension; a block is 16 bytes: 8 elements, or 4 of tf32.
DEVICE void mma_one(float (&c)[4], u32 a0, u32 a1, u32 b0) {
    asm volatile("mma.sync.aligned." MMA_ONE " {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(b0));
}
DEVICE void mma_two(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned." MMA_TWO " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    mma_one(c, a0, a1, b0);
    mma_one(c, a2, a3, b1);
#endif
}

DEVICE u32 shuffle_xor(u32 v, int lane_mask) { return __shfl_xor_sync(0xffffffffu, v, lane_mask); }
