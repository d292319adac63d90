// Weight gradient by fused multiply-adds in fp32, any geometry:
//   dW[c,u,v] = Σ_n Σ_i Σ_j dy[n,c,i,j] · x[n,c, i·SY + u·DY − PY, j·SX + v·DX − PX]
// A block: one channel and a fixed chunk of `chunk` images, so that sums never depend on the GPU or on the batch's split;
// its sum goes to partial[chunk][c][u][v] and sum_partials.cu adds the chunks in order: no atomics.
// It computes UB kernel rows from UB · block_z, as many as it has threads for.
// A thread: one kernel row, 8 kernel columns, every SLICES-th row of dy; slices are added in order at the end.
// Constants: KH KW SY SX DY DX TC PITCH THREADS UB SLICES (native/gpu_plans).
#include <ptx.cuh>

constexpr int GROUPS = (KW + 7) / 8;    // of kernel columns
constexpr int UNITS = UB * GROUPS;      // threads of a slice
constexpr int DY_PITCH = TC + 4;

// Eight neighbouring lanes read 16 bytes each from eight banks: with two groups of columns, every second row is skewed.
DEVICE int row_offset(int row) { return row * PITCH + (GROUPS == 2 ? row / 2 * 8 : 0); }

DEVICE void stage_row(const Element* row, int to, int first_column, int columns, int W) {  // one warp; zeros outside
    for (int k = thread_index() % 32; k < columns; k += 32) {
        int s = first_column + k;
        store_shared(to + k * 4, s >= 0 && s < W ? to_float(load_global(row + s)) : 0.f);
    }
}

// total[k] += Σ_j dy[j] · x[j·SX + k·DX], the row summed by itself first.
DEVICE void add_row(float (&total)[8], int x, int dy) {
    float acc[8] = {};
    if constexpr (SX == 1 && DX == 1) {
        float window[12];
        UNROLL for (int j = -8; j < TC; j += 4) {
            UNROLL for (int k = 0; k < 8; ++k) window[k] = window[k + 4];
            float4 q = load_shared<float4>(x + (j + 8) * 4);
            window[8] = q.x, window[9] = q.y, window[10] = q.z, window[11] = q.w;
            if (j < 0) continue;
            float4 d = load_shared<float4>(dy + j * 4);
            UNROLL for (int k = 0; k < 8; ++k) acc[k] = multiply_add(d.x, window[k], acc[k]);
            UNROLL for (int k = 0; k < 8; ++k) acc[k] = multiply_add(d.y, window[k + 1], acc[k]);
            UNROLL for (int k = 0; k < 8; ++k) acc[k] = multiply_add(d.z, window[k + 2], acc[k]);
            UNROLL for (int k = 0; k < 8; ++k) acc[k] = multiply_add(d.w, window[k + 3], acc[k]);
        }
    } else {
        UNROLL_BY(1) for (int j = 0; j < TC; ++j) {
            float d = load_shared<float>(dy + j * 4);
            UNROLL for (int k = 0; k < 8; ++k) acc[k] = multiply_add(d, load_shared<float>(x + (j * SX + k * DX) * 4), acc[k]);
        }
    }
    UNROLL for (int k = 0; k < 8; ++k) total[k] += acc[k];
}

KERNEL(THREADS, 1)
direct_weight(const Element* x, const Element* dy, float* partial, int N, int C, int H, int W, int OH, int OW, int PY, int PX,
              int chunk, int tile_rows, int staged_rows) {
    int c = block_x(), n_end = min(N, (block_y() + 1) * chunk), warp = thread_index() / 32;
    int gradient = row_offset(staged_rows + 1) * 4;
    int unit = thread_index() % UNITS, slice = thread_index() / UNITS, u_first = UB == KH ? 0 : block_z() * UB;
    int u = u_first + unit / GROUPS, group = unit % GROUPS;
    float acc[8] = {};
    for (int n = block_y() * chunk; n < n_end; ++n)
        for (int i_tile = 0; i_tile < OH; i_tile += tile_rows)
            for (int j_tile = 0; j_tile < OW; j_tile += TC) {
                const Element* x_plane = x + ((i64)n * C + c) * H * W;
                const Element* dy_plane = dy + ((i64)n * C + c) * OH * OW;
                const bool whole = staged_rows >= H, staged = whole && i_tile > 0 && OW <= TC;  // x stays for all tiles
                int first = whole ? 0 : max(0, i_tile * SY + u_first * DY - PY), end = min(H, first + staged_rows);
                int i_end = min(OH, i_tile + tile_rows);
                block_barrier();
                for (int r = first + warp; r < end && !staged; r += THREADS / 32)
                    stage_row(x_plane + (i64)r * W, row_offset(r - first) * 4, j_tile * SX - PX, PITCH, W);
                for (int i = i_tile + warp; i < i_end; i += THREADS / 32)
                    stage_row(dy_plane + (i64)i * OW, gradient + (i - i_tile) * DY_PITCH * 4, j_tile, TC, OW);
                block_barrier();
                float step[8] = {};  // summed by itself: three short sums round less than one long one
                for (int i = i_tile + slice; i < i_end && slice < SLICES; i += SLICES) {
                    int r = i * SY + u * DY - PY;
                    if (r < first || r >= end) continue;
                    lockstep((n * OH + i_tile + i / SLICES * SLICES) + 1);
                    add_row(step, (row_offset(r - first) + group * 8 * DX) * 4, gradient + (i - i_tile) * DY_PITCH * 4);
                }
                UNROLL for (int k = 0; k < 8; ++k) acc[k] += step[k];
            }
    block_barrier();
    UNROLL for (int k = 0; k < 8; ++k)
        if (slice < SLICES) store_shared(((slice * UNITS + unit) * 9 + k) * 4, acc[k]);
    block_barrier();
    float* out = partial + (((i64)block_y() * C + c) * KH + u_first) * KW;
    for (int tap = thread_index(); tap < min(UB, KH - u_first) * KW; tap += THREADS) {
        int column = tap % KW, source = tap / KW * GROUPS + column / 8;
        float sum = 0.f;
        for (int s = 0; s < SLICES; ++s) sum += load_shared<float>(((s * UNITS + source) * 9 + column % 8) * 4);
        store_global(out + tap, sum);
    }
}
