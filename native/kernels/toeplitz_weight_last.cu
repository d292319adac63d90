// Weight gradient on tensor cores of x and dy in channels_last: stride 1, fp16, bf16 or tf32, fp32 accumulation. A row of dy is
// a filter over the rows of x:
//   dW[u, v] = Σ_(n,i) Σ_s T_i[v, s] · x[n, i + u − PY, s],  T_i[v, s] = dy[n, i, s − v + PX],
// products of 16 taps v × 2 E columns s × 8 taps u, E = 8 or, in tf32, 4: the elements of 16 bytes. T_i is a Toeplitz matrix: one
// register a lane holds its whole diagonal block d = s/E − 8/E · v/8, {dy[e], dy[e+1]} with e = 2 (lane % 4) − lane / 4 + PX + 8 d,
// in tf32 dy[e] with e = lane % 4 − lane / 4 + PX + 4 d; only blocks with DLO ≤ d ≤ DHI are issued. All rows add into the same
// accumulators, which are the taps themselves: E channels' fit registers, and nothing is summed elsewhere before a chunk's end.
// A block: E channels, 16 bytes of a pixel, of a fixed chunk of `chunk` images. It streams steps (NI images, a tile of x's
// rows and columns, read once); within a step, G_ROWS rows of dy at a time. Pixels become planes in shared memory.
// A warp: one channel, UPW blocks of 8 taps u, every SLICES-th row of dy; slices are added in order.
// Its sum goes to partial[chunk][c][u][v]; sum_partials.cu adds the chunks in order: no atomics, the same bits always.
// Sizes of maps are arguments: maps that share a tile share the kernel.
// Constants: KH KW PY PX NI CHANNELS X_ROWS BETWEEN QN PITCH I_ROWS G_ROWS G_PITCH G_COPY G_SLOT LEFT DLO DHI UPW WARPS_U SLICES
// MIN_BLOCKS; pitches, copies and slots in bytes (native/gpu_plans).
#include <ptx.cuh>

constexpr int SIZE = sizeof(Element), E = 16 / SIZE, STEP = 8 / E;
constexpr bool TF32 = SIZE == 4;
constexpr int WARPS = CHANNELS * WARPS_U * SLICES, THREADS = 32 * WARPS;
// BETWEEN rows of zeros lie before and after each plane of x, for eight taps of which one meets a pixel.
constexpr int X_ROWS_APART = X_ROWS + BETWEEN, X_SLOT = NI * X_ROWS_APART * PITCH;  // of an image, of a channel
constexpr int FIRST = BETWEEN * PITCH, GRADIENT = FIRST + CHANNELS * X_SLOT;  // where x's and dy's start
constexpr int V_TILES = (KW + 15) / 16, QUADS = STEP * (V_TILES - 1) + (QN + 1) / 2;

struct Maps {  // of x and of dy, and how many tiles of x there are
    int H, W, OH, OW, row_tiles, column_tiles;
};
DEVICE Maps maps_of(int H, int W, int OH, int OW) {
    return {H, W, OH, OW, (H + X_ROWS - 1) / X_ROWS, (W + E * QN - 1) / (E * QN)};
}

struct Step {  // first image, row and column of x
    int image, row, column;
};
DEVICE Step step_of(int s, const Maps& m) {
    const int row = s / m.column_tiles;
    return {row / m.row_tiles * NI, row % m.row_tiles * X_ROWS, s % m.column_tiles * E * QN};
}
DEVICE int first_gradient_row(Step s) { return max(0, s.row + PY - KH + 1); }

struct Pair {  // two neighbouring pixels of eight channels; in tf32 one, of four
    u32 left[4], right[4];
};
DEVICE Pair load_pixels(const Element* from, int C, bool left, bool right) {
    uint4 a = {}, b = {};
    if (left) a = load_global(reinterpret_cast<const uint4*>(from));
    if (!TF32 && right) b = load_global(reinterpret_cast<const uint4*>(from + C));
    return {{a.x, a.y, a.z, a.w}, {b.x, b.y, b.z, b.w}};
}
DEVICE u32 of_channel(const Pair& p, int e) {
    if constexpr (TF32) return round_to_tf32(p.left[e]);
    const u32 a = p.left[e / 2], b = p.right[e / 2];
    return e % 2 ? high_halves(a, b) : low_halves(a, b);
}

