// Operations on maps other than convolution: pooling, elementwise, sums.
#pragma once
#include "convolve.h"

// (channels, height, width) of a map and where it lies, with a border of zeros around it.
struct Map {
    int64_t arena, offset, channels, height, width, top, left, full_height, full_width;
    int64_t owner;  // the map whose memory this one is, in another shape; itself otherwise

    View view(int16_t* memory) const {
        const int64_t row = full_width * LANES, plane = full_height * row;
        return {memory + offset + top * row + left * LANES, plane, row};
    }
    int64_t size() const { return channels * height * width; }
};

struct Pool {
    int64_t kernel_y, kernel_x, stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x;
    bool apart;  // windows neither overlap nor reach the padding
};

// Calls work(k, y, x) for each place (y, x) of the map that the window of output (oy, ox) sees, row-major.
template <class Work>
void each_place(const Pool& p, const Map& map, int64_t oy, int64_t ox, Work work) {
    for (int64_t ky = 0; ky < p.kernel_y; ky++) {
        const int64_t y = oy * p.stride_y + ky * p.dilation_y - p.pad_y;
        if (y < 0 || y >= map.height) continue;
        for (int64_t kx = 0; kx < p.kernel_x; kx++) {
            const int64_t x = ox * p.stride_x + kx * p.dilation_x - p.pad_x;
            if (x >= 0 && x < map.width) work(y, x);
        }
    }
}

inline Words largest(const Pool& p, const Map& map, const View& source, int64_t c, int64_t oy, int64_t ox) {
    Words best = Words{} + INT16_MIN;
    each_place(p, map, oy, ox, [&](int64_t y, int64_t x) {
        const Words here = load(source.at(c, y, x));
        best = here > best ? here : best;
    });
    return best;
}

// Widened words, for sums.
struct Wide {
    int64_t sums[LANES] = {};

    void add(Words words, int64_t shift) {
        for (int l = 0; l < LANES; l++) sums[l] += static_cast<int64_t>(words[l]) << shift;
    }
    Words words(const Rounding& r, int64_t factor = 1) const {
        Words found;
        for (int l = 0; l < LANES; l++) found[l] = r(sums[l] * factor);
        return found;
    }
};

// Where results go, and what becomes of them on the way.
struct Sink {
    View target, mask;
    int16_t mask_high;
    Words* most;

    void operator()(int64_t c, int64_t y, int64_t x, Words words) const {
        if (mask.words) words &= passes(load(mask.at(c, y, x)), mask_high);
        *most = larger(*most, words);
        store(target.at(c, y, x), words);
    }
    Sink from(int64_t channel) const { return {target.from(channel), mask.from(channel), mask_high, most}; }
};

inline void max_pool(const Pool& p, const Map& map, const View& source, const Map& out, const Rounding& r, bool same,
                     const Sink& sink) {
    for (int64_t c = 0; c < out.channels; c++)
        for (int64_t y = 0; y < out.height; y++)
            for (int64_t x = 0; x < out.width; x++) {
                const Words best = largest(p, map, source, c, y, x);
                if (same) {
                    sink(c, y, x, limit(best, r.low, r.high));
                    continue;
                }
                Wide wide;
                wide.add(best, 0);
                sink(c, y, x, wide.words(r));
            }
}

// Each word of the gradient goes to the first largest word of its window.
inline void max_pool_gradient(const Pool& p, const Map& map, const View& source, const Map& out, const View& gradient,
                              const Rounding& r, bool same, const Sink& sink) {
    std::vector<Wide> plane(p.apart && same ? 0 : map.height * map.width);
    for (int64_t c = 0; c < map.channels; c++) {
        std::fill(plane.begin(), plane.end(), Wide{});
        if (p.apart && same && (p.stride_y > p.kernel_y || p.stride_x > p.kernel_x
                                || map.height != out.height * p.stride_y || map.width != out.width * p.stride_x))
            for (int64_t y = 0; y < map.height; y++)
                for (int64_t x = 0; x < map.width; x++) sink(c, y, x, Words{});
        for (int64_t oy = 0; oy < out.height; oy++)
            for (int64_t ox = 0; ox < out.width; ox++) {
                const Words best = largest(p, map, source, c, oy, ox);
                Words left = Words{} - 1;  // lanes whose gradient has not found its place yet
                const Words given = load(gradient.at(c, oy, ox));
                each_place(p, map, oy, ox, [&](int64_t y, int64_t x) {
                    const Words here = (load(source.at(c, y, x)) == best) & left;
                    left &= ~here;
                    if (plane.empty()) sink(c, y, x, given & here);
                    else plane[y * map.width + x].add(given & here, 0);
                });
            }
        if (plane.empty()) continue;
        for (int64_t y = 0; y < map.height; y++)
            for (int64_t x = 0; x < map.width; x++) sink(c, y, x, plane[y * map.width + x].words(r));
    }
}

