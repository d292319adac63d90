// Weight gradient on tensor cores, stride 1, fp16, bf16 or tf32, fp32 accumulation. For a kernel row u
//   C_m[a,b] = Σ_(n,i) Σ_jb dy[n,i, 16 jb + a] · x[n, i + u − PY, 16 jb + 8 m + b]
// are MHI − MLO + 1 products that all column blocks jb share, and dW[u,v] = Σ_{8m + b − a + PX = v} C_m[a,b].
// The inner dimension is 16 (tf32: 8) (image, row) pairs, NI images × IM rows; both operands are read transposed, by ldmatrix,
// which moves 16-bit elements, or one by one.
// A block: one channel, a fixed chunk of `chunk` images, UB kernel rows from UB · block_z. It streams (images, row tile, column
// tile) steps through BUFFERS buffers. A warp: UPW kernel rows, every SLICES-th group of rows; slices are added in order.
// Its sum goes to partial[chunk][c][u][v]; sum_partials.cu adds the chunks in order: no atomics, the same bits always.
// Sizes of maps are arguments: large maps that share a tile share the kernel. HEIGHT, WIDTH, …: those of small ones, or zeros.
// Constants: KH KW PY PX HEIGHT WIDTH OUT_HEIGHT OUT_WIDTH NI IM QA QF QN MLO MHI TILE_ROWS X_ROWS X_PITCH X_IMAGE G_PITCH
// G_IMAGE X_VECTOR G_VECTOR BUFFERS UB UPW WARPS_U SLICES HALVES MIN_BLOCKS; pitches in bytes (native/gpu_plans).
#include <ptx.cuh>

constexpr int WARPS = WARPS_U * SLICES, THREADS = 32 * WARPS;
constexpr int PRODUCTS = MHI - MLO + 1;
constexpr int SIZE = sizeof(Element);
constexpr bool TF32 = SIZE == 4;
constexpr int BUFFER = NI * (X_IMAGE + G_IMAGE);

struct Maps {  // of x and of dy, and how many tiles of dy there are
    int H, W, OH, OW, row_tiles, column_tiles;
};
DEVICE Maps maps_of(int H, int W, int OH, int OW) {
    return {H, W, OH, OW, (OH + TILE_ROWS - 1) / TILE_ROWS, (OW + 16 * QA - 1) / (16 * QA)};
}

// Rows [first_row, first_row + ROWS) and columns [first_column, first_column + 8 BLOCKS) of NI planes; zeros outside.
template <int ROWS, int BLOCKS, int VECTOR, int PITCH, int IMAGE>
DEVICE void stage(int to, const Element* plane, int image_stride, int images, int height, int width, int first_row, int first_column) {
    constexpr u32 UNITS = BLOCKS * 8 * SIZE / VECTOR;  // of a row
    UNROLL_BY(2) for (u32 k = thread_index(); k < NI * ROWS * UNITS; k += THREADS) {
        u32 row = k / UNITS, unit = k % UNITS, image = row / ROWS;
        int r = first_row + (int)(row % ROWS), s = first_column + (int)unit * (VECTOR / SIZE);
        u32 at = to + image * (IMAGE - ROWS * PITCH) + row * PITCH + unit * VECTOR;
        if ((int)image < images && (u32)r < (u32)height && (u32)s < (u32)width)
            copy_operand<VECTOR>(at, plane + (i64)(int)image * image_stride + (r * width + s));
        else
            zero_shared<VECTOR>(at);
    }
}

struct Step {  // what a buffer holds
    int image, i, j;
};
DEVICE Step step_of(int s, const Maps& m) {
    const int row = s / m.column_tiles;
    return {row / m.row_tiles * NI, row % m.row_tiles * TILE_ROWS, s % m.column_tiles * 16 * QA};
}
DEVICE int first_x_row(Step s) { return max(s.i - PY, 1 - IM); }

DEVICE void stage_step(Step s, const Maps& m, int to, const Element* x, const Element* dy, int C, int images) {
    const int x_apart = C * (m.H * m.W), dy_apart = C * (m.OH * m.OW);  // from image to image
    stage<X_ROWS, QN, X_VECTOR, X_PITCH, X_IMAGE>(to, x + (i64)s.image * x_apart, x_apart, images - s.image, m.H, m.W,
                                                 first_x_row(s), s.j + 8 * QF);
    stage<TILE_ROWS, 2 * QA, G_VECTOR, G_PITCH, G_IMAGE>(to + NI * X_IMAGE, dy + (i64)s.image * dy_apart, dy_apart,
                                                        images - s.image, m.OH, m.OW, s.i, s.j);
}

