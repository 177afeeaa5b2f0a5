// A convolution of the maps of a chunk of images, by the dataflow of the engine: a weight is broadcast over the lanes,
// zero weights cost nothing, and WU computes only the gradients asked for.
//
// A map lies in memory as [channel][y][x][LANES], with a border of zeros. Products are added in 32 bits, by the
// processor's pairwise multiply-add. That is exact because each sum is bounded first, from the weights and the largest
// word there is: where 32 bits might not hold it, taps are added up in segments that they do hold, and after each the
// upper bits are carried to a sum of their own; where they might not hold two products, sums are taken in 64 bits.
#pragma once
#include <cstdlib>
#include <vector>

#include "vector.h"

// A map, or what a window sees of it: where its first word lies, and the steps to the next channel and row.
struct View {
    int16_t* words;
    int64_t plane, row;

    int16_t* at(int64_t channel, int64_t y, int64_t x) const { return words + channel * plane + y * row + x * LANES; }
    View from(int64_t channel) const { return words ? View{at(channel, 0, 0), plane, row} : View{}; }
};

// How a window walks over a map.
struct Window {
    int64_t channels, outputs, groups, kernel_y, kernel_x;
    int64_t stride_y, stride_x, dilation_y, dilation_x;
    int64_t out_height, out_width;

    int64_t fan_in() const { return channels / groups * kernel_y * kernel_x; }
    int64_t weights() const { return outputs * fan_in(); }
};

// Round half up to the right by ``shift`` (to the left if negative; by 63: to zero), then clamp into words.
struct Rounding {
    int64_t shift, low, high;

    bool between(int64_t least, int64_t most) const { return shift >= least && shift <= most; }

    // What is added before a shift to the right, of at most 62.
    int64_t half() const { return (int64_t(1) << shift) >> 1; }

    int16_t operator()(int64_t sum) const {
        if (shift >= 63) return std::clamp<int64_t>(0, low, high);
        if (shift > 0) return std::clamp((sum + (int64_t(1) << (shift - 1))) >> shift, low, high);
        if (sum == 0 || -shift > 62) return std::clamp<int64_t>(sum == 0 ? 0 : sum > 0 ? high : low, low, high);
        const int64_t most = INT64_MAX >> -shift;  // beyond, the word is clamped anyway
        return std::clamp(std::clamp(sum, -most, most) << -shift, low, high);
    }
};

// Where, in words from the window's origin, each of an output channel's taps lies.
inline std::vector<int32_t> offsets(const Window& w, const View& source, int64_t group) {
    std::vector<int32_t> found;
    const int64_t channels = w.channels / w.groups;
    for (int64_t c = group * channels; c < (group + 1) * channels; c++)
        for (int64_t ky = 0; ky < w.kernel_y; ky++)
            for (int64_t kx = 0; kx < w.kernel_x; kx++)
                found.push_back(source.at(c, ky * w.dilation_y, kx * w.dilation_x) - source.words);
    return found;
}

inline int32_t pair_of(int64_t first, int64_t second) {
    return static_cast<int32_t>(static_cast<uint32_t>(second) << 16 | (static_cast<uint32_t>(first) & 0xffff));
}

// Two taps of R output channels: where they lie, and weights in pairs.
template <int R>
struct Pair {
    int32_t first, second;
    int32_t weights[R];
};

// Lists of the taps that are not zero, by block of R output channels.
template <int R>
struct Lists {
    std::vector<Pair<R>> pairs;
    std::vector<size_t> start;
    std::vector<int64_t> before{0};  // magnitudes of the weights of all pairs before, of each the largest of R
    int64_t largest = 0;             // of a pair

