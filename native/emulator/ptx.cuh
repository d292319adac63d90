// The CPU's twin of native/kernels/ptx.cuh: the same functions, checked and counted by machine.hpp. Fragment layouts are
// those of the PTX ISA, "Matrix Fragments for mma.m16n8k4", "… mma.m16n8k8", "… mma.m16n8k16" and "ldmatrix".
#pragma once
#ifdef ELEMENT_TF32
#define ELEMENT_F32
#endif
#include <cmath>
#include <utility>

#include "machine.hpp"

#define DEVICE static inline
#define KERNEL(threads, blocks) extern "C" void
#define UNROLL
#define UNROLL_BY(n)

typedef unsigned int u32;
typedef long long i64;
struct alignas(8) uint2 { u32 x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
#define make_float2(a, b) (float2{a, b})
#define make_float4(a, b, c, d) (float4{a, b, c, d})
template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
template <class T> static inline T max(T a, T b) { return a > b ? a : b; }

#ifdef ELEMENT_F32
typedef float Element;
#else
typedef unsigned short Element;
#endif
#define LINE int line = __builtin_LINE()

DEVICE int thread_index() { return machine.current; }
DEVICE int block_x() { return machine.block[0]; }
DEVICE int block_y() { return machine.block[1]; }
DEVICE int block_z() { return machine.block[2]; }
DEVICE void block_barrier(LINE) { machine.barrier(line); }
DEVICE void lockstep(int step) { machine.fibers[machine.current].step = step; }
template <class T> DEVICE void keep(T&) {}

// ---- numbers ---------------------------------------------------------------------------------------------------
DEVICE float multiply_add(float a, float b, float c) {
    ++machine.counters.fma;
    return std::fmaf(a, b, c);
}
#include <numbers.cuh>
DEVICE u32 bits_of(float f) {
    u32 b;
    memcpy(&b, &f, 4);
    return b;
}
DEVICE float float_of(u32 b) {
    float f;
    memcpy(&f, &b, 4);
    return f;
}
DEVICE float half_to_float(unsigned short h) {
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    float magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                      : exponent     ? std::ldexp(float(1024 + mantissa), exponent - 25)
                                     : std::ldexp(float(mantissa), -24);
    return h & 0x8000 ? -magnitude : magnitude;
}
DEVICE unsigned short float_to_half(float f) {
    unsigned short sign = bits_of(f) >> 16 & 0x8000;
    float m = std::fabs(f);
    if (std::isnan(f)) return 0x7fff;
    if (m >= 65520.f) return sign | 0x7c00;
    if (m == 0) return sign;
    int exponent;
    std::frexp(m, &exponent);  // m = f · 2^exponent, f in [1/2, 1)
    int step = (exponent < -13 ? -13 : exponent) - 11;  // the unit in the last place is 2^step
    int units = int(std::nearbyint(std::ldexp(m, -step)));
    return sign | (((step + 24) << 10) + units);
}
struct Decoder {  // 65,536 elements, decoded once
    float value[65536];
    Decoder() {
        for (u32 b = 0; b < 65536; ++b)
#ifdef ELEMENT_BF16
            value[b] = float_of(b << 16);
#else
            value[b] = half_to_float((unsigned short)b);
#endif
    }
};
static const Decoder decoder;
#ifdef ELEMENT_F32
DEVICE float to_float(Element e) { return e; }
DEVICE Element from_float(float f) { return f; }
DEVICE u32 pack(float, float) { return 0; }
#else
DEVICE float to_float(Element e) { return decoder.value[e]; }
DEVICE Element from_float(float f) {
#ifdef ELEMENT_BF16
    u32 b = bits_of(f);
    return std::isnan(f) ? 0x7fff : (unsigned short)((b + 0x7fffu + (b >> 16 & 1u)) >> 16);
#else
    return float_to_half(f);
#endif
}
DEVICE u32 pack(float low, float high) { return u32(from_float(low)) | u32(from_float(high)) << 16; }
#endif

// cvt.rna.tf32.f32: 8 bits of exponent, 10 of mantissa; to nearest, ties away from zero; a mantissa of NaN survives.
DEVICE u32 round_to_tf32(u32 bits) {
    float f = float_of(bits);
    if (std::isnan(f)) return 0x7fffffff;
    if (std::isinf(f) || f == 0) return bits;
    int exponent;
    std::frexp(f, &exponent);
    int step = (exponent < -125 ? -125 : exponent) - 11;
    return bits_of(float(std::ldexp(std::round(std::ldexp(double(f), -step)), step)));
}

// ---- memory ----------------------------------------------------------------------------------------------------
template <class T> DEVICE T load_global(const T* p, LINE) {
    return machine.global_access(p, sizeof(T), false, line) ? *p : T{};
}
template <class T> DEVICE void store_global(T* p, T v, LINE) {
    if (machine.global_access(p, sizeof(T), true, line)) *p = v;
}
DEVICE void store_pair(Element* p, float first, float second, LINE) {
#ifdef ELEMENT_F32
    store_global(reinterpret_cast<float2*>(p), make_float2(first, second), line);
#else
    store_global(reinterpret_cast<u32*>(p), pack(first, second), line);
#endif
}
template <class T> DEVICE T load_shared(int a, LINE) {
    T v{};
    machine.note_shared(a, sizeof(T), line);
    if (machine.shared_access(a, sizeof(T), false, line)) memcpy(&v, &machine.shared[a], sizeof(T));
    return v;
}
template <class T> DEVICE void store_shared(int a, T v, LINE) {
    machine.note_shared(a, sizeof(T), line);
    if (machine.shared_access(a, sizeof(T), true, line)) memcpy(&machine.shared[a], &v, sizeof(T));
}
template <int BYTES> struct Vector;
template <> struct Vector<2> { typedef unsigned short type; };
template <> struct Vector<4> { typedef u32 type; };
template <> struct Vector<8> { typedef uint2 type; };
template <> struct Vector<16> { typedef uint4 type; };

template <int BYTES> DEVICE void copy_async(int to, const void* from, LINE) {
    typedef typename Vector<BYTES>::type V;
    if constexpr (BYTES < 4) {
        store_shared<V>(to, load_global(static_cast<const V*>(from), line), line);
    } else if (machine.global_access(from, BYTES, false, line) & machine.shared_access(to, BYTES, true, line, true)) {
        Fiber& f = machine.fibers[machine.current];
        f.copies.push_back({u32(to), static_cast<const unsigned char*>(from), BYTES, f.groups_committed});
    }
}
DEVICE Element as_operand(Element e) {
#ifdef ELEMENT_TF32
    return float_of(round_to_tf32(bits_of(e)));
#else
    return e;
#endif
}
template <int BYTES> DEVICE void copy_operand(int to, const void* from, LINE) {
#ifdef ELEMENT_TF32
    typedef typename Vector<BYTES>::type V;
    V v = load_global(static_cast<const V*>(from), line);
    u32 words[BYTES / 4];
    memcpy(words, &v, BYTES);
    for (u32& word : words) word = round_to_tf32(word);
    memcpy(&v, words, BYTES);
    store_shared(to, v, line);
#else
    copy_async<BYTES>(to, from, line);
#endif
}
template <int BYTES> DEVICE void zero_shared(int to, LINE) { store_shared(to, typename Vector<BYTES>::type{}, line); }
DEVICE void copy_commit() { machine.commit(); }
template <int PENDING> DEVICE void copy_wait() { machine.wait(PENDING); }

// ---- tensor core -----------------------------------------------------------------------------------------------
template <int COUNT> struct MatrixLane { u32 address, result[COUNT]; };

// ldmatrix: lane 8k + i gives the address of row i of matrix k; lane l receives of matrix k the elements
// (l / 4, 2 (l % 4) + {0, 1}), or with .trans their transposes.
template <int COUNT, bool TRANSPOSED> DEVICE void load_matrices(u32 (&r)[COUNT], int a, LINE) {
    MatrixLane<COUNT> mine{u32(a), {}};
    machine.collective(COUNT + 8 * TRANSPOSED, mine, [line](MatrixLane<COUNT>** lanes) {
        int last = machine.current;
        for (int k = 0; k < COUNT; ++k) {
            unsigned short m[8][8] = {};
            uint64_t rows[8];
            for (int i = 0; i < 8; ++i) {
                rows[i] = lanes[8 * k + i]->address;
                machine.current = last / 32 * 32 + 8 * k + i;
                if (machine.shared_access(u32(rows[i]), 16, false, line)) memcpy(m[i], &machine.shared[rows[i]], 16);
            }
            machine.count_banks(rows, 8, 16, line);
            for (int l = 0; l < 32; ++l) {
                int row = l / 4, column = 2 * (l % 4);
                u32 low = TRANSPOSED ? m[column][row] : m[row][column];
                u32 high = TRANSPOSED ? m[column + 1][row] : m[row][column + 1];
                lanes[l]->result[k] = low | high << 16;
            }
        }
        machine.current = last;
    });
    for (int k = 0; k < COUNT; ++k) r[k] = mine.result[k];
}

template <int BLOCKS> struct ProductLane { float* c; u32 a[2 * BLOCKS], b[BLOCKS]; };

// Element (row, inner) of A and (inner, column) of B, and the register and, of 16-bit elements, the half that holds it.
#ifdef ELEMENT_TF32
// mma.m16n8k4, .m16n8k8 with .tf32: A's register 2h + s of lane l holds row l / 4 + 8 s, column 4 h + l % 4; B's register h
// holds row 4 h + l % 4, column l / 4. The tensor core reads the upper 19 bits.
constexpr int PER_BLOCK = 4, PER_REGISTER = 1;
DEVICE int inner(int lane, int block, int) { return 4 * block + lane % 4; }
DEVICE float operand(u32 r, int) { return float_of(r & 0xffffe000); }
#else
// mma.m16n8k8, .m16n8k16: A's register 2h + s of lane l holds row l / 4 + 8 s, columns 8 h + 2 (l % 4) + {0, 1}; B's register
// h holds rows 8 h + 2 (l % 4) + {0, 1}, column l / 4.
constexpr int PER_BLOCK = 8, PER_REGISTER = 2;
DEVICE int inner(int lane, int block, int e) { return 8 * block + 2 * (lane % 4) + e; }
DEVICE float operand(u32 r, int e) { return decoder.value[r >> 16 * e & 0xffff]; }
#endif

// C's pair s of lane l holds row l / 4 + 8 s, columns 2 (l % 4) + {0, 1}.
template <int BLOCKS> DEVICE void multiply(ProductLane<BLOCKS>& mine) {
    machine.collective(32 + BLOCKS, mine, [](ProductLane<BLOCKS>** lanes) {
        constexpr int K = PER_BLOCK * BLOCKS;
        float a[16][K], b[K][8];
        for (int l = 0; l < 32; ++l)
            for (int h = 0; h < BLOCKS; ++h)
                for (int e = 0; e < PER_REGISTER; ++e) {
                    int k = inner(l, h, e);
                    for (int s = 0; s < 2; ++s) a[l / 4 + 8 * s][k] = operand(lanes[l]->a[2 * h + s], e);
                    b[k][l / 4] = operand(lanes[l]->b[h], e);
                }
        float d[16][8] = {};
        for (int i = 0; i < 16; ++i)
            for (int k = 0; k < K; ++k)
                for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
        for (int l = 0; l < 32; ++l)
            for (int e = 0; e < 4; ++e) lanes[l]->c[e] += d[l / 4 + e / 2 * 8][2 * (l % 4) + e % 2];
        machine.counters.mma += 16 * 8 * K;
    });
}
DEVICE void mma_one(float (&c)[4], u32 a0, u32 a1, u32 b0) {
    ProductLane<1> lane{c, {a0, a1}, {b0}};
    multiply(lane);
}
DEVICE void mma_two(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    ProductLane<2> lane{c, {a0, a1, a2, a3}, {b0, b1}};
    multiply(lane);
}
struct ShuffleLane { u32 value, result; int lane_mask; };
DEVICE u32 shuffle_xor(u32 v, int lane_mask) {
    ShuffleLane mine{v, 0, lane_mask};
    machine.collective(64, mine, [](ShuffleLane** lanes) {
        for (int l = 0; l < 32; ++l) lanes[l]->result = lanes[l ^ lanes[l]->lane_mask]->value;
    });
    return mine.result;
}

// ---- launch: called by native/emulator/__init__.py ---------------------------------------------------------------
template <class... A> struct Call {
    static inline void (*kernel)(A...);
    static inline void** values;
    static void body() { expand(std::index_sequence_for<A...>{}); }
    template <size_t... I> static void expand(std::index_sequence<I...>) { kernel(*static_cast<A*>(values[I])...); }
};
template <class... A> void bind(void (*kernel)(A...), void** values) {
    Call<A...>::kernel = kernel;
    Call<A...>::values = values;
    machine.body = Call<A...>::body;
}