// Two blocks of 8 columns of all pairs, transposed; register 2k + h holds half h of the pairs of block k. For tf32 a lane's
// pair of half 1 lies `half` bytes after that of half 0.
DEVICE void load_blocks(u32 (&r)[4], int at, int half) {
    if constexpr (TF32) {
        UNROLL for (int k = 0; k < 4; ++k) r[k] = load_shared<u32>(at + k / 2 * 32 + k % 2 * half);
    } else {
        load_matrices<4, true>(r, at);
    }
}
DEVICE void load_block(u32 (&r)[4], int at, int half) {
    if constexpr (TF32) {
        r[0] = load_shared<u32>(at), r[1] = load_shared<u32>(at + half);
    } else {
        u32 one[2];
        load_matrices<2, true>(one, at);
        r[0] = one[0], r[1] = one[1];
    }
}

DEVICE constexpr int half_of_pairs(int image, int pitch) { return NI == 8 ? 4 * image : 4 / NI * pitch; }

// 16 columns of dy of all pairs, transposed; register 2h + s holds half h of the pairs, columns 8 s and on.
DEVICE void load_gradient(u32 (&g)[4], int at) {
    if constexpr (TF32) {
        UNROLL for (int k = 0; k < 4; ++k)
            g[k] = load_shared<u32>(at + k % 2 * 32 + k / 2 * half_of_pairs(G_IMAGE, G_PITCH));
    } else {
        load_matrices<4, true>(g, at);
    }
}

// acc[m] += C_m of the pairs' first half (LOW), second half (HIGH): dy in registers, the row of x at `x` in shared memory.
template <bool LOW, bool HIGH> DEVICE void add_row(float (&acc)[PRODUCTS][4], const u32 (&g)[QA][4], int x) {
    UNROLL for (int q = 0; q < QN; q += 2) {
        u32 b[4];
        if (q + 1 < QN)
            load_blocks(b, x + q * 8 * SIZE, half_of_pairs(X_IMAGE, X_PITCH));
        else
            load_block(b, x + q * 8 * SIZE, half_of_pairs(X_IMAGE, X_PITCH));
        UNROLL for (int side = 0; side < 2; ++side)
            UNROLL for (int j = 0; j < QA; ++j) {
                const int m = q + side + QF - 2 * j - MLO;
                if (m < 0 || m >= PRODUCTS || q + side >= QN) continue;
                if (LOW && HIGH)
                    mma_two(acc[m], g[j][0], g[j][1], g[j][2], g[j][3], b[2 * side], b[2 * side + 1]);
                else if (LOW)
                    mma_one(acc[m], g[j][0], g[j][1], b[2 * side]);
                else
                    mma_one(acc[m], g[j][2], g[j][3], b[2 * side + 1]);
            }
    }
}

// dW[u, :] from the products of one kernel row: diagonals of each C_m through `tile`, summed into `row` (both this warp's).
DEVICE void add_diagonals(const float (&acc)[PRODUCTS][4], int tile, int row) {
    const int lane = thread_index() % 32;
    for (int v = lane; v < KW; v += 32) store_shared(row + v * 4, 0.f);
    UNROLL for (int m = 0; m < PRODUCTS; ++m) {
        store_shared(tile + lane * 8, make_float2(acc[m][0], acc[m][1]));
        store_shared(tile + 256 + lane * 8, make_float2(acc[m][2], acc[m][3]));
        block_barrier();
        const int diagonal = lane - 15, v = 8 * (m + MLO) + diagonal + PX;  // b − a
        if (lane < 23 && v >= 0 && v < KW) {
            float sum = load_shared<float>(row + v * 4);
            for (int a = 0; a < 16; ++a) {  // every lane the same row: no bank conflicts
                const int b = a + diagonal;
                const float c = load_shared<float>(tile + (a * 8 + (b & 7)) * 4);
                if (b >= 0 && b < 8) sum += c;
            }
            store_shared(row + v * 4, sum);
        }
        block_barrier();
    }
}

