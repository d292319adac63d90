// Included after the kernel: runs one launch and hands its counters back. ENTRY is the kernel's name.
extern "C" void emulate(void** values, const Buffer* buffers, int count, const int* grid, int threads, int shared_bytes, Counters* result) {
    machine.counters = {};
    machine.buffers.assign(buffers, buffers + count);
    machine.writers.clear();
    for (int b = 0; b < count; ++b) machine.writers.emplace_back(buffers[b].writable ? (buffers[b].size + 1) / 2 : 0, 0u);
    machine.first_thread = 1;
    machine.shared.assign(shared_bytes, 0xff);  // NaN in every element type
    machine.granules.assign((shared_bytes + 1) / 2, Granule{});
    bind(ENTRY, values);
    for (machine.block[2] = 0; machine.block[2] < grid[2]; ++machine.block[2])
        for (machine.block[1] = 0; machine.block[1] < grid[1]; ++machine.block[1])
            for (machine.block[0] = 0; machine.block[0] < grid[0]; ++machine.block[0]) machine.run_block(threads);
    machine.finish();
    *result = machine.counters;
}