// Threads go over the words of a plane, gaps between rows included, so that a warp's stores lie side by side.
DEVICE void stage_images(const Element* x, Step s, const Maps& m, int images, int C) {
    UNROLL_BY(2) for (int to = thread_index() * 4; to < X_SLOT; to += THREADS * 4) {
        const int row = to / PITCH % X_ROWS_APART, word = to % PITCH / 4;
        if (row >= X_ROWS || word >= QN * 4) continue;
        const int n = s.image + to / PITCH / X_ROWS_APART, r = s.row + row, c = s.column + 4 / SIZE * word;
        const bool inside = n < images && r < m.H;
        const Pair p = load_pixels(x + (((i64)n * m.H + r) * m.W + c) * C, C, inside && c < m.W, inside && c + 1 < m.W);
        UNROLL for (int e = 0; e < CHANNELS; ++e) store_shared(FIRST + e * X_SLOT + to, of_channel(p, e));
    }
}

// Rows of dy with zeros around; in 16 bits twice: the second copy is shifted by one, for any {dy[e], dy[e+1]}. What it stores
// before its first element no one reads.
DEVICE void stage_gradient(const Element* dy, Step s, const Maps& m, int first, int rows, int C) {
    UNROLL_BY(2) for (int to = thread_index() * 4; to < rows * G_PITCH; to += THREADS * 4) {
        const int k = first + to / G_PITCH, j = s.column + to % G_PITCH / SIZE - LEFT;
        const int n = s.image + k / I_ROWS, i = first_gradient_row(s) + k % I_ROWS;
        const Element* from = dy + (((i64)n * m.OH + i) * m.OW + j) * C;
        const u32 columns = i < m.OH ? m.OW : 0;
        const Pair p = load_pixels(from, C, (u32)j < columns, (u32)(j + 1) < columns);
        UNROLL for (int e = 0; e < CHANNELS; ++e) {
            const int at = GRADIENT + e * G_SLOT + to;
            const u32 two = of_channel(p, e);
            store_shared(at, two);
            if constexpr (!TF32) {
                store_shared(at + G_COPY - 2, (Element)two);
                store_shared(at + G_COPY, (Element)(two >> 16));
            }
        }
    }
}

// Eight rows of x, QN blocks of E columns; a fourth block beside three is read and not used.
DEVICE void load_rows(u32 (&b)[QN + 3], int at) {
    UNROLL for (int q = 0; q < QN; q += 4) {
        if (QN - q >= 3) {
            u32 m[4];
            load_matrices<4, false>(m, at + q * 16);
            UNROLL for (int k = 0; k < 4; ++k) b[q + k] = m[k];
        } else if (QN - q == 2) {
            u32 m[2];
            load_matrices<2, false>(m, at + q * 16);
            b[q] = m[0], b[q + 1] = m[1];
        } else {
            u32 m[1];
            load_matrices<1, false>(m, at + q * 16);
            b[q] = m[0];
        }
    }
}

DEVICE constexpr bool issued(int d) { return d >= DLO && d <= DHI; }
DEVICE u32 load_diagonal(int taps, int d) { return issued(d) ? load_shared<u32>(taps + (d - DLO) * 16) : 0; }

// 16 taps v × 2 E columns s of T, for each even d = q − 2 STEP · v.
DEVICE void load_taps(u32 (&t)[QUADS][4], int taps) {
    UNROLL for (int k = 0; k < QUADS; ++k) {
        const int d = 2 * (k - STEP * (V_TILES - 1));
        t[k][0] = load_diagonal(taps, d), t[k][1] = load_diagonal(taps, d - STEP), t[k][2] = load_diagonal(taps, d + 1);
        t[k][3] = TF32 ? load_diagonal(taps, d + 1 - STEP) : t[k][0];
        UNROLL for (int r = 0; r < 4; ++r) keep(t[k][r]);
    }
}

// Eight taps u of one row of dy.
DEVICE void multiply_rows(float (&acc)[V_TILES][4], const u32 (&t)[QUADS][4], const u32 (&b)[QN + 3]) {
    UNROLL for (int q = 0; q < QN; q += 2)
        UNROLL for (int v = 0; v < V_TILES; ++v) {
            const int d = q - 2 * STEP * v, k = q / 2 + STEP * (V_TILES - 1 - v);
            const bool low = issued(d) || issued(d - STEP), high = (issued(d + 1) || issued(d + 1 - STEP)) && q + 1 < QN;
            if (low && high)
                mma_two(acc[v], t[k][0], t[k][1], t[k][2], t[k][3], b[q], b[q + 1]);
            else if (low)
                mma_one(acc[v], t[k][0], t[k][1], b[q]);
            else if (high)
                mma_one(acc[v], t[k][2], t[k][3], b[q + 1]);
        }
}