KERNEL(THREADS, MIN_BLOCKS)
toeplitz_weight(const Element* x, const Element* dy, float* partial, int N, int C, int chunk, int H, int W, int OH,
                int OW) {
    const Maps maps = HEIGHT ? maps_of(HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH) : maps_of(H, W, OH, OW);
    const int lane = thread_index() % 32, warp = thread_index() / 32, slice = warp / WARPS_U, u_first = block_z() * UB + warp % WARPS_U;
    const int c = block_x(), n0 = block_y() * chunk, images = min(chunk, N - n0);
    const Element *x_chunk = x + ((i64)n0 * C + c) * (maps.H * maps.W), *dy_chunk = dy + ((i64)n0 * C + c) * (maps.OH * maps.OW);
    // Which (image, row) pair and which columns this lane addresses, for dy (A) and for x (B): of ldmatrix a block of 8
    // columns, of tf32 one column.
    const int g_pair = TF32 ? lane % 4 : lane % 8 + lane / 16 * 8, x_pair = TF32 ? lane % 4 : lane % 16;
    const int g_column = TF32 ? lane / 4 * 4 : lane / 8 % 2 * 16, x_column = TF32 ? lane / 4 * 4 : lane / 16 * 16;
    const int g_lane = NI * X_IMAGE + g_pair % NI * G_IMAGE + g_pair / NI * G_PITCH + g_column;
    const int x_lane = x_pair % NI * X_IMAGE + x_pair / NI * X_PITCH + x_column;
    float acc[UPW][PRODUCTS][4] = {};

    const int steps = (images + NI - 1) / NI * (maps.row_tiles * maps.column_tiles);
    stage_step(step_of(0, maps), maps, 0, x_chunk, dy_chunk, C, images);
    copy_commit();
    for (int s = 0; s < steps; ++s) {
        const int buffer = BUFFERS == 2 ? s % 2 * BUFFER : 0;
        if (BUFFERS == 2 && s + 1 < steps) stage_step(step_of(s + 1, maps), maps, BUFFER - buffer, x_chunk, dy_chunk, C, images);
        if (BUFFERS == 2) copy_commit();
        copy_wait<BUFFERS - 1>();
        block_barrier();
        const Step here = step_of(s, maps);
        UNROLL_BY(1) for (int i = slice * IM; i < min(TILE_ROWS, maps.OH - here.i); i += SLICES * IM) {
            u32 g[QA][4];
            UNROLL for (int j = 0; j < QA; ++j) load_gradient(g[j], buffer + g_lane + i * G_PITCH + j * 16 * SIZE);
            UNROLL for (int k = 0; k < UPW; ++k) {
                const int u = u_first + k * WARPS_U, r = here.i + i + u - PY;
                const int row = buffer + x_lane + (r - first_x_row(here)) * X_PITCH;
                if (u >= KH || r <= -IM || r >= maps.H) continue;
                if (HALVES && r + IM / 2 <= 0)
                    add_row<false, true>(acc[k], g, row);  // the first half of the pairs lies above the image
                else if (HALVES && r + IM / 2 >= maps.H)
                    add_row<true, false>(acc[k], g, row);
                else
                    add_row<true, true>(acc[k], g, row);
            }
        }
        block_barrier();
        if (BUFFERS == 1 && s + 1 < steps) {
            stage_step(step_of(s + 1, maps), maps, 0, x_chunk, dy_chunk, C, images);
            copy_commit();
        }
    }

    constexpr int ROWS = WARPS * 128 * 4;  // after the warps' tiles
    UNROLL for (int k = 0; k < UPW; ++k) add_diagonals(acc[k], warp * 128 * 4, ROWS + (warp * UPW + k) * KW * 4);
    block_barrier();
    float* out = partial + ((i64)block_y() * C + c) * (KH * KW);
    for (int t = thread_index(); t < UB * KW; t += THREADS) {
        const int row = t / KW, u = block_z() * UB + row, v = t % KW;
        if (u >= KH) continue;
        float sum = 0.f;
        for (int z = 0; z < SLICES; ++z)
            sum += load_shared<float>(ROWS + (((z * WARPS_U + row % WARPS_U) * UPW + row / WARPS_U) * KW + v) * 4);
        store_global(out + u * KW + v, sum);
    }
}