    Lists(const Window& window, const View& source, const int16_t* weights) {
        const int64_t fan = window.fan_in(), outputs = window.outputs / window.groups;
        std::vector<int32_t> where;
        for (int64_t o = 0; o < window.outputs; o += R) {
            start.push_back(pairs.size());
            if (o % outputs == 0) where = offsets(window, source, o / outputs);
            const int16_t* w = weights + o * fan;
            int64_t waiting = -1;
            for (int64_t k = 0; k < fan; k++) {
                bool live = false;
                for (int r = 0; r < R; r++) live |= w[r * fan + k] != 0;
                if (!live) continue;
                if (waiting >= 0) put(w, fan, where, waiting, k), waiting = -1;
                else waiting = k;
            }
            if (waiting >= 0) put(w, fan, where, waiting, -1);
        }
        start.push_back(pairs.size());
    }

    // The end of the segment that begins with a pair and stays within a list, for magnitudes of up to ``room``.
    const Pair<R>* segment(const Pair<R>* pair, const Pair<R>* end, int64_t room) const {
        const auto from = before.begin() + (pair - pairs.data()), to = before.begin() + (end - pairs.data());
        return pairs.data() + (std::upper_bound(from, to + 1, *from + room) - before.begin() - 1);
    }

private:
    void put(const int16_t* w, int64_t fan, const std::vector<int32_t>& where, int64_t first, int64_t second) {
        Pair<R> pair{where[first], where[second < 0 ? first : second], {}};
        int64_t magnitude = 0;
        for (int r = 0; r < R; r++) {
            const int64_t a = w[r * fan + first], b = second < 0 ? 0 : w[r * fan + second];
            pair.weights[r] = pair_of(a, b);
            magnitude = std::max(magnitude, std::abs(a) + std::abs(b));
        }
        pairs.push_back(pair);
        before.push_back(before.back() + magnitude);
        largest = std::max(largest, magnitude);
    }
};

// The largest sum of magnitudes of an output channel's weights, and how many weights are not zero.
struct Bounds {
    int64_t sum = 0, live = 0;

    Bounds(const Window& w, const int16_t* weights) {
        const int64_t fan = w.fan_in();
        for (int64_t o = 0; o < w.outputs; o++) {
            int64_t magnitudes = 0;
            for (int64_t k = o * fan; k < (o + 1) * fan; k++) {
                magnitudes += std::abs(int64_t(weights[k]));
                live += weights[k] != 0;
            }
            sum = std::max(sum, magnitudes);
        }
    }
};

// Everything that the tiles of a chunk share: ``source`` at the window's first place, and what becomes of the sums.
struct Job {
    const Window& window;
    View source, target, mask;  // words pass where the mask is in 1..mask_high, everywhere where it has no words
    int16_t mask_high;
    const int64_t* bias;
    Rounding rounding;
    Words* most;  // raised to the magnitudes of the words written
};

inline void put(const Job& job, int64_t o, int64_t y, int64_t x, Words words) {
    if (job.mask.words) words &= passes(load(job.mask.at(o, y, x)), job.mask_high);
    *job.most = larger(*job.most, words);
    store(job.target.at(o, y, x), words);
}

// What put will read, so that it is near by then.
inline void expect(const Job& job, int64_t o, int64_t y, int64_t x) {
    if (job.mask.words) __builtin_prefetch(job.mask.at(o, y, x));
}

inline Words broadcast(int32_t pair) { return (Words)(Sums{} + pair); }

// Words of sums of 32 bits; the shift is 0..30 and what is added for rounding is within the bound.
inline Words rounded(const Rounding& r, Sums low, Sums high) {
    const Sums half = Sums{} + static_cast<int32_t>(r.half());
    const int shift = static_cast<int>(r.shift);
    return limit(pack((low + half) >> shift, (high + half) >> shift), r.low, r.high);
}

