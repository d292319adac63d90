// Depthwise convolution on tensor cores, stride 1, fp16, bf16 or tf32, fp32 accumulation; with FLIP, the input gradient.
// For each kernel row u a channel's filter is a Toeplitz matrix T_u[j', j] = w[u, j' − j + PX], so
//   y[(n,i), j] += Σ_j' x[(n, i + u − PY), j'] · T_u[j', j]
// is a matrix product. Rows: 16 (image, row) pairs, NI images × IM rows. Output columns: blocks of 8. Input columns: blocks of
// 16 bytes, E = 8 or, in tf32, 4. T is periodic: the block pair (input q, output j) needs only d = q − 8/E · j, and one register
// a lane holds T's whole diagonal block d: B_d = {w[u,e], w[u,e+1]} with e = 2 (lane % 4) − lane / 4 + PX + 8 d; in tf32,
// B_d = w[u,e] with e = lane % 4 − lane / 4 + PX + 4 d. Only blocks with DLO ≤ d ≤ DHI are issued.
// A block of threads: CHANNELS channels, a tile of rows (and of columns, of wide maps), IMAGES images staged once. A warp: RB groups
// of IM rows × IG groups of NI images × QT column blocks of one channel at a time; BESIDE channels are computed side by side.
// Planes (NCHW): one channel a block. LAST (channels_last): eight, in tf32 four, 16 bytes of a pixel; pixels become planes in
// shared memory and outputs pixels again. It has CHANNELS + BESIDE slots: channel k's planes lie in slot k + BESIDE, its outputs
// take slot k, which is free as all have finished channel k − BESIDE.
// A pair: a second, smaller filter, centred in the first, has outputs small_y of its own from the same staging of x. In
// channels_last they come first, and are parked in free slots and where the large filters will lie: no others would fit.
// Sizes of maps are arguments: maps that share a tile share the kernel.
// Constants: KH KW PY PX NI IM IG RB QT QF QN DLO DHI WARPS_ROWS WARPS_IMAGES TILE_ROWS STAGED_ROWS PITCH IMAGE LEFT TAPS TWICE
// WPITCH WCOPY VECTOR STORE FLIP HAS_BIAS ACTIVATION MIN_BLOCKS CHANNELS LAST BESIDE SLOT YPITCH YIMAGE FILTER; of a pair,
// SMALL_KH … SMALL_FILTER and SMALL_AT; pitches, slots, filters and places in bytes (native/gpu_plans).
#include <ptx.cuh>

constexpr int WARPS = WARPS_ROWS * WARPS_IMAGES;           // of a channel
constexpr int THREADS = 32 * WARPS * BESIDE;
constexpr int IMAGES = NI * IG * WARPS_IMAGES;
constexpr int WEIGHTS = LAST ? (CHANNELS + BESIDE) * SLOT : IMAGES * IMAGE;  // where the filters start in shared memory
constexpr int ROW_GROUPS = TILE_ROWS / (RB * IM);          // a warp takes one at a time
constexpr int SIZE = sizeof(Element), E = 16 / SIZE, STEP = 8 / E;
constexpr bool TF32 = SIZE == 4;
constexpr int TAP = TF32 && TWICE ? 8 : SIZE;              // bytes from tap to tap

// A filter: taps, padding, diagonal blocks of T; its rows in shared memory, and where a channel's outputs are parked there.
struct Large {
    static constexpr int ROWS = KH, COLUMNS = KW, TOP = PY, SIDE = PX, FIRST = DLO, BLOCKS = DHI - DLO + 1, MARGIN = LEFT;
    static constexpr int LENGTH = TAPS, ROW_BYTES = WPITCH, COPY = WCOPY, BYTES = FILTER, AT = WEIGHTS;
    DEVICE int parked(int channel) { return channel * SLOT; }
};
#ifdef SMALL_KH
struct Small {
    static constexpr int ROWS = SMALL_KH, COLUMNS = SMALL_KW, TOP = SMALL_PY, SIDE = SMALL_PX, FIRST = SMALL_DLO;
    static constexpr int BLOCKS = SMALL_DHI - SMALL_DLO + 1, MARGIN = SMALL_LEFT, LENGTH = SMALL_TAPS;
    static constexpr int ROW_BYTES = SMALL_WPITCH, COPY = SMALL_WCOPY, BYTES = SMALL_FILTER, AT = SMALL_AT;
    DEVICE int parked(int channel) {
        return channel < BESIDE ? channel * SLOT : WEIGHTS + (channel - BESIDE) * (IMAGES * YIMAGE);
    }
};
#define SMALL_ARGUMENTS const Element *small_w, Element *small_y,
#else
#define SMALL_ARGUMENTS
#endif

