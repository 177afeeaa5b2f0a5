// Exact convolution by the dataflow of the engine: a weight is broadcast over lanes of images, zero weights cost
// nothing, and WU computes only the gradients asked for. Whole numbers are carried in double (FMA included: no sum
// leaves the 53 bits that exact.py proves).
//
// A map lies in memory as [channel][y][x][image]. A task is a chunk of up to 8*V images: its map is copied with its
// padding into a buffer [channel][y][x][8*V] of the thread, zero where there is no image.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <malloc.h>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace {

constexpr int WIDTH = 8;  // doubles in a vector: one AVX-512 register; the compiler splits it where they are shorter
typedef double Vec __attribute__((vector_size(8 * WIDTH)));

// Memory borrowed from a store that lasts, since fresh memory costs a page fault each 4 KiB.
class Buffer {
    struct Aligned {
        void operator()(double* p) const { ::operator delete[](p, std::align_val_t(64)); }
    };
    struct Piece {
        size_t size;
        std::unique_ptr<double[], Aligned> words;
    };
    static inline std::mutex lock;
    static inline std::vector<Piece> store;
    Piece piece{0, nullptr};

public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;

    double* get(size_t size) {
        if (piece.size >= size && piece.words) return piece.words.get();
        {
            std::lock_guard<std::mutex> guard(lock);
            auto fits = std::find_if(store.begin(), store.end(), [&](const Piece& p) { return p.size >= size; });
            if (fits == store.end() && !store.empty()) fits = store.end() - 1;
            if (fits != store.end()) {
                piece = std::move(*fits);
                store.erase(fits);
            }
        }
        if (piece.size < size || !piece.words)
            piece = {size, std::unique_ptr<double[], Aligned>(static_cast<double*>(
                               ::operator new[](std::max<size_t>(size, 1) * sizeof(double), std::align_val_t(64))))};
        return piece.words.get();
    }

    ~Buffer() {
        if (!piece.words) return;
        std::lock_guard<std::mutex> guard(lock);
        store.push_back(std::move(piece));
    }
};

}  // namespace

// How a source map is spread and padded into the buffer, and how a window walks over it.
struct Plan {
    int64_t images, channels, height, width;  // of the source map
    int64_t top, left, spread_y, spread_x;    // source (y, x) goes to buffer (top + y*spread_y, left + x*spread_x)
    int64_t buffer_height, buffer_width;
    int64_t outputs, groups, kernel_y, kernel_x;
    int64_t stride_y, stride_x, dilation_y, dilation_x;
    int64_t out_height, out_width;
};

// Round half up after a multiplication by a power of two, then clamp; without, sums leave as they are.
struct Rounding {
    int64_t active;
    double scale, low, high;
};

namespace {

struct Entry {  // a tap of one output channel
    int64_t offset;
    double weight;
};

struct Entry4 {  // a tap of four output channels
    int64_t offset;
    double weight[4];
};

int64_t fan_in(const Plan& p) { return p.channels / p.groups * p.kernel_y * p.kernel_x; }

// Where in the buffer, in pixels from the window's origin, each of an output channel's taps lies.
std::vector<int64_t> offsets(const Plan& p, int64_t group) {
    std::vector<int64_t> found;
    const int64_t channels = p.channels / p.groups;
    for (int64_t c = group * channels; c < (group + 1) * channels; c++)
        for (int64_t ky = 0; ky < p.kernel_y; ky++)
            for (int64_t kx = 0; kx < p.kernel_x; kx++)
                found.push_back((c * p.buffer_height + ky * p.dilation_y) * p.buffer_width + kx * p.dilation_x);
    return found;
}

// Lists of the taps that are not zero, by output channel.
struct Lists {
    bool four;  // output channels by four, for dense weights
    std::vector<Entry> single;
    std::vector<Entry4> quad;
    std::vector<size_t> start;