// Words of upper * 2**16 + lower, with lower in 0..2**16-1, of which what is added for rounding is a part already; the
// shift is 0..46. A shift of less than 16 needs the lower bits, but not the upper bits of sums that are clamped anyway.
inline Words rounded(const Rounding& r, const Sums* upper, const Sums* lower) {
    const int shift = static_cast<int>(r.shift) - 16;
    const Sums most = Sums{} + INT16_MAX;
    Sums found[2];
    for (int h = 0; h < 2; h++) {
        if (shift >= 0) {
            found[h] = upper[h] >> shift;
            continue;
        }
        const Sums within = upper[h] > most ? most : upper[h] < -most ? -most : upper[h];
        found[h] = (within << -shift) + (lower[h] >> (16 + shift));
    }
    return limit(pack(found[0], found[1]), r.low, r.high);
}

// R output channels from o on at P neighbouring pixels from (y, x) on: what is added, from a list of pairs.
template <int R, int P>
[[gnu::always_inline]] inline void add(Sums (&sums)[P][R][2], const Pair<R>* pair, const Pair<R>* end,
                                       const int16_t* origin, int64_t step) {
    for (; pair < end; pair++) {
        Words weights[R];
        for (int r = 0; r < R; r++) weights[r] = broadcast(pair->weights[r]);
        for (int q = 0; q < P; q++) {
            const Words a = load(origin + pair->first + q * step), b = load(origin + pair->second + q * step);
            const Words low = interleave<false>(a, b), high = interleave<true>(a, b);
            for (int r = 0; r < R; r++) {
                sums[q][r][0] = dot(sums[q][r][0], low, weights[r]);
                sums[q][r][1] = dot(sums[q][r][1], high, weights[r]);
            }
        }
    }
}

// Sums in one 32-bit place each.
template <int R, int P>
void narrow_tile(const Job& job, const Pair<R>* pair, const Pair<R>* end, const int16_t* origin, int64_t o, int64_t y,
                 int64_t x) {
    for (int q = 0; q < P; q++)
        for (int r = 0; r < R; r++) expect(job, o + r, y, x + q);
    Sums sums[P][R][2];
    for (auto& at : sums)
        for (int r = 0; r < R; r++) at[r][0] = at[r][1] = Sums{} + static_cast<int32_t>(job.bias[o + r]);
    add<R, P>(sums, pair, end, origin, job.window.stride_x * LANES);
    for (int q = 0; q < P; q++)
        for (int r = 0; r < R; r++) put(job, o + r, y, x + q, rounded(job.rounding, sums[q][r][0], sums[q][r][1]));
}

// Sums of segments of the list, with magnitudes of up to ``room``, and what is carried from them.
template <int R, int P>
void carried_tile(const Job& job, const Lists<R>& lists, int64_t room, const Pair<R>* pair, const Pair<R>* end,
                  const int16_t* origin, int64_t o, int64_t y, int64_t x) {
    Sums lower[P][R][2], upper[P][R][2];
    for (int r = 0; r < R; r++) {
        const int64_t start = job.bias[o + r] + job.rounding.half();
        for (int q = 0; q < P; q++)
            for (int h = 0; h < 2; h++) {
                lower[q][r][h] = Sums{} + static_cast<int32_t>(start & CARRIED);
                upper[q][r][h] = Sums{} + static_cast<int32_t>(start >> 16);
            }
    }
    while (pair < end) {
        const Pair<R>* next = lists.segment(pair, end, room);
        add<R, P>(lower, pair, next, origin, job.window.stride_x * LANES);
        for (int q = 0; q < P; q++)
            for (int r = 0; r < R; r++)
                for (int h = 0; h < 2; h++) carry(lower[q][r][h], upper[q][r][h]);
        pair = next;
    }
    for (int q = 0; q < P; q++)
        for (int r = 0; r < R; r++) put(job, o + r, y, x + q, rounded(job.rounding, upper[q][r], lower[q][r]));
}

