// How the multiply-add kernels take maps: planes (NCHW), a channel a block, or channels_last, the CHANNELS channels of 16 bytes of
// a pixel a block, which become planes in shared memory.
#pragma once
#include <ptx.cuh>

constexpr bool LAST = CHANNELS > 1;

// Eight neighbouring threads compute neighbouring places of a channel, the next eight those of the next channel: what eight
// lanes read together lies in shared memory as it does with planes.
DEVICE int channel_of_thread() { return thread_index() / 8 % CHANNELS; }
DEVICE int place_of_thread() { return thread_index() / (8 * CHANNELS) * 8 + thread_index() % 8; }

// Where pixel (n, r, s) of channel c lies in a map, and how far the next one of its row is.
DEVICE i64 pixel(int n, int r, int s, int c, int C, int H, int W) {
    return LAST ? (((i64)n * H + r) * W + s) * C + c : (((i64)n * C + c) * H + r) * W + s;
}
DEVICE int next_pixel(int C) { return LAST ? C : 1; }

// The channels of a pixel.
DEVICE void load_channels(float (&v)[CHANNELS], const Element* from) {
    if constexpr (!LAST) {
        v[0] = to_float(load_global(from));
    } else if constexpr (sizeof(Element) == 4) {
        const float4 q = load_global(reinterpret_cast<const float4*>(from));
        v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
    } else {
        const uint4 q = load_global(reinterpret_cast<const uint4*>(from));
        const u32 words[4] = {q.x, q.y, q.z, q.w};
        UNROLL for (int e = 0; e < CHANNELS; ++e) v[e] = to_float((Element)(words[e / 2] >> 16 * (e % 2)));
    }
}