struct Block {  // of threads: its first channel, image, output row, output column and staged row
    int c, n, i, j, r;
};
struct Place {  // of a thread in a block: its lane, its warp's channel of those side by side, its warp of that channel's
    int lane, beside, warp;
};
struct Size {  // of a map
    int rows, columns;
};
DEVICE bool inside(Size map, int r, int s) { return (u32)r < (u32)map.rows && (u32)s < (u32)map.columns; }

// The filter's rows, TAPS long, zeros around, twice so that two taps are one aligned load. 16 bits: the second copy is
// shifted by one, for any {w[e], w[e+1]}. tf32: {w[e], w[e+4]} lie side by side, for {B_d, B_(d+1)}, unless memory is short.
template <class F> DEVICE void stage_weights(const Element* w, int to) {
    constexpr int COUNT = F::ROWS * F::LENGTH, ALL = F::ROWS * F::COLUMNS;
    UNROLL_BY(4) for (int k = thread_index(); k <= COUNT; k += THREADS) {
        int u = k / F::LENGTH, v = k % F::LENGTH - F::MARGIN;
        Element tap = 0;
        if (u < F::ROWS && v >= 0 && v < F::COLUMNS)
            tap = as_operand(load_global(w + (FLIP ? ALL - 1 - (u * F::COLUMNS + v) : u * F::COLUMNS + v)));
        if (TF32) {
            if (k < COUNT) store_shared(to + k * TAP, tap);
            if (TWICE && k < COUNT && k % F::LENGTH >= E) store_shared(to + (k - E) * TAP + 4, tap);
            if (TWICE && k < COUNT && k % F::LENGTH >= F::LENGTH - E) store_shared(to + k * TAP + 4, (Element)0);
        } else {
            if (k < COUNT) store_shared(to + k * 2, tap);
            if (k > 0) store_shared(to + F::COPY + (k - 1) * 2, tap);
        }
    }
}
template <class F> DEVICE void stage_filters(const Element* w, int c) {
    UNROLL_BY(1) for (int k = 0; k < CHANNELS; ++k)
        stage_weights<F>(w + (i64)(c + k) * F::ROWS * F::COLUMNS, F::AT + k * F::BYTES);
}

DEVICE void stage_images(const Element* x, Size in, int n0, int N, int c, int C, int first_row, int first_column) {
    constexpr u32 UNITS = QN * 16 / VECTOR;  // of a row
    const int plane = in.rows * in.columns;
    const Element* first = x + ((i64)n0 * C + c) * plane;
    UNROLL_BY(4) for (u32 k = thread_index(); k < IMAGES * STAGED_ROWS * UNITS; k += THREADS) {
        u32 row = k / UNITS, unit = k % UNITS, image = row / STAGED_ROWS;
        int r = first_row + (int)(row % STAGED_ROWS), s = first_column + (int)unit * (VECTOR / SIZE);
        u32 to = image * (IMAGE - STAGED_ROWS * PITCH) + row * PITCH + unit * VECTOR;
        if ((int)image < N - n0 && inside(in, r, s))
            copy_operand<VECTOR>(to, first + (i64)(int)image * (C * plane) + (r * in.columns + s));
        else
            zero_shared<VECTOR>(to);
    }
    copy_commit();
}

