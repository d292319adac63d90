// A CUDA block on one CPU thread: every CUDA thread is a fiber with its own stack; barriers and warp collectives
// switch fibers. Every access is checked and counted. One launch at a time; compiled together with one kernel.
#pragma once
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

struct Buffer {  // a tensor in global memory, as native/emulator/__init__.py describes it
    unsigned char* data;
    int64_t size;      // bytes
    int32_t writable;  // outputs start unwritten; inputs may only be read
};

enum FaultKind { OUT_OF_BOUNDS, UNWRITTEN, RACE, MISALIGNED, DIVERGED, READ_ONLY, NEVER_WRITTEN, FAULT_KINDS };

constexpr int LINES = 512;  // of a kernel's source

struct Counters {
    int64_t read_bytes, written_bytes, read_sectors, written_sectors;  // global memory, 32-byte sectors a warp touches
    int64_t shared_wavefronts, shared_conflicts;  // 128-byte passes, and those beyond the fewest possible
    int64_t mma, fma;                             // multiply-adds issued on tensor cores, and elsewhere
    int64_t at_line[LINES][2];                    // wavefronts and conflicts by the kernel's line
    int64_t faults[FAULT_KINDS];
    char first_fault[240];
};

enum Space : uint8_t { READ, WRITE, SHARED };
struct Access {  // one lane's access, kept until its warp meets, to be grouped into warp-wide requests
    uint64_t address;
    int32_t line, step;
    uint16_t width;
    Space space;
};
struct Granule {  // two bytes of shared memory: who touched them and when (epochs count barriers)
    uint32_t write_epoch, read_epoch;
    uint16_t writer, reader;  // thread + 1; MANY once two threads read
    bool pending;             // an asynchronous copy is under way
};
constexpr uint16_t MANY = 0xffff;
struct Copy {
    uint32_t to;
    const unsigned char* from;
    int32_t width, group;
};
enum class State : uint8_t { READY, AT_BARRIER, AT_COLLECTIVE, DONE };
struct Fiber {
    jmp_buf at;
    ucontext_t start;
    bool started;
    int32_t groups_committed, step;
    std::vector<Copy> copies;
    std::vector<Access> accesses;
};
struct Collective {  // what the 32 lanes of a warp brought to an instruction
    int arrived, kind;
    void* lanes[32];
};

struct Machine {
    static constexpr size_t STACK = 64 * 1024;
    std::vector<Fiber> fibers;
    std::vector<State> states;
    std::vector<Collective> warps;
    unsigned char* stacks = nullptr;
    ucontext_t home_start;
    jmp_buf home;
    int current = 0, alive = 0, waiting = 0;
    uint32_t epoch = 1, block_epoch = 1;
    int block[3];
    std::vector<unsigned char> shared;
    std::vector<Granule> granules;
    std::vector<Buffer> buffers;
    std::vector<std::vector<uint32_t>> writers;  // per output, per 2 bytes: global number of the thread that wrote it
    uint32_t first_thread = 1;
    Counters counters;
    void (*body)();

    void fault(FaultKind kind, const char* format, ...) {
        if (!counters.first_fault[0]) {
            va_list list;
            va_start(list, format);
            vsnprintf(counters.first_fault, sizeof counters.first_fault, format, list);
            va_end(list);
        }
        ++counters.faults[kind];
    }

    // ---- global memory -----------------------------------------------------------------------------------------
    bool global_access(const void* pointer, int width, bool write, int line) {
        auto p = static_cast<const unsigned char*>(pointer);
        fibers[current].accesses.push_back({reinterpret_cast<uint64_t>(p), line, fibers[current].step, uint16_t(width), write ? WRITE : READ});
        (write ? counters.written_bytes : counters.read_bytes) += width;
        if (reinterpret_cast<uint64_t>(p) % width)
            fault(MISALIGNED, "line %d: %d-byte access to global address %p", line, width, pointer);
        for (size_t b = 0; b < buffers.size(); ++b) {
            const Buffer& buffer = buffers[b];
            if (p < buffer.data || p + width > buffer.data + buffer.size) continue;
            if (!buffer.writable) {
                if (write) fault(READ_ONLY, "line %d: store to input %d", line, int(b));
                return !write;
            }
            uint32_t me = first_thread + current;
            for (int64_t g = (p - buffer.data) / 2; g < (p - buffer.data + width) / 2; ++g) {
                uint32_t& owner = writers[b][g];
                if (!write && !owner) fault(UNWRITTEN, "line %d: load of unwritten byte %ld of output %d", line, long(2 * g), int(b));
                if (owner && owner != me) fault(RACE, "line %d: byte %ld of output %d was written by another thread", line, long(2 * g), int(b));
                if (write) owner = me;
            }
            return true;
        }
        fault(OUT_OF_BOUNDS, "line %d: %d-byte access outside every tensor", line, width);
        return false;
    }

