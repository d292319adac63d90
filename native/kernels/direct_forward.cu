// Depthwise convolution by fused multiply-adds in fp32: any kernel, stride, dilation, padding, size; every element type.
// Also the input gradient: the same sum over dy with the filter flipped, its rows and columns ZY, ZX apart (stride).
//   y[n,c,i,j] = bias[c] + Σ_u Σ_v x[n,c, i·SY + u·DY − PY, j·SX + v·DX − PX] · w[c,u,v]
// A block: CHANNELS channels, `images` images, TC columns, `tile_rows` rows. A thread: ROWS rows × 8 columns of a channel; an input
// row is loaded to registers once and meets the ROWS kernel rows that need it. Rows and columns outside the image are skipped.
// Constants: KH KW SY SX DY DX ZY ZX FLIP TC PITCH WPITCH ROWS THREADS CHANNELS VECTOR IMAGES_FIRST HAS_BIAS ACTIVATION
// (native/gpu_plans).
#include <pixels.cuh>

constexpr int WINDOW = (7 * SX + (KW - 1) * DX + 4) / 4 * 4;  // floats of an input row that 8 outputs need
constexpr int CHUNKS = (KW + 3) / 4;                          // kernel columns, four at a time
constexpr bool DENSE = DX == 1 && DY == 1;
constexpr int REACH = (ROWS - 1) * SY + (KH - 1) * DY + 1;    // input rows that ROWS outputs need
constexpr int ABOVE = DENSE ? (ROWS - 1) * SY : 0;            // zero rows around the filter: no branch asks whether a row is in it
constexpr int FILTER_ROWS = KH + 2 * ABOVE, FILTER = FILTER_ROWS * WPITCH * 4;
constexpr int PLACES = THREADS / CHANNELS;                    // that a block computes at a time

// Rows of four-row groups are skewed by 16 bytes: lanes on neighbouring groups read different banks.
DEVICE int row_offset(int row) { return row * PITCH + row / (ROWS * SY) * 4; }

DEVICE void stage_weights(const Element* w, int to) {
    for (int k = thread_index(); k < FILTER_ROWS * WPITCH; k += THREADS) {
        int u = k / WPITCH - ABOVE, v = k % WPITCH;
        float value = 0.f;
        if (u >= 0 && u < KH && v < KW) value = to_float(load_global(w + (FLIP ? KH * KW - 1 - (u * KW + v) : u * KW + v)));
        store_shared(to + k * 4, value);
    }
}

DEVICE void stage_row(const Element* x, int to, int plane, int first_column, int C, int W) {  // one warp, one row; zeros outside
    int lane = thread_index() % 32, virtual_width = (W - 1) * ZX + 1;
    for (int k = lane; k < PITCH; k += 32) {
        int s = first_column + k;
        bool inside = s >= 0 && s < virtual_width && s % ZX == 0;
        const Element* from = x + (i64)(s / ZX) * next_pixel(C);
#ifdef ELEMENT_F32
        if (inside && !LAST) {
            copy_async<4>(to + k * 4, from);
            continue;
        }
#endif
        float v[CHANNELS] = {};
        if (inside) load_channels(v, from);
        UNROLL for (int e = 0; e < CHANNELS; ++e) store_shared(to + e * plane + k * 4, v[e]);
    }
}

// acc += one input row (in shared memory at `x`) times the filter's rows; k counts from the thread's first row.
DEVICE void add_row(float (&acc)[ROWS][8], int x, int w, int k, int first_chunk, int last_chunk) {
    if constexpr (DENSE) {
        float window[WINDOW];
        UNROLL for (int f = 0; f < WINDOW; f += 4) {
            float4 q = load_shared<float4>(x + f * 4);
            window[f] = q.x, window[f + 1] = q.y, window[f + 2] = q.z, window[f + 3] = q.w;
        }
        const int row = w + (k + ABOVE) * WPITCH * 4;
        UNROLL for (int c = 0; c < CHUNKS; ++c) {
            if (c < first_chunk || c > last_chunk) continue;
            UNROLL for (int g = 0; g < ROWS; ++g) {
                float4 q = load_shared<float4>(row + (4 * c - g * SY * WPITCH) * 4);
                const float tap[4] = {q.x, q.y, q.z, q.w};
                UNROLL for (int e = 0; e < 4; ++e)
                    if (4 * c + e < KW)
                        UNROLL for (int j = 0; j < 8; ++j)
                            acc[g][j] = multiply_add(window[j * SX + 4 * c + e], tap[e], acc[g][j]);
            }
        }
    } else {
        int last = min(4 * last_chunk + 3, KW - 1);
        UNROLL_BY(1) for (int v = max(0, 4 * first_chunk); v <= last; ++v) {
            float in[8];
            UNROLL for (int j = 0; j < 8; ++j) in[j] = load_shared<float>(x + (j * SX + v * DX) * 4);
            UNROLL for (int g = 0; g < ROWS; ++g) {
                int t = k - g * SY;
                if (t < 0 || t >= KH * DY || t % DY) continue;
                float tap = load_shared<float>(w + (t / DY * WPITCH + v) * 4);
                UNROLL for (int j = 0; j < 8; ++j) acc[g][j] = multiply_add(in[j], tap, acc[g][j]);
            }
        }
    }
}