// Two neighbouring pixels of eight channels, 16 bytes each, become a pair in each of eight planes; in tf32 a pixel of four
// channels becomes a word in each of four. Threads go over the words of a slot, gaps between rows included, so that a warp's
// stores lie side by side.
DEVICE void stage_pixels(const Element* x, Size in, int n0, int N, int c0, int C, int first_row, int first_column) {
    UNROLL_BY(2) for (int to = thread_index() * 4; to < IMAGES * IMAGE; to += THREADS * 4) {
        int image = to / IMAGE, row = to % IMAGE / PITCH, word = to % IMAGE % PITCH / 4;
        if (row >= STAGED_ROWS || word >= QN * 4) continue;
        int r = first_row + row, s = first_column + 4 / SIZE * word;
        uint4 first = {}, second = {};
        if (n0 + image < N) {
            const Element* from = x + (((i64)(n0 + image) * in.rows + r) * in.columns + s) * C + c0;
            if (inside(in, r, s)) first = load_global(reinterpret_cast<const uint4*>(from));
            if (!TF32 && inside(in, r, s + 1)) second = load_global(reinterpret_cast<const uint4*>(from + C));
        }
        const u32 a[4] = {first.x, first.y, first.z, first.w}, b[4] = {second.x, second.y, second.z, second.w};
        UNROLL for (int e = 0; e < 4; ++e) {
            if constexpr (TF32) {
                store_shared(to + (BESIDE + e) * SLOT, round_to_tf32(a[e]));
            } else {
                store_shared(to + (BESIDE + 2 * e) * SLOT, low_halves(a[e], b[e]));
                store_shared(to + (BESIDE + 2 * e + 1) * SLOT, high_halves(a[e], b[e]));
            }
        }
    }
}

template <int BLOCKS> DEVICE void load_taps(u32 (&b)[BLOCKS], int taps) {
    if constexpr (TF32 && TWICE) {
        UNROLL for (int d = 0; d < BLOCKS; d += 2) {
            uint2 two = load_shared<uint2>(taps + d * E * TAP);
            b[d] = two.x;
            if (d + 1 < BLOCKS) b[d + 1] = two.y;
        }
    } else {
        UNROLL for (int d = 0; d < BLOCKS; ++d) b[d] = load_shared<u32>(taps + d * E * TAP);
    }
}

// One input row (16 pairs × QN blocks) times one kernel row, into QT output blocks.
template <class F> DEVICE void add_row(float (&acc)[IG][QT][4], const u32 (&a)[IG][QN][2], int taps) {
    u32 b[F::BLOCKS];
    load_taps(b, taps);
    UNROLL for (int q = 0; q < QN; q += 2)
        UNROLL for (int j = 0; j < QT; ++j) {
            const int d = q + QF - STEP * j - F::FIRST;
            const bool low = d >= 0 && d < F::BLOCKS, high = d + 1 >= 0 && d + 1 < F::BLOCKS && q + 1 < QN;
            UNROLL for (int g = 0; g < IG; ++g) {
                if (low && high)
                    mma_two(acc[g][j], a[g][q][0], a[g][q][1], a[g][q + 1][0], a[g][q + 1][1], b[d], b[d + 1]);
                else if (low)
                    mma_one(acc[g][j], a[g][q][0], a[g][q][1], b[d]);
                else if (high)
                    mma_one(acc[g][j], a[g][q + 1][0], a[g][q + 1][1], b[d + 1]);
            }
        }
}

DEVICE void load_row(u32 (&a)[IG][QN][2], int at) {
    UNROLL for (int g = 0; g < IG; ++g)
        UNROLL for (int q = 0; q < QN; q += 2) {
            if (q + 1 < QN) {
                u32 m[4];
                load_matrices<4, false>(m, at + g * NI * IMAGE + q * 16);
                a[g][q][0] = m[0], a[g][q][1] = m[1], a[g][q + 1][0] = m[2], a[g][q + 1][1] = m[3];
            } else {
                u32 m[2];
                load_matrices<2, false>(m, at + g * NI * IMAGE + q * 16);
                a[g][q][0] = m[0], a[g][q][1] = m[1];
            }
        }
}

