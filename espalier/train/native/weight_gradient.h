// Gradients of the weights of a convolution, only those of live weights, summed over the pixels and images of chunks.
#pragma once
#include "convolve.h"

// The gradients asked for: lists of taps, by block of output channels.
struct Gradients {
    struct Item {
        int64_t offset, place;  // in the source, from the window's origin; in the weights of its output channel
    };
    int64_t rows;  // output channels worked on together
    std::vector<Item> items;
    std::vector<size_t> start;  // of each block's list; of each group's, where all gradients are wanted

    // ``live`` is 0 where no gradient is wanted.
    Gradients(const Window& w, const View& source, const double* live) {
        const int64_t fan = w.fan_in(), outputs = w.outputs / w.groups;
        const bool all = std::all_of(live, live + w.weights(), [](double l) { return l != 0; });
        rows = all && outputs % 4 == 0 ? 4 : 1;
        std::vector<int32_t> where;
        for (int64_t o = 0; o < w.outputs; o += all ? outputs : 1) {
            start.push_back(items.size());
            if (o % outputs == 0) where = offsets(w, source, o / outputs);
            for (int64_t k = 0; k < fan; k++)
                if (all || live[o * fan + k] != 0) items.push_back({where[k], k});
        }
        start.push_back(items.size());
    }
};

constexpr int64_t FEW = 4;  // pixels, behind which carrying costs as much as another product for each

// A rectangle of the output map, and steps in words from row to row and from pixel to pixel.
struct Patch {
    int64_t rows, columns;
    int64_t source_row, source_step, gradient_row;
    int64_t pixels;  // whose products 32 bits hold
};

// Where the sums over a plane of output gradients go: to those of an output channel, times so much.
struct Plane {
    const int16_t* words;
    double* sums;
    int64_t factor;
};

// Adds to the sums of E items, for each of R planes of output gradients, those over a patch. All are whole numbers,
// exact in double.
template <int R, int E>
void weight_items(const Patch& patch, const Gradients::Item* item, const int16_t* origin, const Plane* planes) {
    Sums lower[R][E] = {}, upper[R][E] = {};
    int64_t left = patch.pixels;
    for (int64_t y = 0; y < patch.rows; y++) {
        const int16_t* x = origin + y * patch.source_row;
        for (int64_t k = 0; k < patch.columns;) {
            const int64_t end = std::min(patch.columns, k + left);
            left -= end - k;
            for (; k < end; k++, x += patch.source_step) {
                Words here[E];
                for (int e = 0; e < E; e++) here[e] = load(x + item[e].offset);
                for (int r = 0; r < R; r++) {
                    const Words g = load(planes[r].words + y * patch.gradient_row + k * LANES);
                    for (int e = 0; e < E; e++) lower[r][e] = dot(lower[r][e], here[e], g);
                }
            }
            if (left) continue;
            left = patch.pixels;
            for (int r = 0; r < R; r++)
                for (int e = 0; e < E; e++) carry(lower[r][e], upper[r][e]);
        }
    }
    for (int r = 0; r < R; r++) {
        auto put = [&](int e, int64_t sum) {
            planes[r].sums[item[e].place] += static_cast<double>(planes[r].factor * sum);
        };
        if constexpr (E == 1) put(0, total(upper[r][0]) * (1 << 16) + total(lower[r][0]));
        else
            for (int e = 0; e < E; e += 4) {
                int32_t high[4], low[4];
                for (int k = e; k < e + 4; k++) carry(lower[r][k], upper[r][k]);
                totals(upper[r] + e, high), totals(lower[r] + e, low);
                for (int k = 0; k < 4; k++) put(e + k, int64_t(high[k]) * (1 << 16) + low[k]);
            }
    }
}

template <int R>
void weight_list(const Patch& patch, const Gradients::Item* item, const Gradients::Item* end, const int16_t* origin,
                 const Plane* planes) {
    constexpr int E = R == 4 ? 4 : 8;
    for (; item + E <= end; item += E) weight_items<R, E>(patch, item, origin, planes);
    for (; item < end; item++) weight_items<R, 1>(patch, item, origin, planes);
}

// Adds a chunk's part to ``sums``, one for each weight. ``source`` is at the window's first place, ``gradient`` at the
// map's; ``most`` bound magnitudes.
inline void add_weight_gradients(const Window& w, const Gradients& wanted, View source, View gradient, int64_t most,
                                 int64_t most_gradient, std::vector<int16_t>& scratch, double* sums) {
    if (wanted.items.empty() || most == 0 || most_gradient == 0) return;
    int64_t pixels = (LIMIT - CARRIED) / (2 * most * most_gradient);
    const bool split = pixels < std::min(w.out_height * w.out_width, FEW);
    View fine = gradient, coarse = gradient;
    if (split) {
        const int64_t size = w.outputs * gradient.plane;
        scratch.resize(2 * size);
        for (int64_t o = 0; o < w.outputs; o++)
            for (int64_t y = 0; y < w.out_height; y++)
                for (int64_t k = 0; k < w.out_width * LANES; k++) {
                    const int16_t word = gradient.at(o, y, 0)[k];
                    const int64_t at = o * gradient.plane + y * gradient.row + k;
                    scratch[at] = static_cast<int8_t>(word);
                    scratch[size + at] = (word - static_cast<int8_t>(word)) / 256;
                }
        fine.words = scratch.data(), coarse.words = scratch.data() + size;
        pixels = (LIMIT - CARRIED) / (2 * most * 128);
    }
    const int64_t columns = std::min<int64_t>(w.out_width, 128);  // of patches that stay near
    const int64_t most_rows = std::max<int64_t>(1, 128 / columns);
    for (int64_t y = 0; y < w.out_height; y += most_rows)
        for (int64_t x = 0; x < w.out_width; x += columns) {
            const Patch patch{std::min(most_rows, w.out_height - y), std::min(columns, w.out_width - x),
                              w.stride_y * source.row, w.stride_x * LANES, gradient.row, pixels};
            const int16_t* origin = source.at(0, y * w.stride_y, x * w.stride_x);
            for (int64_t o = 0; o < w.outputs; o += wanted.rows) {
                const size_t list = o * (wanted.start.size() - 1) / w.outputs;
                const Gradients::Item *item = wanted.items.data() + wanted.start[list],
                                      *end = wanted.items.data() + wanted.start[list + 1];
                Plane planes[4], coarse_planes[4];
                for (int64_t r = 0; r < wanted.rows; r++) {
                    double* const to = sums + (o + r) * w.fan_in();
                    planes[r] = {fine.at(o + r, y, x), to, 1};
                    coarse_planes[r] = {coarse.at(o + r, y, x), to, 256};
                }
                if (wanted.rows == 4) {
                    weight_list<4>(patch, item, end, origin, planes);
                    if (split) weight_list<4>(patch, item, end, origin, coarse_planes);
                } else if (split) {
                    const Plane both[2] = {planes[0], coarse_planes[0]};
                    weight_list<2>(patch, item, end, origin, both);
                } else {
                    weight_list<1>(patch, item, end, origin, planes);
                }
            }
        }
}
