// dW[k] = Σ_chunk partial[chunk][k], chunks in ascending order: the second phase of the deterministic weight gradient.
// Constants: THREADS.
#include <ptx.cuh>

KERNEL(THREADS, 1)
sum_partials(const float* partial, Element* dw, i64 count, int chunks) {
    i64 k = (i64)block_x() * THREADS + thread_index();
    if (k >= count) return;
    float sum = 0.f;
    for (int chunk = 0; chunk < chunks; ++chunk) sum += load_global(partial + chunk * count + k);
    store_global(dw + k, from_float(sum));
}