DEVICE void store_row(Element* y, const float (&acc)[8], int columns, int C) {
#if VECTOR && defined(ELEMENT_F32)
    store_global(reinterpret_cast<float4*>(y), make_float4(acc[0], acc[1], acc[2], acc[3]));
    store_global(reinterpret_cast<float4*>(y) + 1, make_float4(acc[4], acc[5], acc[6], acc[7]));
#elif VECTOR
    uint4 v = {pack(acc[0], acc[1]), pack(acc[2], acc[3]), pack(acc[4], acc[5]), pack(acc[6], acc[7])};
    store_global(reinterpret_cast<uint4*>(y), v);
#else
    UNROLL for (int j = 0; j < 8; ++j)
        if (j < columns) store_global(y + j * next_pixel(C), from_float(acc[j]));
#endif
}

KERNEL(THREADS, 2)
direct_forward(const Element* x, const Element* w, const Element* bias, Element* y, int N, int C, int H, int W, int OH, int OW,
               int PY, int PX, int images, int tile_rows, int staged_rows, int image_stride) {
    int tiles_x = (OW + TC - 1) / TC;
    const int c0 = block_x() * CHANNELS, channel = channel_of_thread(), c = c0 + channel;
    int n0 = block_y() * images, i_tile = block_z() / tiles_x * tile_rows, j_tile = block_z() % tiles_x * TC;
    int virtual_height = (H - 1) * ZY + 1, virtual_width = (W - 1) * ZX + 1;
    int first_staged = max(0, i_tile * SY - PY), end_staged = min(virtual_height, first_staged + staged_rows);
    const int plane = images * image_stride * 4, weights = CHANNELS * plane + channel * FILTER;

    UNROLL_BY(1) for (int k = 0; k < CHANNELS; ++k) stage_weights(w + (i64)(c0 + k) * KH * KW, CHANNELS * plane + k * FILTER);
    int rows = max(0, end_staged - first_staged);
    for (int k = thread_index() / 32; k < images * rows; k += THREADS / 32) {
        int image = k / rows, r = first_staged + k % rows;
        if (n0 + image < N && r % ZY == 0)
            stage_row(x + pixel(n0 + image, r / ZY, 0, c0, C, H, W), (image * image_stride + row_offset(k % rows)) * 4, plane,
                      j_tile * SX - PX, C, W);
    }
    copy_commit();
    copy_wait<0>();
    block_barrier();

    int groups = (tile_rows + ROWS - 1) / ROWS, units = TC / 8 * images * groups;
    float b = HAS_BIAS ? to_float(load_global(bias + c)) : 0.f;
    for (int unit = place_of_thread(); unit < units; unit += PLACES) {
        // Neighbouring lanes share columns, and rows where there are images enough: what they skip, the warp skips.
        int strip = unit / (images * groups), place = unit % (images * groups);
        int image = IMAGES_FIRST ? place % images : place / groups, group = IMAGES_FIRST ? place / images : place % groups;
        int i0 = i_tile + group * ROWS, j0 = j_tile + strip * 8;
        if (n0 + image >= N || i0 >= OH || j0 >= OW) continue;
        int lowest = PX - (j0 + 7) * SX, highest = virtual_width - 1 + PX - j0 * SX;  // v·DX between them meets the image
        int first_chunk = lowest <= 0 ? 0 : lowest / (4 * DX), last_chunk = highest < 0 ? -1 : highest / (4 * DX);
        float acc[ROWS][8] = {};
        UNROLL_BY(1) for (int k = 0; k < REACH; ++k) {
            int r = i0 * SY - PY + k;
            if (r < first_staged || r >= end_staged || r % ZY) continue;
            lockstep(unit / PLACES * REACH + k + 1);
            const int row = channel * plane + (image * image_stride + row_offset(r - first_staged) + strip * 8 * SX) * 4;
            add_row(acc, row, weights, k, first_chunk, last_chunk);
        }
        UNROLL for (int g = 0; g < ROWS; ++g) {
            UNROLL for (int j = 0; j < 8; ++j) acc[g][j] = activated<ACTIVATION>(acc[g][j] + b);
            if (i0 + g < min(OH, i_tile + tile_rows))
                store_row(y + pixel(n0 + image, i0 + g, j0, c, C, OH, OW), acc[g], OW - j0, C);
        }
    }
}
