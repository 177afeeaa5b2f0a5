// Drives the accelerator's host port in bulk: one call runs millions of cycles.
#include "Vespalier.h"
#include "verilated.h"
#include <cstdint>
#ifdef ESPALIER_MEMORY
#include "memory.h"
#endif

namespace {

struct Simulation {
    VerilatedContext context;
    Vespalier top{&context};
    uint64_t cycles = 0;
    uint64_t* cycles_at = nullptr;  // by command position
    uint64_t* issued_at = nullptr;  // by command position, then by processing element
    uint32_t elements = 1;
    int32_t* gradients = nullptr;   // by place, or null
#ifdef ESPALIER_MEMORY
    ExternalMemory memory;
#endif
};

// The 32-bit words of a port, however wide it is.
uint32_t word(uint64_t port, int index) { return static_cast<uint32_t>(port >> 32 * index); }
template <std::size_t words> uint32_t word(const VlWide<words>& port, int index) { return port[index]; }

// One clock cycle with the inputs as they are; true if a write was accepted in it.
bool tick(Simulation& s) {
    s.top.clk = 0;
    s.top.eval();
#ifdef ESPALIER_MEMORY
    if (s.top.rst) {
        s.memory.reset();
    } else {
        s.memory.drive(s.top);
        s.top.eval();
        s.memory.look(s.top);
    }
#endif
    const bool accepted = s.top.write_valid && s.top.write_ready;
    if (s.top.busy) {
        s.cycles_at[s.top.position]++;
        uint64_t* issued = s.issued_at + s.top.position * s.elements;
        for (uint32_t element = 0; element < s.elements; element++) issued[element] += s.top.issuing >> element & 1;
    }
    if (s.gradients) {
        uint64_t valid = s.top.gradient_valid;
        for (int unit = 0; valid; unit++, valid >>= 1) {
            if (valid & 1) s.gradients[word(s.top.gradient_address, unit)] = word(s.top.gradient, unit);
        }
    }
    s.top.clk = 1;
    s.top.eval();
    s.cycles++;
    return accepted;
}

}  // namespace

extern "C" {

void* simulation_new(uint64_t* cycles_at, uint64_t* issued_at, uint32_t elements) {
    auto* s = new Simulation;
    s->elements = elements;
    s->cycles_at = cycles_at;
    s->issued_at = issued_at;
    return s;
}

void simulation_reset(void* handle, uint64_t cycles) {
    auto& s = *static_cast<Simulation*>(handle);
    s.top.rst = 1;
    while (cycles--) tick(s);
    s.top.rst = 0;
}

void simulation_delete(void* handle) { delete static_cast<Simulation*>(handle); }

uint64_t simulation_cycles(void* handle) { return static_cast<Simulation*>(handle)->cycles; }

#ifdef ESPALIER_MEMORY
void simulation_memory_timing(void* handle, const uint32_t* timing) {
    static_cast<Simulation*>(handle)->memory.set_timing(timing);
}

void simulation_memory_counts(void* handle, uint64_t* counts) {
    static_cast<Simulation*>(handle)->memory.counts(counts);
}

void simulation_memory_write(void* handle, uint64_t address, const uint8_t* data, uint64_t count) {
    static_cast<Simulation*>(handle)->memory.write(address, data, count);
}

void simulation_memory_read(void* handle, uint64_t address, uint8_t* data, uint64_t count) {
    static_cast<Simulation*>(handle)->memory.read(address, data, count);
}
#endif

void simulation_trace_gradients(void* handle, int32_t* gradients) {
    static_cast<Simulation*>(handle)->gradients = gradients;
}

// Sends writes; the address 0xffffffff means: wait until the machine is idle. Returns the number of writes done,
// fewer than count only when max_cycles have passed.
uint64_t simulation_write(void* handle, const uint32_t* addresses, const uint32_t* data, uint64_t count,
                          uint64_t max_cycles) {
    auto& s = *static_cast<Simulation*>(handle);
    const uint64_t end = s.cycles + max_cycles;
    uint64_t k = 0;
    for (; k < count && s.cycles < end; k++) {
        if (addresses[k] == 0xffffffffu) {
            s.top.write_valid = 0;
            for (int settle = 0; settle < 3; settle++) tick(s);
            while (s.top.busy && s.cycles < end) tick(s);
            if (s.top.busy) break;
            continue;
        }
        s.top.write_valid = 1;
        s.top.write = static_cast<uint64_t>(data[k]) << 32 | addresses[k];
        while (!tick(s) && s.cycles < end) {}
    }
    s.top.write_valid = 0;
    return k;
}

void simulation_read(void* handle, const uint32_t* addresses, uint32_t* data, uint64_t count, uint32_t wait_cycles) {
    auto& s = *static_cast<Simulation*>(handle);
    for (uint64_t k = 0; k < count; k++) {
        s.top.read_address = addresses[k];
        for (uint32_t wait = 0; wait < wait_cycles; wait++) tick(s);
        data[k] = s.top.read_data;
    }
}

}
