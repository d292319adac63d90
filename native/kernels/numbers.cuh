// Arithmetic that a GPU and the emulator share word for word; ptx.cuh includes it on either.
#pragma once

// What follows a convolution at once: 0 nothing, 1 ReLU, 6 ReLU6; a NaN stays one.
template <int KIND> DEVICE float activated(float v) {
    if (KIND && v < 0.f) v = 0.f;
    return KIND == 6 && v > 6.f ? 6.f : v;
}

// Of two pairs of 16-bit elements, the first of each, or the second.
DEVICE u32 low_halves(u32 a, u32 b) { return (a & 0xffffu) | b << 16; }
DEVICE u32 high_halves(u32 a, u32 b) { return a >> 16 | (b & 0xffff0000u); }