inline void average_pool(const Pool& p, const Map& map, const View& source, const Map& out, int64_t reciprocal,
                         const Rounding& r, const Sink& sink) {
    for (int64_t c = 0; c < out.channels; c++)
        for (int64_t oy = 0; oy < out.height; oy++)
            for (int64_t ox = 0; ox < out.width; ox++) {
                Wide sum;
                each_place(p, map, oy, ox, [&](int64_t y, int64_t x) { sum.add(load(source.at(c, y, x)), 0); });
                sink(c, oy, ox, sum.words(r, reciprocal));
            }
}

// ``map`` is what was pooled, ``out`` the pooled map with its gradient.
inline void average_pool_gradient(const Pool& p, const Map& map, const Map& out, const View& gradient,
                                  int64_t reciprocal, const Rounding& r, const Sink& sink) {
    std::vector<Wide> plane(map.height * map.width);
    for (int64_t c = 0; c < map.channels; c++) {
        std::fill(plane.begin(), plane.end(), Wide{});
        for (int64_t oy = 0; oy < out.height; oy++)
            for (int64_t ox = 0; ox < out.width; ox++)
                each_place(p, map, oy, ox, [&](int64_t y, int64_t x) {
                    plane[y * map.width + x].add(load(gradient.at(c, oy, ox)), 0);
                });
        for (int64_t y = 0; y < map.height; y++)
            for (int64_t x = 0; x < map.width; x++) sink(c, y, x, plane[y * map.width + x].words(r, reciprocal));
    }
}

// Whether 32 bits hold any two words, shifted to the left, and what rounding adds.
inline bool fits(int64_t shift_a, int64_t shift_b, const Rounding& r) {
    return std::min(shift_a, shift_b) >= 0 && std::max(shift_a, shift_b) <= 14 && r.between(0, 30)
           && (int64_t(1) << (15 + shift_a)) + (int64_t(1) << (15 + shift_b)) + r.half() <= LIMIT;
}

// a << shift_a, plus b << shift_b where b has words, rounded; ``same``: the words of a are the result. ``map``: of both.
inline void combine(const Map& map, const View& a, int64_t shift_a, const View& b, int64_t shift_b, const Rounding& r,
                    bool same, const Sink& sink) {
    const bool narrow = fits(shift_a, shift_b, r);
    const Words factors = narrow ? broadcast(pair_of(1 << shift_a, 1 << shift_b)) : Words{};
    for (int64_t c = 0; c < map.channels; c++)
        for (int64_t y = 0; y < map.height; y++)
            for (int64_t x = 0; x < map.width; x++) {
                if (same) {
                    sink(c, y, x, limit(load(a.at(c, y, x)), r.low, r.high));
                    continue;
                }
                if (narrow) {
                    const Words u = load(a.at(c, y, x)), v = b.words ? load(b.at(c, y, x)) : Words{};
                    sink(c, y, x, rounded(r, dot(Sums{}, interleave<false>(u, v), factors),
                                          dot(Sums{}, interleave<true>(u, v), factors)));
                    continue;
                }
                Wide sum;
                sum.add(load(a.at(c, y, x)), shift_a);
                if (b.words) sum.add(load(b.at(c, y, x)), shift_b);
                sink(c, y, x, sum.words(r));
            }
}

// The channels of a << shift_a, rounded, then those of b << shift_b.
inline void concat(const Map& map, const View& a, int64_t shift_a, const Map& other, const View& b, int64_t shift_b,
                   const Rounding& r, bool same, const Sink& sink) {
    combine(map, a, shift_a, {}, 0, r, same, sink);
    combine(other, b, shift_b, {}, 0, r, same, sink.from(map.channels));
}

// Puts steps between the pixels; what lies between stays as it is, zero.
inline void spread(const Map& map, const View& source, int64_t step_y, int64_t step_x, const Sink& sink) {
    for (int64_t c = 0; c < map.channels; c++)
        for (int64_t y = 0; y < map.height; y++)
            for (int64_t x = 0; x < map.width; x++) sink(c, y * step_y, x * step_x, load(source.at(c, y, x)));
}

// Adds to sums[channel] all words of a map, where ``live`` is not 0. 32 bits hold those of 2**15 pixels.
inline void add_channel_sums(const Map& map, const View& source, const double* live, double* sums) {
    const Words ones = Words{} + 1;
    const int64_t rows = std::max<int64_t>(1, (int64_t(1) << 14) / map.width);
    for (int64_t c = 0; c < map.channels; c++)
        for (int64_t top = 0; top < map.height; top += rows) {
            Sums part{};
            for (int64_t y = top; y < std::min(top + rows, map.height); y++)
                for (int64_t x = 0; x < map.width; x++) part = dot(part, load(source.at(c, y, x)), ones);
            sums[c] += static_cast<double>(total(part)) * live[c];
        }
}