// A row of 8 QT outputs is spread over four lanes, each with two neighbours of every block.
DEVICE void store_row(Element* y, const float (&acc)[QT][4], int half, int j0, int columns, bool valid) {
    constexpr int PAIRED = STORE == 4 && !TF32 ? QT / 2 * 2 : 0;
    const int t = thread_index() % 4, odd = t % 2;
    UNROLL for (int j = 0; j < PAIRED; j += 2) {  // lanes swap halves of two blocks, so that each stores four neighbours
        u32 v = pack(acc[j][2 * half], acc[j][2 * half + 1]);
        u32 w = pack(acc[j + 1][2 * half], acc[j + 1][2 * half + 1]);
        u32 other = shuffle_xor(odd ? v : w, 1);
        uint2 four = {odd ? other : v, odd ? w : other};
        int column = j0 + 8 * (j + odd) + t / 2 * 4;
        if (valid && column < columns) store_global(reinterpret_cast<uint2*>(y + column), four);
    }
    UNROLL for (int j = PAIRED; j < QT; ++j) {
        float first = acc[j][2 * half], second = acc[j][2 * half + 1];
        int column = j0 + 8 * j + 2 * t;
        if (STORE >= 2) {
            if (valid && column < columns) store_pair(y + column, first, second);
        } else {
            if (valid && column < columns) store_global(y + column, from_float(first));
            if (valid && column + 1 < columns) store_global(y + column + 1, from_float(second));
        }
    }
}

// The same row, kept in shared memory until all channels of its pixels are there.
DEVICE void park_row(int at, const float (&acc)[QT][4], int half) {
    at += thread_index() % 4 * 2 * SIZE;
    UNROLL for (int j = 0; j < QT; ++j) {
        const float first = acc[j][2 * half], second = acc[j][2 * half + 1];
        if constexpr (TF32)
            store_shared(at + j * 32, make_float2(first, second));
        else
            store_shared(at + j * 16, pack(first, second));
    }
}

template <class F> DEVICE void store_pixels(Element* y, Size out, Block block, int N, int C) {
    UNROLL_BY(2) for (int at = thread_index() * 4; at < IMAGES * YIMAGE; at += THREADS * 4) {
        int n = block.n + at / YIMAGE, row = at % YIMAGE / YPITCH, word = at % YIMAGE % YPITCH / 4;
        int i = block.i + row, j = block.j + 4 / SIZE * word;
        if (row >= TILE_ROWS || word >= QT * 2 * SIZE || n >= N || !inside(out, i, j)) continue;
        u32 v[CHANNELS];
        UNROLL for (int e = 0; e < CHANNELS; ++e) v[e] = load_shared<u32>(at + F::parked(e));
        Element* to = y + (((i64)n * out.rows + i) * out.columns + j) * C + block.c;
        if constexpr (TF32) {
            store_global(reinterpret_cast<uint4*>(to), uint4{v[0], v[1], v[2], v[3]});
        } else {
            uint4 first = {low_halves(v[0], v[1]), low_halves(v[2], v[3]), low_halves(v[4], v[5]), low_halves(v[6], v[7])};
            uint4 second = {high_halves(v[0], v[1]), high_halves(v[2], v[3]), high_halves(v[4], v[5]), high_halves(v[6], v[7])};
            store_global(reinterpret_cast<uint4*>(to), first);
            if (j + 1 < out.columns) store_global(reinterpret_cast<uint4*>(to + C), second);
        }
    }
}