// One pixel, for sums that may need 64 bits.
template <int R>
void wide_tile(const Job& job, const Pair<R>* pair, const Pair<R>* end, const int16_t* origin, int64_t o, int64_t y,
               int64_t x) {
    for (int r = 0; r < R; r++) {
        int64_t sums[LANES];
        for (auto& sum : sums) sum = job.bias[o + r];
        for (const Pair<R>* k = pair; k < end; k++) {
            const int64_t a = static_cast<int16_t>(k->weights[r] & 0xffff), b = k->weights[r] >> 16;
            for (int l = 0; l < LANES; l++) sums[l] += a * origin[k->first + l] + b * origin[k->second + l];
        }
        Words words;
        for (int l = 0; l < LANES; l++) words[l] = job.rounding(sums[l]);
        put(job, o + r, y, x, words);
    }
}

enum class Way { NARROW, CARRIED, WIDE };

template <int R>
void convolve(const Job& job, Way way, const Lists<R>& lists, int64_t room) {
    constexpr int P = R == 1 ? 4 : 2;  // as many sums as registers hold
    const Window& w = job.window;
    for (int64_t y = 0; y < w.out_height; y++)
        for (int64_t x = 0; x < w.out_width;) {
            const bool several = w.out_width - x >= P;
            const int16_t* origin = job.source.at(0, y * w.stride_y, x * w.stride_x);
            for (size_t k = 0; k + 1 < lists.start.size(); k++) {
                const Pair<R>* pair = lists.pairs.data() + lists.start[k];
                const Pair<R>* end = lists.pairs.data() + lists.start[k + 1];
                auto tile = [&]<int COUNT>() {
                    if (way == Way::NARROW) return narrow_tile<R, COUNT>(job, pair, end, origin, R * k, y, x);
                    if (way == Way::CARRIED)
                        return carried_tile<R, COUNT>(job, lists, room, pair, end, origin, R * k, y, x);
                    for (int q = 0; q < COUNT; q++)
                        wide_tile<R>(job, pair, end, origin + q * w.stride_x * LANES, R * k, y, x + q);
                };
                if (several) tile.template operator()<P>();
                else tile.template operator()<1>();
            }
            x += several ? P : 1;
        }
}

// A convolution's weights, made ready for every chunk.
class Convolution {
    Bounds bounds;
    int64_t most_bias = 0;
    std::vector<int64_t> bias;
    std::unique_ptr<Lists<4>> dense;
    std::unique_ptr<Lists<1>> sparse;

public:
    Convolution(const Window& w, const View& source, const int16_t* weights, std::vector<int64_t> bias)
        : bounds(w, weights), bias(std::move(bias)) {
        for (int64_t b : this->bias) most_bias = std::max(most_bias, std::abs(b));
        if (w.outputs / w.groups % 4 == 0 && 3 * bounds.live > w.weights())
            dense = std::make_unique<Lists<4>>(w, source, weights);
        else sparse = std::make_unique<Lists<1>>(w, source, weights);
    }

    // ``most``: a bound on the magnitudes of the source's words. ``job.bias`` is filled in.
    void operator()(Job job, int64_t most) const {
        job.bias = bias.data();
        if (dense) convolve<4>(job, way(job.rounding, most, dense->largest), *dense, room(most));
        else convolve<1>(job, way(job.rounding, most, sparse->largest), *sparse, room(most));
    }

private:
    // What the magnitudes of the weights of a segment may add up to.
    static int64_t room(int64_t most) { return (LIMIT - CARRIED) / std::max<int64_t>(most, 1); }

    // ``largest``: the magnitude of a pair.
    Way way(const Rounding& r, int64_t most, int64_t largest) const {
        if (!r.between(0, 46) || most_bias > LIMIT << 14) return Way::WIDE;
        const int64_t whole = most * bounds.sum + most_bias + r.half();
        if (r.shift <= 30 && whole <= LIMIT) return Way::NARROW;
        return largest <= room(most) && whole <= LIMIT << 15 ? Way::CARRIED : Way::WIDE;
    }
};
