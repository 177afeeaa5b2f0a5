// External memory behind the accelerator's AXI4 master: contents, timing, stalls, and the rules of the bus.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <unordered_map>
#include <vector>

namespace {

constexpr uint64_t page_bytes = 4096;

// What a master shows on a channel; while it waits it may not change, nor be taken back.
template <typename Payload> struct Offer {
    bool waits = false;
    Payload payload{};
    bool breaks(bool valid, const Payload& now, bool ready) {
        const bool broken = waits && (!valid || std::memcmp(&payload, &now, sizeof now) != 0);
        waits = valid && !ready;
        payload = now;
        return broken;
    }
};

struct Address {
    uint32_t addr, len, size, burst;
};

struct Burst {
    uint64_t address, beats, ready_at;
};

class ExternalMemory {
  public:
    // Cycles of latency; a beat may follow after so many cycles (1: each cycle); refresh: every so many cycles (0:
    // never) none moves for so many; percent of cycles in which each channel does not answer (AW, W, B, AR, R); seed;
    // percent of answers that are errors; bursts that are taken before the first of them is done.
    void set_timing(const uint32_t* t) {
        latency = t[0], beat_cycles = std::max(1u, t[1]), refresh_every = t[2], refresh_cycles = t[3];
        for (int channel = 0; channel < 5; channel++) stall[channel] = t[4 + channel];
        random = 0x9e3779b97f4a7c15ull ^ t[9], errors = t[10], queue = std::max(1u, t[11]);
    }

    // Beats read, beats written, bursts read, bursts written, broken rules of the bus.
    void counts(uint64_t* found) const { std::copy(counted, counted + 5, found); }

    void read(uint64_t address, uint8_t* data, uint64_t count) const {
        for (uint64_t k = 0; k < count; k++) {
            const auto page = pages.find((address + k) / page_bytes);
            data[k] = page == pages.end() ? 0 : page->second[(address + k) % page_bytes];
        }
    }

    void write(uint64_t address, const uint8_t* data, uint64_t count) {
        for (uint64_t k = 0; k < count; k++) byte(address + k) = data[k];
    }

    // Forget what is under way; contents stay.
    void reset() {
        writes.clear(), reads.clear(), answers.clear();
        r_shown = b_shown = w_waits = aw_offer.waits = ar_offer.waits = false;
    }

    // Set the master's inputs for this cycle.
    template <typename Top> void drive(Top& top) {
        const bool refreshing = refresh_every && cycle % refresh_every < refresh_cycles;
        top.m_axi_awready = writes.size() < queue && !stalls(0);
        top.m_axi_wready = !writes.empty() && !refreshing && cycle >= next_beat && !stalls(1);
        if (!b_shown) {
            b_shown = !answers.empty() && cycle >= answers.front() && !stalls(2);
            if (b_shown) b_response = error();
        }
        top.m_axi_bvalid = b_shown;
        top.m_axi_bresp = b_response;
        top.m_axi_arready = reads.size() < queue && !stalls(3);
        if (!r_shown) {
            r_shown = !reads.empty() && cycle >= reads.front().ready_at && !refreshing && cycle >= next_beat &&
                      !stalls(4);
            if (r_shown) {
                fetch(reads.front().address, sizeof top.m_axi_rdata);
                r_response = error();
            }
        }
        top.m_axi_rvalid = r_shown;
        top.m_axi_rlast = r_shown && reads.front().beats == 1;
        top.m_axi_rresp = r_response;
        std::memcpy(&top.m_axi_rdata, word.data(), sizeof top.m_axi_rdata);
    }

    // What was taken in this cycle.
    template <typename Top> void look(Top& top) {
        const std::size_t bytes = sizeof top.m_axi_wdata;
        const Address aw{top.m_axi_awaddr, top.m_axi_awlen, top.m_axi_awsize, top.m_axi_awburst};
        const Address ar{top.m_axi_araddr, top.m_axi_arlen, top.m_axi_arsize, top.m_axi_arburst};
        counted[4] += aw_offer.breaks(top.m_axi_awvalid, aw, top.m_axi_awready);
        counted[4] += ar_offer.breaks(top.m_axi_arvalid, ar, top.m_axi_arready);
        std::vector<uint8_t> data(bytes + 1);
        std::memcpy(data.data(), &top.m_axi_wdata, bytes);
        data[bytes] = top.m_axi_wlast;
        counted[4] += w_waits && (!top.m_axi_wvalid || data != w_before);
        w_waits = top.m_axi_wvalid && !top.m_axi_wready, w_before = data;
        if (top.m_axi_awvalid && top.m_axi_awready) take(aw, bytes, writes, 3);
        if (top.m_axi_arvalid && top.m_axi_arready) take(ar, bytes, reads, 2);
        if (top.m_axi_wvalid && top.m_axi_wready) {
            Burst& burst = writes.front();
            for (std::size_t k = 0; k < bytes; k++) byte(burst.address + k) = data[k];
            counted[4] += (burst.beats == 1) != bool(top.m_axi_wlast);
            counted[1]++, next_beat = cycle + beat_cycles, burst.address += bytes;
            if (--burst.beats == 0) answers.push_back(cycle + latency), writes.pop_front();
        }
        if (top.m_axi_bvalid && top.m_axi_bready) answers.pop_front(), b_shown = false;
        if (top.m_axi_rvalid && top.m_axi_rready) {
            Burst& burst = reads.front();
            counted[0]++, next_beat = cycle + beat_cycles, burst.address += bytes, r_shown = false;
            if (--burst.beats == 0) reads.pop_front();
        }
        cycle++;
    }

  private:
    uint32_t latency = 30, beat_cycles = 1, refresh_every = 0, refresh_cycles = 0, stall[5] = {}, errors = 0, queue = 4;
    uint64_t random = 1, cycle = 0, next_beat = 0, counted[5] = {};
    std::unordered_map<uint64_t, std::vector<uint8_t>> pages;
    std::deque<Burst> writes, reads;
    std::deque<uint64_t> answers;
    std::vector<uint8_t> word = std::vector<uint8_t>(128), w_before;
    bool r_shown = false, b_shown = false, w_waits = false;
    uint8_t r_response = 0, b_response = 0;
    Offer<Address> aw_offer, ar_offer;

    uint32_t draw() {  // xorshift64*
        random ^= random >> 12, random ^= random << 25, random ^= random >> 27;
        return static_cast<uint32_t>(random * 0x2545f4914f6cdd1dull >> 32) % 100;
    }
    bool stalls(int channel) { return stall[channel] && draw() < stall[channel]; }
    uint8_t error() { return errors && draw() < errors ? 2 : 0; }  // SLVERR

    uint8_t& byte(uint64_t address) {
        auto& page = pages[address / page_bytes];
        if (page.empty()) page.resize(page_bytes);
        return page[address % page_bytes];
    }

    void fetch(uint64_t address, std::size_t bytes) { read(address, word.data(), bytes); }

    void take(const Address& asked, std::size_t bytes, std::deque<Burst>& bursts, int count) {
        const uint64_t beats = asked.len + 1, last = asked.addr + beats * bytes - 1;
        counted[4] += asked.burst != 1 || (1u << asked.size) != bytes || asked.addr % bytes ||
                      asked.addr / page_bytes != last / page_bytes;
        bursts.push_back({asked.addr, beats, cycle + latency});
        counted[count]++;
    }
};

}  // namespace