    Lists(const Plan& p, const double* weights) {
        const int64_t fan = fan_in(p), outputs = p.outputs / p.groups;
        int64_t live = 0;
        for (int64_t k = 0; k < p.outputs * fan; k++) live += weights[k] != 0;
        four = outputs % 4 == 0 && 3 * live > p.outputs * fan;
        for (int64_t o = 0; o < p.outputs; o += four ? 4 : 1) {
            start.push_back(four ? quad.size() : single.size());
            const auto where = offsets(p, o / outputs);
            const double* w = weights + o * fan;
            for (int64_t k = 0; k < fan; k++)
                if (!four) {
                    if (w[k] != 0) single.push_back({where[k], w[k]});
                } else if (w[k] != 0 || w[fan + k] != 0 || w[2 * fan + k] != 0 || w[3 * fan + k] != 0) {
                    quad.push_back({where[k], {w[k], w[fan + k], w[2 * fan + k], w[3 * fan + k]}});
                }
        }
        start.push_back(four ? quad.size() : single.size());
    }
};

template <int V>
void fill(const Plan& p, const double* source, int64_t first, double* buffer) {
    constexpr int64_t L = V * WIDTH;
    const int64_t count = std::min<int64_t>(L, p.images - first);
    for (int64_t c = 0; c < p.channels; c++)
        for (int64_t by = 0; by < p.buffer_height; by++) {
            double* row = buffer + (c * p.buffer_height + by) * p.buffer_width * L;
            std::memset(row, 0, p.buffer_width * L * sizeof(double));
            const int64_t y = (by - p.top) / p.spread_y;
            if (by < p.top || (by - p.top) % p.spread_y || y >= p.height) continue;
            for (int64_t x = 0; x < p.width; x++) {
                const int64_t bx = p.left + x * p.spread_x;
                if (bx < 0 || bx >= p.buffer_width) continue;
                std::memcpy(row + bx * L, source + ((c * p.height + y) * p.width + x) * p.images + first,
                            count * sizeof(double));
            }
        }
}

template <int V>
void put(Vec* sums, const Rounding& r, double* out, int64_t count) {
    double* words = reinterpret_cast<double*>(sums);
    if (r.active)
        for (int64_t l = 0; l < V * WIDTH; l++) {
            const double word = __builtin_floor(words[l] * r.scale + 0.5);
            words[l] = word < r.low ? r.low : word > r.high ? r.high : word;
        }
    std::memcpy(out, words, count * sizeof(double));
}

// Sums of one output channel at P neighbouring pixels.
template <int V, int P>
void sum_single(const Entry* entry, const Entry* end, const double* pixel, int64_t step, double bias, Vec* sums) {
    Vec acc[P][V];
    for (auto& row : acc)
        for (auto& a : row) a = Vec{} + bias;
    for (; entry < end; entry++) {
        const double* x = pixel + entry->offset * V * WIDTH;
        for (int q = 0; q < P; q++)
            for (int v = 0; v < V; v++)
                acc[q][v] += *reinterpret_cast<const Vec*>(x + q * step + v * WIDTH) * entry->weight;
    }
    std::memcpy(sums, acc, sizeof acc);
}

// Sums of four output channels at P neighbouring pixels.
template <int V, int P>
void sum_quad(const Entry4* entry, const Entry4* end, const double* pixel, int64_t step, const double* bias,
              Vec* sums) {
    Vec acc[P][4][V];
    for (auto& quad : acc)
        for (int r = 0; r < 4; r++)
            for (auto& a : quad[r]) a = Vec{} + bias[r];
    for (; entry < end; entry++) {
        const double* x = pixel + entry->offset * V * WIDTH;
        for (int q = 0; q < P; q++)
            for (int v = 0; v < V; v++) {
                const Vec here = *reinterpret_cast<const Vec*>(x + q * step + v * WIDTH);
                for (int r = 0; r < 4; r++) acc[q][r][v] += here * entry->weight[r];
            }
    }
    std::memcpy(sums, acc, sizeof acc);
}

// One output channel, or four, at P neighbouring pixels from (y, x) on, written out.
template <int V, int P>
void convolve_pixels(const Plan& p, const Lists& lists, size_t k, const double* pixel, const double* bias,
                     const Rounding& r, double* out, int64_t count) {
    const int R = lists.four ? 4 : 1;
    const int64_t step = p.stride_x * V * WIDTH, map = p.out_height * p.out_width * p.images;
    const size_t low = lists.start[k], high = lists.start[k + 1];
    Vec sums[4 * P * V];
    if (lists.four)
        sum_quad<V, P>(lists.quad.data() + low, lists.quad.data() + high, pixel, step, bias + 4 * k, sums);
    else
        sum_single<V, P>(lists.single.data() + low, lists.single.data() + high, pixel, step, bias[k], sums);
    for (int q = 0; q < P; q++)
        for (int o = 0; o < R; o++)
            put<V>(sums + (q * R + o) * V, r, out + (R * k + o) * map + q * p.images, count);
}

template <int V>
void convolve_chunk(const Plan& p, const Lists& lists, const double* source, const double* bias, const Rounding& r,
                    double* out, int64_t first, double* buffer) {
    constexpr int64_t L = V * WIDTH;
    const int64_t count = std::min<int64_t>(L, p.images - first), together = (lists.four ? 4 : 8) / V;
    fill<V>(p, source, first, buffer);
    for (int64_t y = 0; y < p.out_height; y++)
        for (int64_t x = 0; x < p.out_width;) {
            const double* pixel = buffer + (y * p.stride_y * p.buffer_width + x * p.stride_x) * L;
            double* to = out + (y * p.out_width + x) * p.images + first;
            const int64_t pixels = p.out_width - x >= together ? together : 1;
            for (size_t k = 0; k + 1 < lists.start.size(); k++)
                if (pixels == 8 / V) convolve_pixels<V, 8 / V>(p, lists, k, pixel, bias, r, to, count);
                else if (pixels == 4 / V) convolve_pixels<V, 4 / V>(p, lists, k, pixel, bias, r, to, count);
                else convolve_pixels<V, 1>(p, lists, k, pixel, bias, r, to, count);
            x += pixels;
        }
}

// Sums over a row of pixels for R output channels and E taps.
template <int R, int E>
void weight_row(const double* const* g, const double* const* x, int64_t pixels, int64_t step, Vec* const* sums) {
    Vec acc[R][E];
    for (int r = 0; r < R; r++)
        for (int e = 0; e < E; e++) acc[r][e] = *sums[r * E + e];
    for (int64_t k = 0; k < pixels; k++) {
        Vec here[E];
        for (int e = 0; e < E; e++) here[e] = *reinterpret_cast<const Vec*>(x[e] + k * step);
        for (int r = 0; r < R; r++) {
            const Vec factor = *reinterpret_cast<const Vec*>(g[r] + k * WIDTH);
            for (int e = 0; e < E; e++) acc[r][e] += factor * here[e];
        }
    }
    for (int r = 0; r < R; r++)
        for (int e = 0; e < E; e++) *sums[r * E + e] = acc[r][e];
}

// The gradients asked for: by output channel (four together where all are asked for) and tap.
struct Gradients {
    struct Item {
        int64_t offset, place;
    };
    bool four;
    std::vector<Item> items;
    std::vector<size_t> start;

