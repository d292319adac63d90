// Weight gradient by fused multiply-adds in fp32, any geometry:
//   dW[c,u,v] = Σ_n Σ_i Σ_j dy[n,c,i,j] · x[n,c, i·SY + u·DY − PY, j·SX + v·DX − PX]
// A block: CHANNELS channels and a fixed chunk of `chunk` images, so that sums never depend on the GPU or on the batch's split;
// its sum goes to partial[chunk][c][u][v] and sum_partials.cu adds the chunks in order: no atomics.
// It computes UB kernel rows from UB · block_z, as many as it has threads for.
// A thread: one kernel row, 8 kernel columns of a channel, every SLICES-th row of dy; slices are added in order at the end.
// Constants: KH KW SY SX DY DX TC PITCH THREADS CHANNELS UB SLICES (native/gpu_plans).
#include <pixels.cuh>

constexpr int GROUPS = (KW + 7) / 8;    // of kernel columns
constexpr int UNITS = UB * GROUPS;      // threads of a slice
constexpr int DY_PITCH = TC + 4;

// Eight neighbouring lanes read 16 bytes each from eight banks: with two groups of columns, every second row is skewed.
DEVICE int row_offset(int row) { return row * PITCH + (GROUPS == 2 ? row / 2 * 8 : 0); }

DEVICE void stage_row(const Element* row, int to, int slot, int first_column, int columns, int C, int W) {  // one warp; zeros outside
    for (int k = thread_index() % 32; k < columns; k += 32) {
        int s = first_column + k;
        float v[CHANNELS] = {};
        if (s >= 0 && s < W) load_channels(v, row + (i64)s * next_pixel(C));
        UNROLL for (int e = 0; e < CHANNELS; ++e) store_shared(to + e * slot + k * 4, v[e]);
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
    const int c0 = block_x() * CHANNELS, channel = channel_of_thread();
    int n_end = min(N, (block_y() + 1) * chunk), warp = thread_index() / 32;
    int gradient = row_offset(staged_rows + 1) * 4, slot = gradient + tile_rows * DY_PITCH * 4;  // of a channel
    int unit = place_of_thread() % UNITS, slice = place_of_thread() / UNITS, u_first = UB == KH ? 0 : block_z() * UB;
    int u = u_first + unit / GROUPS, group = unit % GROUPS;
    float acc[8] = {};
    for (int n = block_y() * chunk; n < n_end; ++n)
        for (int i_tile = 0; i_tile < OH; i_tile += tile_rows)
            for (int j_tile = 0; j_tile < OW; j_tile += TC) {
                const bool whole = staged_rows >= H, staged = whole && i_tile > 0 && OW <= TC;  // x stays for all tiles
                int first = whole ? 0 : max(0, i_tile * SY + u_first * DY - PY), end = min(H, first + staged_rows);
                int i_end = min(OH, i_tile + tile_rows);
                block_barrier();
                for (int r = first + warp; r < end && !staged; r += THREADS / 32)
                    stage_row(x + pixel(n, r, 0, c0, C, H, W), row_offset(r - first) * 4, slot, j_tile * SX - PX, PITCH, C, W);
                for (int i = i_tile + warp; i < i_end; i += THREADS / 32)
                    stage_row(dy + pixel(n, i, 0, c0, C, OH, OW), gradient + (i - i_tile) * DY_PITCH * 4, slot, j_tile, TC, C, OW);
                block_barrier();
                float step[8] = {};  // summed by itself: three short sums round less than one long one
                for (int i = i_tile + slice; i < i_end && slice < SLICES; i += SLICES) {
                    int r = i * SY + u * DY - PY;
                    if (r < first || r >= end) continue;
                    lockstep((n * OH + i_tile + i / SLICES * SLICES) + 1);
                    add_row(step, channel * slot + (row_offset(r - first) + group * 8 * DX) * 4,
                            channel * slot + gradient + (i - i_tile) * DY_PITCH * 4);
                }
                UNROLL for (int k = 0; k < 8; ++k) acc[k] += step[k];
            }
    block_barrier();
    UNROLL for (int k = 0; k < 8; ++k)
        if (slice < SLICES) store_shared(((channel * SLICES + slice) * UNITS + unit) * 36 + k * 4, acc[k]);
    block_barrier();
    const int taps = min(UB, KH - u_first) * KW;
    for (int k = thread_index(); k < CHANNELS * taps; k += THREADS) {
        int e = k / taps, tap = k % taps, column = tap % KW, source = e * SLICES * UNITS + tap / KW * GROUPS + column / 8;
        float sum = 0.f;
        for (int s = 0; s < SLICES; ++s) sum += load_shared<float>((source + s * UNITS) * 36 + column % 8 * 4);
        store_global(partial + (((i64)block_y() * C + c0 + e) * KH + u_first) * KW + tap, sum);
    }
}