    // ---- shared memory -----------------------------------------------------------------------------------------
    bool in_shared(uint32_t address, int width, int line) {
        if (address % width) {
            fault(MISALIGNED, "line %d: %d-byte access to shared address %u", line, width, address);
            return false;
        }
        if (uint64_t(address) + width > shared.size()) {
            fault(OUT_OF_BOUNDS, "line %d: shared address %u of %zu", line, address, shared.size());
            return false;
        }
        return true;
    }
    bool shared_access(uint32_t address, int width, bool write, int line, bool asynchronous = false) {
        if (!in_shared(address, width, line)) return false;
        uint16_t me = uint16_t(current + 1);
        for (uint32_t g = address / 2; g < (address + width) / 2; ++g) {
            Granule& s = granules[g];
            bool fresh = s.write_epoch == epoch && s.writer != me;
            if (s.pending) fault(RACE, "line %d: shared byte %u while a copy to it is under way", line, 2 * g);
            if (fresh) fault(RACE, "line %d: shared byte %u was written by another thread since the last barrier", line, 2 * g);
            if (write) {
                if (s.read_epoch == epoch && s.reader != me)
                    fault(RACE, "line %d: shared byte %u was read by another thread since the last barrier", line, 2 * g);
                s.write_epoch = epoch;
                s.writer = me;
                s.pending = asynchronous;
            } else {
                if (s.write_epoch < block_epoch) fault(UNWRITTEN, "line %d: shared byte %u was never written", line, 2 * g);
                s.reader = s.read_epoch == epoch && s.reader != me ? MANY : me;
                s.read_epoch = epoch;
            }
        }
        return true;
    }
    void note_shared(uint32_t address, int width, int line) {
        fibers[current].accesses.push_back({address, line, fibers[current].step, uint16_t(width), SHARED});
    }

    // ---- warp-wide requests ------------------------------------------------------------------------------------
    void count_banks(const uint64_t* address, int lanes, int width, int line) {  // one request of up to 128 bytes
        uint64_t words[32][32];
        int depth[32] = {}, worst = 1;
        for (int l = 0; l < lanes; ++l)
            for (int k = 0; k < (width + 3) / 4; ++k) {
                uint64_t word = address[l] / 4 + k;
                int bank = word % 32, d = 0;
                while (d < depth[bank] && words[bank][d] != word) ++d;
                if (d == depth[bank]) words[bank][depth[bank]++] = word;
                if (depth[bank] > worst) worst = depth[bank];
            }
        counters.shared_wavefronts += worst;
        counters.shared_conflicts += worst - 1;
        if (line >= LINES) return;
        counters.at_line[line][0] += worst;
        counters.at_line[line][1] += worst - 1;
    }
    void count_request(const uint64_t* address, const int* lane, int lanes, int width, Space space, int line) {
        if (space == SHARED) {
            const int phase = width <= 4 ? 32 : 128 / width;  // lanes that are served together: neighbours
            for (int l = 0, next = 0; l < lanes; l = next) {
                while (next < lanes && lane[next] / phase == lane[l] / phase) ++next;
                count_banks(address + l, next - l, width, line);
            }
            return;
        }
        int64_t& sectors = space == READ ? counters.read_sectors : counters.written_sectors;
        std::vector<uint64_t> seen;
        for (int l = 0; l < lanes; ++l) {
            uint64_t sector = address[l] / 32;
            bool found = false;
            for (size_t k = seen.size(); k-- > 0 && !found;) found = seen[k] == sector;
            if (!found) seen.push_back(sector);
        }
        sectors += int64_t(seen.size());
    }
    void flush(int warp) {  // lanes' accesses from the same line in the same step, in order, are one request
        size_t cursor[32] = {};
        int first = warp * 32;
        for (;;) {
            const Access* key = nullptr;  // the next access of the lane that is least far
            for (int l = 0; l < 32; ++l) {
                auto& list = fibers[first + l].accesses;
                if (cursor[l] < list.size() && (!key || list[cursor[l]].step < key->step)) key = &list[cursor[l]];
            }
            if (!key) break;
            uint64_t address[32];
            int lane[32], lanes = 0;
            for (int l = 0; l < 32; ++l) {
                auto& list = fibers[first + l].accesses;
                if (cursor[l] == list.size()) continue;
                const Access& a = list[cursor[l]];
                if (a.line != key->line || a.step != key->step || a.width != key->width || a.space != key->space) continue;
                lane[lanes] = l;
                address[lanes++] = a.address;
                ++cursor[l];
            }
            count_request(address, lane, lanes, key->width, key->space, key->line);
        }
        for (int l = 0; l < 32; ++l) fibers[first + l].accesses.clear();
    }