    Gradients(const Plan& p, const uint8_t* live) {
        const int64_t fan = fan_in(p), outputs = p.outputs / p.groups;
        four = live == nullptr && outputs % 4 == 0;
        for (int64_t o = 0; o < p.outputs; o += four ? 4 : 1) {
            start.push_back(items.size());
            const auto where = offsets(p, o / outputs);
            for (int64_t k = 0; k < fan; k++)
                if (live == nullptr || live[o * fan + k]) items.push_back({where[k], o * fan + k});
        }
        start.push_back(items.size());
    }
};

template <int R, int E>
void weight_items(const Plan& p, const Gradients::Item* item, const double* g, int64_t map, const double* origin,
                  Vec* sums) {
    const double *rows[R], *sources[E];
    Vec* places[R * E];
    for (int r = 0; r < R; r++) {
        rows[r] = g + r * map * WIDTH;
        for (int e = 0; e < E; e++) places[r * E + e] = sums + item[e].place + r * fan_in(p);
    }
    for (int e = 0; e < E; e++) sources[e] = origin + item[e].offset * WIDTH;
    weight_row<R, E>(rows, sources, p.out_width, p.stride_x * WIDTH, places);
}

void weight_chunk(const Plan& p, const Gradients& wanted, const double* source, const double* g, int64_t first,
                  double* buffer, double* gradient, Vec* sums) {
    const int64_t map = p.out_height * p.out_width, count = std::min<int64_t>(WIDTH, p.images - first);
    fill<1>(p, source, first, buffer);
    std::memset(gradient, 0, p.outputs * map * WIDTH * sizeof(double));
    for (int64_t k = 0; k < p.outputs * map; k++)
        std::memcpy(gradient + k * WIDTH, g + k * p.images + first, count * sizeof(double));
    for (int64_t y = 0; y < p.out_height; y++) {
        const double* origin = buffer + y * p.stride_y * p.buffer_width * WIDTH;
        for (size_t k = 0; k + 1 < wanted.start.size(); k++) {
            const Gradients::Item *item = wanted.items.data() + wanted.start[k],
                                  *end = wanted.items.data() + wanted.start[k + 1];
            const double* row = gradient + ((wanted.four ? 4 : 1) * k * map + y * p.out_width) * WIDTH;
            if (wanted.four) {
                for (; item + 4 <= end; item += 4) weight_items<4, 4>(p, item, row, map, origin, sums);
                for (; item < end; item++) weight_items<4, 1>(p, item, row, map, origin, sums);
            } else {
                for (; item + 8 <= end; item += 8) weight_items<1, 8>(p, item, row, map, origin, sums);
                for (; item + 4 <= end; item += 4) weight_items<1, 4>(p, item, row, map, origin, sums);
                for (; item < end; item++) weight_items<1, 1>(p, item, row, map, origin, sums);
            }
        }
    }
}

// Runs work(thread, task) for tasks 0..count-1 on so many threads.
template <class Work>
void share(int64_t threads, int64_t count, Work work) {
    std::atomic<int64_t> next{0};
    auto loop = [&](int64_t thread) {
        for (int64_t task; (task = next++) < count;) work(thread, task);
    };
    std::vector<std::thread> helpers;
    for (int64_t t = 1; t < std::min(threads, count); t++) helpers.emplace_back(loop, t);
    loop(0);
    for (auto& helper : helpers) helper.join();
}

template <int V>
void convolve(const Plan& p, const double* source, const double* weights, const double* bias, const Rounding& r,
              double* out, int64_t threads) {
    const Lists lists(p, weights);
    const int64_t size = p.channels * p.buffer_height * p.buffer_width * V * WIDTH;
    const int64_t chunks = (p.images + V * WIDTH - 1) / (V * WIDTH);
    std::vector<Buffer> buffers(std::max<int64_t>(1, std::min(threads, chunks)));
    share(threads, chunks, [&](int64_t thread, int64_t chunk) {
        double* mine = buffers[thread].get(size);
        const int64_t first = chunk * V * WIDTH, left = p.images - first;
        if (left <= WIDTH) convolve_chunk<1>(p, lists, source, bias, r, out, first, mine);
        else convolve_chunk<V>(p, lists, source, bias, r, out, first, mine);
    });
}

}  // namespace