// All channels of a block, by one filter.
template <class F>
DEVICE void convolve(const Element* bias, Element* y, Size in, Size out, Block block, Place place, int N, int C) {
    const int lane = place.lane, warp = place.warp;
    const int e = E / 4 * (lane % 4) - lane / 4 + F::SIDE + E * F::FIRST + F::MARGIN;
    const int first_taps = F::AT + (TF32 ? e * TAP : e % 2 ? F::COPY + (e - 1) * 2 : e * 2);
    const int pair = lane % 16, group = warp / WARPS_ROWS * IG;  // ldmatrix: this lane's (image, row) pair, its first image group
    const int first_plane = (group * NI + pair % NI) * IMAGE + pair / NI * PITCH + lane / 16 * 16;

    UNROLL_BY(1) for (int channel = place.beside; channel < CHANNELS; channel += BESIDE) {
        const int taps = first_taps + channel * F::BYTES, plane = first_plane + (channel + BESIDE) * SLOT, c = block.c + channel;
        const float b = HAS_BIAS ? to_float(load_global(bias + c)) : 0.f;
        for (int pass = 0; pass * WARPS_ROWS < ROW_GROUPS; ++pass) {
            // Odd passes run backwards: rows near the edge, with fewer kernel rows, are shared out evenly.
            int turn = pass % 2 ? WARPS_ROWS - 1 - warp % WARPS_ROWS : warp % WARPS_ROWS;
            int i0 = block.i + (pass * WARPS_ROWS + turn) * RB * IM;
            if (i0 >= min(out.rows, block.i + TILE_ROWS)) continue;
            float acc[RB][IG][QT][4] = {};
            int last = min(in.rows - 1, i0 + (RB - 1) * IM + F::ROWS - 1 - F::TOP);
            UNROLL_BY(1) for (int r = max(1 - IM, i0 - F::TOP); r <= last; ++r) {
                u32 a[IG][QN][2];
                load_row(a, plane + (r - block.r) * PITCH);
                UNROLL for (int k = 0; k < RB; ++k) {
                    int u = r - (i0 + k * IM) + F::TOP;
                    if (u >= 0 && u < F::ROWS) add_row<F>(acc[k], a, taps + u * F::ROW_BYTES);
                }
            }
            UNROLL for (int k = 0; k < RB; ++k)
                UNROLL for (int g = 0; g < IG; ++g) {
                    UNROLL for (int j = 0; j < QT; ++j)
                        UNROLL for (int e = 0; e < 4; ++e) acc[k][g][j][e] = activated<ACTIVATION>(acc[k][g][j][e] + b);
                    UNROLL for (int half = 0; half < 2; ++half) {
                        int row = lane / 4 + 8 * half, image = (group + g) * NI + row % NI, n = block.n + image;
                        int i = i0 + k * IM + row / NI;
                        if constexpr (LAST)
                            park_row(F::parked(channel) + image * YIMAGE + (i - block.i) * YPITCH, acc[k][g], half);
                        else
                            store_row(y + (((i64)n * C + c) * out.rows + i) * out.columns, acc[k][g], half, block.j, out.columns,
                                      n < N && i < out.rows);
                    }
                }
        }
        if constexpr (LAST) block_barrier();
    }
    if constexpr (LAST) store_pixels<F>(y, out, block, N, C);
}

KERNEL(THREADS, MIN_BLOCKS)
toeplitz_forward(const Element* x, const Element* w, const Element* bias, SMALL_ARGUMENTS Element* y, int N, int C, int H, int W,
                 int OH, int OW) {
    const Size in = {H, W}, out = {OH, OW};
    const Place place = {thread_index() % 32, BESIDE == 1 ? 0 : thread_index() / 32 / WARPS,
                         BESIDE == 1 ? thread_index() / 32 : thread_index() / 32 % WARPS};
    const int column_tiles = (OW + 8 * QT - 1) / (8 * QT);
    const int i_tile = block_z() / column_tiles * TILE_ROWS;
    const Block block = {block_x() * CHANNELS, block_y() * IMAGES, i_tile, block_z() % column_tiles * QT * 8,
                         max(i_tile - PY, 1 - IM)};
    if constexpr (LAST)
        stage_pixels(x, in, block.n, N, block.c, C, block.r, block.j + E * QF);
    else
        stage_images(x, in, block.n, N, block.c, C, block.r, block.j + E * QF);
#ifdef SMALL_KH
    stage_filters<Small>(small_w, block.c);
    if constexpr (LAST) {
        block_barrier();
        convolve<Small>(bias, small_y, in, out, block, place, N, C);
        block_barrier();
    }
#endif
    stage_filters<Large>(w, block.c);
    copy_wait<0>();
    block_barrier();
#ifdef SMALL_KH
    if constexpr (!LAST) convolve<Small>(bias, small_y, in, out, block, place, N, C);
#endif
    convolve<Large>(bias, y, in, out, block, place, N, C);
}