// One row of dy at `taps` in shared memory; tap u = 0 of this warp's blocks lies over row `top` of x's tile, at `rows`.
DEVICE void add_row(float (&acc)[UPW][V_TILES][4], int taps, int rows, int top, int blocks) {
    u32 t[QUADS][4];
    load_taps(t, taps);
    keep(rows);
    UNROLL for (int k = 0; k < UPW; ++k) {
        if (k >= blocks || top + 8 * k <= -8 || top + 8 * k >= X_ROWS) continue;
        u32 b[QN + 3];
        load_rows(b, rows + 8 * k * PITCH);
        multiply_rows(acc[k], t, b);
    }
}

// Into the first slice's accumulators, in order, through shared memory.
DEVICE void add_slices(float (&acc)[UPW][V_TILES][4], int slice) {
    constexpr int OWN = UPW * V_TILES * 4, ALIKE = THREADS / SLICES;
    const int at = thread_index() % ALIKE * 4;
    block_barrier();
    for (int z = 1; z < SLICES; ++z)
        UNROLL for (int k = 0; k < OWN; ++k)
            if (slice == z) store_shared(at + ((z - 1) * OWN + k) * ALIKE * 4, acc[k / 4 / V_TILES][k / 4 % V_TILES][k % 4]);
    block_barrier();
    for (int z = 1; z < SLICES; ++z)
        UNROLL for (int k = 0; k < OWN; ++k) {
            float& sum = acc[k / 4 / V_TILES][k / 4 % V_TILES][k % 4];
            if (slice == 0) sum += load_shared<float>(at + ((z - 1) * OWN + k) * ALIKE * 4);
        }
}

KERNEL(THREADS, MIN_BLOCKS)
toeplitz_weight_last(const Element* x, const Element* dy, float* partial, int N, int C, int chunk, int H, int W,
                     int OH, int OW) {
    const Maps maps = maps_of(H, W, OH, OW);
    const int lane = thread_index() % 32, warp = thread_index() / 32, channel = warp % CHANNELS;
    const int slice = warp / (WARPS / SLICES), u_first = warp / CHANNELS % WARPS_U * UPW * 8, blocks = (KH - u_first + 7) / 8;
    const int c = block_x() * CHANNELS, n0 = block_y() * chunk, images = min(chunk, N - n0);
    const Element *x_chunk = x + (i64)n0 * (H * W) * C + c, *dy_chunk = dy + (i64)n0 * (OH * OW) * C + c;
    const int e = E / 4 * (lane % 4) - lane / 4 + PX + E * DLO + LEFT;
    const int taps = GRADIENT + channel * G_SLOT + (TF32 ? e * 4 : e % 2 ? G_COPY + (e - 1) * 2 : e * 2);
    const int first_rows = FIRST + channel * X_SLOT + lane % 8 * PITCH + lane / 8 * 16;
    float acc[UPW][V_TILES][4] = {};

    for (int k = thread_index() * 16; k < GRADIENT; k += THREADS * 16) zero_shared<16>(k);
    const int steps = (images + NI - 1) / NI * (maps.row_tiles * maps.column_tiles);
    for (int s = 0; s < steps; ++s) {
        const Step here = step_of(s, maps);
        const int rows = min(NI, images - here.image) * I_ROWS;  // of dy, image after image
        for (int first = 0; first < rows; first += G_ROWS) {
            const int staged = min(G_ROWS, rows - first);
            block_barrier();
            if (first == 0) stage_images(x_chunk, here, maps, images, C);
            stage_gradient(dy_chunk, here, maps, first, staged, C);
            block_barrier();
            UNROLL_BY(1) for (int k = slice; k < staged; k += SLICES) {
                const int image = (first + k) / I_ROWS, i = first_gradient_row(here) + (first + k) % I_ROWS;
                const int top = i + u_first - PY - here.row;
                add_row(acc, taps + k * G_PITCH, first_rows + (image * X_ROWS_APART + top) * PITCH, top, blocks);
            }
        }
    }

    if (SLICES > 1) add_slices(acc, slice);
    if (slice > 0) return;
    float* out = partial + ((i64)block_y() * C + c + channel) * (KH * KW);
    UNROLL for (int k = 0; k < UPW; ++k)
        UNROLL for (int t = 0; t < V_TILES; ++t)
            UNROLL for (int r = 0; r < 4; ++r) {
                const int u = u_first + 8 * k + lane % 4 * 2 + r % 2, v = 16 * t + lane / 4 + r / 2 * 8;
                if (u < KH && v < KW) store_global(out + u * KW + v, acc[k][t][r]);
            }
}