    // ---- fibers ------------------------------------------------------------------------------------------------
    void go(int next) {
        current = next;
        Fiber& f = fibers[next];
        if (f.started) _longjmp(f.at, 1);
        f.started = true;
        setcontext(&f.start);
    }
    __attribute__((noinline)) void yield() {  // to the next ready fiber, this warp's first; home when there is none
        int self = current, total = int(fibers.size()), next = -1;
        for (int k = 1; k <= 32 && next < 0; ++k) {
            int lane = self / 32 * 32 + (self + k) % 32;
            if (states[lane] == State::READY) next = lane;
        }
        for (int k = 0; k < total && next < 0; ++k)
            if (states[(self + k) % total] == State::READY) next = (self + k) % total;
        if (next == self) return;
        if (_setjmp(fibers[self].at)) return;
        if (next < 0) _longjmp(home, 1);
        go(next);
    }
    __attribute__((noinline)) void barrier(int line) {
        states[current] = State::AT_BARRIER;
        if (++waiting < alive) {
            if (alive < int(fibers.size())) fault(DIVERGED, "line %d: barrier after a thread has exited", line);
            yield();
            return;
        }
        waiting = 0;
        ++epoch;
        for (size_t w = 0; w < warps.size(); ++w) flush(int(w));
        for (auto& s : states)
            if (s == State::AT_BARRIER) s = State::READY;
    }
    // All 32 lanes bring `lane`; the last to arrive runs `act` on them.
    template <class Lane, class Act> __attribute__((noinline)) void collective(int kind, Lane& lane, Act act) {
        int warp = current / 32;
        Collective& c = warps[warp];
        if (c.arrived && c.kind != kind) fault(DIVERGED, "lanes of a warp at different instructions (%d, %d)", c.kind, kind);
        c.kind = kind;
        c.lanes[current % 32] = &lane;
        states[current] = State::AT_COLLECTIVE;
        if (++c.arrived < 32) {
            yield();
            return;
        }
        c.arrived = 0;
        flush(warp);
        act(reinterpret_cast<Lane**>(c.lanes));
        for (int l = 0; l < 32; ++l) states[warp * 32 + l] = State::READY;
    }

    void commit() { ++fibers[current].groups_committed; }
    void wait(int pending) {
        Fiber& f = fibers[current];
        std::vector<Copy> later;
        for (const Copy& c : f.copies) {
            if (c.group >= f.groups_committed - pending) {
                later.push_back(c);
                continue;
            }
            memcpy(&shared[c.to], c.from, c.width);
            for (uint32_t g = c.to / 2; g < (c.to + c.width) / 2; ++g) {
                granules[g].pending = false;
                granules[g].write_epoch = epoch;
            }
        }
        f.copies.swap(later);
    }

    static void enter();
    void run_block(int threads) {
        fibers.resize(threads);
        states.assign(threads, State::READY);
        warps.assign(threads / 32, Collective{});
        if (!stacks)
            stacks = static_cast<unsigned char*>(mmap(nullptr, STACK * 1024, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        for (int t = 0; t < threads; ++t) {
            Fiber& f = fibers[t];
            f.started = false;
            f.groups_committed = f.step = 0;
            f.copies.clear();
            getcontext(&f.start);
            f.start.uc_stack = {stacks + STACK * t, 0, STACK};
            f.start.uc_stack.ss_size = STACK;
            makecontext(&f.start, enter, 0);
        }
        alive = threads;
        waiting = 0;
        block_epoch = ++epoch;
        if (!_setjmp(home)) go(0);
        if (alive) fault(DIVERGED, "deadlock: %d threads wait for others that never come", alive);
        for (size_t w = 0; w < warps.size(); ++w) flush(int(w));
        for (const Fiber& f : fibers)
            if (!f.copies.empty()) fault(RACE, "a thread ended with copies under way");
        for (Granule& g : granules) g.pending = false;
        ++epoch;
        first_thread += threads;
    }
    void finish() {
        for (size_t b = 0; b < buffers.size(); ++b)
            for (size_t g = 0; buffers[b].writable && g < writers[b].size(); ++g)
                if (!writers[b][g]) fault(NEVER_WRITTEN, "byte %zu of output %zu was never written", 2 * g, b);
    }
};

static Machine machine;
inline void Machine::enter() {
    machine.body();
    machine.states[machine.current] = State::DONE;
    --machine.alive;
    if (machine.alive && machine.waiting == machine.alive) machine.fault(DIVERGED, "a thread exited while others wait at a barrier");
    machine.yield();
}