extern "C" {

// Keep freed memory, however large the pieces: maps come and go each step, and fresh pages cost as much as the sums.
void lanes_keep_memory() {
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

// FP and BP: out [output][y][x][image] from source [channel][y][x][image] and weights [output][channel][ky][kx].
void lanes_convolve(const Plan* plan, const double* source, const double* weights, const double* bias,
                    const Rounding* rounding, double* out, int64_t threads) {
    convolve<4>(*plan, source, weights, bias, *rounding, out, threads);
}

// WU: sums [output][channel][ky][kx] over all pixels and images of source times g [output][y][x][image]; where live
// is given, those of dead weights stay zero.
void lanes_weight_gradient(const Plan* plan, const double* source, const double* g, const uint8_t* live, double* sums,
                           int64_t threads) {
    const Plan& p = *plan;
    const Gradients wanted(p, live);
    const int64_t places = p.outputs * fan_in(p), chunks = (p.images + WIDTH - 1) / WIDTH;
    const int64_t workers = std::max<int64_t>(1, std::min(threads, chunks));
    std::vector<Buffer> sources(workers), gradients(workers), totals(workers);
    std::vector<char> used(workers);
    share(threads, chunks, [&](int64_t thread, int64_t chunk) {
        double* total = totals[thread].get(places * WIDTH);
        if (!used[thread]) std::memset(total, 0, places * WIDTH * sizeof(double));
        used[thread] = 1;
        weight_chunk(p, wanted, source, g, chunk * WIDTH,
                     sources[thread].get(p.channels * p.buffer_height * p.buffer_width * WIDTH),
                     gradients[thread].get(p.outputs * p.out_height * p.out_width * WIDTH),
                     reinterpret_cast<Vec*>(total));
    });
    std::fill(sums, sums + places, 0.0);
    for (int64_t t = 0; t < workers; t++)
        if (used[t])
            for (int64_t k = 0; k < places; k++)
                for (int l = 0; l < WIDTH; l++) sums[k] += totals[t].get(0)[k * WIDTH + l];
}

// Max pooling of unpadded maps, all as [channel][y][x][image].
void lanes_max_pool(const Plan* plan, const double* source, double* out) {
    const Plan& p = *plan;
    for (int64_t c = 0; c < p.channels; c++)
        for (int64_t y = 0; y < p.out_height; y++)
            for (int64_t x = 0; x < p.out_width; x++) {
                double* best = out + ((c * p.out_height + y) * p.out_width + x) * p.images;
                for (int64_t k = 0; k < p.kernel_y * p.kernel_x; k++) {
                    const double* here = source + ((c * p.height + y * p.stride_y + k / p.kernel_x) * p.width
                                                   + x * p.stride_x + k % p.kernel_x) * p.images;
                    if (k == 0) std::memcpy(best, here, p.images * sizeof(double));
                    else for (int64_t n = 0; n < p.images; n++) best[n] = here[n] > best[n] ? here[n] : best[n];
                }
            }
}

// Its gradient: each word of g goes to the first largest word of its window, and adds to what others put there.
void lanes_max_pool_gradient(const Plan* plan, const double* g, const double* source, double* out) {
    const Plan& p = *plan;
    std::vector<double> best(p.images), left(p.images);
    std::memset(out, 0, p.channels * p.height * p.width * p.images * sizeof(double));
    for (int64_t c = 0; c < p.channels; c++)
        for (int64_t y = 0; y < p.out_height; y++)
            for (int64_t x = 0; x < p.out_width; x++) {
                auto place = [&](int64_t k) {
                    return ((c * p.height + y * p.stride_y + k / p.kernel_x) * p.width + x * p.stride_x
                            + k % p.kernel_x) * p.images;
                };
                const double* word = g + ((c * p.out_height + y) * p.out_width + x) * p.images;
                std::memcpy(best.data(), source + place(0), p.images * sizeof(double));
                for (int64_t k = 1; k < p.kernel_y * p.kernel_x; k++) {
                    const double* here = source + place(k);
                    for (int64_t n = 0; n < p.images; n++) best[n] = here[n] > best[n] ? here[n] : best[n];
                }
                std::memcpy(left.data(), word, p.images * sizeof(double));
                for (int64_t k = 0; k < p.kernel_y * p.kernel_x; k++) {
                    const double* here = source + place(k);
                    double* to = out + place(k);
                    for (int64_t n = 0; n < p.images; n++) {
                        const double given = here[n] == best[n] ? left[n] : 0.0;
                        to[n] += given;
                        left[n] -= given;
                    }
                }
            }
}

}  // extern "C"
