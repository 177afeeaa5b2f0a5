// Exact convolution of 16-bit words by the dataflow of the engine: a weight is broadcast over lanes of images, zero
// weights cost nothing, and WU computes only the gradients asked for.
//
// A map lies in memory as [channel][y][x][image]. A task is a chunk of LANES images: its map is copied with its padding
// into a buffer [channel][y][x][LANES], zero where there is no image. Products are added in 32 bits, by the processor's
// pairwise multiply-add. That is exact because each sum is bounded first, from the weights and the largest word there
// is: where 32 bits might not hold it, one factor is split into a coarse and a fine byte, with a sum for each; where
// even those might overflow, sums are taken in 64 bits.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>
#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512BW__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int LANES = BYTES / 2;
constexpr int64_t LIMIT = INT32_MAX;

typedef int16_t Words __attribute__((vector_size(BYTES)));
typedef int32_t Sums __attribute__((vector_size(BYTES)));  // half as many

Words load(const int16_t* p) {
    Words v;
    std::memcpy(&v, p, BYTES);
    return v;
}

// sums + a[0]*b[0] + a[1]*b[1] in each place, for neighbouring words
Sums dot(Sums sums, Words a, Words b) {
#if defined(__AVX512VNNI__)
    return (Sums)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return sums + (Sums)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return sums + (Sums)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return sums + (Sums)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    for (int k = 0; k < LANES / 2; k++) sums[k] += a[2 * k] * b[2 * k] + a[2 * k + 1] * b[2 * k + 1];
    return sums;
#endif
}

// Words of a and b in turn, from the lower or upper half of each 16 bytes; pack undoes it.
Words interleave_low(Words a, Words b) {
#if defined(__AVX512BW__)
    return (Words)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Words)_mm256_unpacklo_epi16((__m256i)a, (__m256i)b);
#else
    Words v;
    for (int k = 0; k < 4; k++) v[2 * k] = a[k], v[2 * k + 1] = b[k];
    return v;
#endif
}

Words interleave_high(Words a, Words b) {
#if defined(__AVX512BW__)
    return (Words)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Words)_mm256_unpackhi_epi16((__m256i)a, (__m256i)b);
#else
    Words v;
    for (int k = 0; k < 4; k++) v[2 * k] = a[4 + k], v[2 * k + 1] = b[4 + k];
    return v;
#endif
}

// Sums of the lower and upper halves, all within 16 bits, as words in the order of the lanes.
Words pack(Sums low, Sums high) {
#if defined(__AVX512BW__)
    return (Words)_mm512_packs_epi32((__m512i)low, (__m512i)high);
#elif defined(__AVX2__)
    return (Words)_mm256_packs_epi32((__m256i)low, (__m256i)high);
#else
    Words v;
    for (int k = 0; k < 4; k++) v[k] = low[k], v[4 + k] = high[k];
    return v;
#endif
}

Sums clamp(Sums v, int32_t low, int32_t high) {
    const Sums lowest = Sums{} + low, highest = Sums{} + high;
    v = v < lowest ? lowest : v;
    return v > highest ? highest : v;
}

int64_t total(Sums v) {
    int64_t sum = 0;
    for (int k = 0; k < LANES / 2; k++) sum += v[k];
    return sum;
}

// Memory borrowed from a store that lasts, since fresh memory costs a page fault each 4 KiB.
template <class T>
class Buffer {
    struct Aligned {
        void operator()(T* p) const { ::operator delete[](p, std::align_val_t(64)); }
    };
    struct Piece {
        size_t size = 0;
        std::unique_ptr<T[], Aligned> words;
    };
    static inline std::mutex lock;
    static inline std::vector<Piece> store;
    Piece piece;

public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;

    T* get(size_t size) {
        if (piece.words && piece.size >= size) return piece.words.get();
        {
            std::lock_guard<std::mutex> guard(lock);
            auto fits = std::find_if(store.begin(), store.end(), [&](const Piece& p) { return p.size >= size; });
            if (fits == store.end() && !store.empty()) fits = store.end() - 1;
            if (fits != store.end()) {
                piece = std::move(*fits);
                store.erase(fits);
            }
        }
        if (!piece.words || piece.size < size) {
            piece.size = std::max<size_t>(size, 1);
            piece.words.reset(static_cast<T*>(::operator new[](piece.size * sizeof(T), std::align_val_t(64))));
        }
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

// Round half up to the right by ``shift`` (to the left if negative; by 63: to zero), then clamp into words.
struct Rounding {
    int64_t shift, low, high;

    int16_t operator()(int64_t sum) const {
        if (shift >= 63) return std::clamp<int64_t>(0, low, high);
        if (shift > 0) return std::clamp((sum + (int64_t(1) << (shift - 1))) >> shift, low, high);
        if (sum == 0 || -shift > 62) return std::clamp<int64_t>(sum == 0 ? 0 : sum > 0 ? high : low, low, high);
        const int64_t most = INT64_MAX >> -shift;  // beyond, the word is clamped anyway
        return std::clamp(std::clamp(sum, -most, most) << -shift, low, high);
    }
};

namespace {

int64_t fan_in(const Plan& p) { return p.channels / p.groups * p.kernel_y * p.kernel_x; }

// Where in the buffer, in words from the window's origin, each of an output channel's taps lies.
std::vector<int32_t> offsets(const Plan& p, int64_t group) {
    std::vector<int32_t> found;
    const int64_t channels = p.channels / p.groups;
    for (int64_t c = group * channels; c < (group + 1) * channels; c++)
        for (int64_t ky = 0; ky < p.kernel_y; ky++)
            for (int64_t kx = 0; kx < p.kernel_x; kx++)
                found.push_back(LANES * ((c * p.buffer_height + ky * p.dilation_y) * p.buffer_width
                                         + kx * p.dilation_x));
    return found;
}

int32_t pair_of(int64_t first, int64_t second) {
    return static_cast<int32_t>(static_cast<uint32_t>(second) << 16 | (static_cast<uint32_t>(first) & 0xffff));
}

int64_t fine_byte(int64_t w) { return static_cast<int8_t>(w); }
int64_t coarse_byte(int64_t w) { return (w - fine_byte(w)) / 256; }

// Two taps of R output channels: weights in pairs, whole and split.
template <int R>
struct Pair {
    int32_t first, second;
    int32_t whole[R], coarse[R], fine[R];
};

// Lists of the taps that are not zero, by block of R output channels.
template <int R>
struct Lists {
    std::vector<Pair<R>> pairs;
    std::vector<size_t> start;

    Lists(const Plan& p, const int16_t* weights) {
        const int64_t fan = fan_in(p), outputs = p.outputs / p.groups;
        std::vector<int32_t> where;
        for (int64_t o = 0; o < p.outputs; o += R) {
            start.push_back(pairs.size());
            if (o % outputs == 0) where = offsets(p, o / outputs);
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

private:
    void put(const int16_t* w, int64_t fan, const std::vector<int32_t>& where, int64_t first, int64_t second) {
        Pair<R> pair{where[first], where[second < 0 ? first : second], {}, {}, {}};
        for (int r = 0; r < R; r++) {
            const int64_t a = w[r * fan + first], b = second < 0 ? 0 : w[r * fan + second];
            pair.whole[r] = pair_of(a, b);
            pair.coarse[r] = pair_of(coarse_byte(a), coarse_byte(b));
            pair.fine[r] = pair_of(fine_byte(a), fine_byte(b));
        }
        pairs.push_back(pair);
    }
};

// The largest sums of magnitudes of an output channel's weights, and of their bytes.
struct Bounds {
    int64_t whole = 0, coarse = 0, fine = 0, live = 0;

    Bounds(const Plan& p, const int16_t* weights) {
        const int64_t fan = fan_in(p);
        for (int64_t o = 0; o < p.outputs; o++) {
            int64_t a = 0, b = 0, c = 0;
            for (int64_t k = o * fan; k < (o + 1) * fan; k++) {
                a += std::abs(int64_t(weights[k]));
                b += std::abs(coarse_byte(weights[k]));
                c += std::abs(fine_byte(weights[k]));
                live += weights[k] != 0;
            }
            whole = std::max(whole, a), coarse = std::max(coarse, b), fine = std::max(fine, c);
        }
    }
};

// Copies a chunk's map into the buffer; returns a bound on its words' magnitudes.
int64_t fill(const Plan& p, const int16_t* source, int64_t first, int16_t* buffer) {
    const int64_t count = std::min<int64_t>(LANES, p.images - first);
    Words most{};
    for (int64_t c = 0; c < p.channels; c++)
        for (int64_t by = 0; by < p.buffer_height; by++) {
            int16_t* row = buffer + (c * p.buffer_height + by) * p.buffer_width * LANES;
            const int64_t y = (by - p.top) / p.spread_y;
            if (by < p.top || (by - p.top) % p.spread_y || y >= p.height) {
                std::memset(row, 0, p.buffer_width * BYTES);
                continue;
            }
            const int64_t end = p.left + (p.width - 1) * p.spread_x + 1;  // buffer columns left..end-1 have a source
            if (p.spread_x > 1) std::memset(row, 0, p.buffer_width * BYTES);
            else {
                if (p.left > 0) std::memset(row, 0, std::min(p.left, p.buffer_width) * BYTES);
                if (end < p.buffer_width)
                    std::memset(row + std::max<int64_t>(end, 0) * LANES, 0,
                                (p.buffer_width - std::max<int64_t>(end, 0)) * BYTES);
            }
            const int16_t* from = source + (c * p.height + y) * p.width * p.images + first;
            for (int64_t x = 0; x < p.width; x++, from += p.images) {
                const int64_t bx = p.left + x * p.spread_x;
                if (bx < 0 || bx >= p.buffer_width) continue;
                Words words{};
                if (count == LANES) words = load(from);
                else std::memcpy(&words, from, count * sizeof(int16_t));
                std::memcpy(row + bx * LANES, &words, BYTES);
                const Words magnitude = words ^ (words >> 15);  // one less than that of a negative word
                most = magnitude > most ? magnitude : most;
            }
        }
    int64_t bound = 0;
    for (int k = 0; k < LANES; k++) bound = std::max<int64_t>(bound, most[k] + 1);
    return bound;
}

Words broadcast(int32_t pair) { return (Words)(Sums{} + pair); }

enum class Way { WHOLE, SPLIT, WIDE };

// Everything that tiles of a chunk share.
struct Job {
    const Plan& p;
    const int64_t* bias;
    const Rounding& rounding;
    int16_t* out;
    int64_t count;
};

void put(const Job& job, int64_t o, int64_t pixel, Words words) {
    int16_t* to = job.out + (o * job.p.out_height * job.p.out_width + pixel) * job.p.images;
    if (job.count == LANES) std::memcpy(to, &words, BYTES);
    else std::memcpy(to, &words, job.count * sizeof(int16_t));
}

// Words of sums of 32 bits; the shift is 0..30 and what is added for rounding is within the bound.
Words rounded(const Rounding& r, Sums low, Sums high) {
    const Sums half = Sums{} + static_cast<int32_t>((int64_t(1) << r.shift) >> 1);
    const int shift = static_cast<int>(r.shift);
    return pack(clamp((low + half) >> shift, r.low, r.high), clamp((high + half) >> shift, r.low, r.high));
}

// Words of coarse * 256 + fine + bias.
Words rounded(const Rounding& r, int64_t bias, const Sums* coarse, const Sums* fine) {
    Sums words[2];
    for (int h = 0; h < 2; h++)
        for (int k = 0; k < LANES / 2; k++)
            words[h][k] = r(int64_t(coarse[h][k]) * 256 + fine[h][k] + bias);
    return pack(words[0], words[1]);
}

#if defined(__AVX512F__)
// The same in double, where all is exact: a sum has at most 41 bits, the shift is -10..50, and 0.5 is near enough.
Words rounded_by_double(const Rounding& r, int64_t bias, const Sums* coarse, const Sums* fine) {
    typedef double Reals __attribute__((vector_size(64)));
    const Reals scale = Reals{} + std::ldexp(1.0, -static_cast<int>(r.shift)), half = Reals{} + 0.5;
    const __m512d start = _mm512_set1_pd(static_cast<double>(bias)), factor = _mm512_set1_pd(256.0);
    const __m512d low = _mm512_set1_pd(static_cast<double>(r.low)), high = _mm512_set1_pd(static_cast<double>(r.high));
    __m512i words[2];
    for (int h = 0; h < 2; h++) {
        __m256i part[2];
        for (int q = 0; q < 2; q++) {
            const __m512i both[2] = {(__m512i)coarse[h], (__m512i)fine[h]};
            const __m256i c = q ? _mm512_extracti64x4_epi64(both[0], 1) : _mm512_castsi512_si256(both[0]);
            const __m256i f = q ? _mm512_extracti64x4_epi64(both[1], 1) : _mm512_castsi512_si256(both[1]);
            __m512d sum = _mm512_fmadd_pd(_mm512_cvtepi32_pd(c), factor, _mm512_add_pd(_mm512_cvtepi32_pd(f), start));
            sum = _mm512_floor_pd(_mm512_fmadd_pd(sum, (__m512d)scale, (__m512d)half));
            part[q] = _mm512_cvtpd_epi32(_mm512_min_pd(_mm512_max_pd(sum, low), high));
        }
        words[h] = _mm512_inserti64x4(_mm512_castsi256_si512(part[0]), part[1], 1);
    }
    return pack((Sums)words[0], (Sums)words[1]);
}
#endif

// R output channels from o on at P neighbouring pixels from ``pixel`` on; sums in one 32-bit place each.
template <int R, int P>
void whole_tile(const Job& job, const Pair<R>* pair, const Pair<R>* end, const int16_t* origin, int64_t o,
                int64_t pixel) {
    const int64_t step = job.p.stride_x * LANES;
    Sums sums[P][R][2];
    for (auto& at : sums)
        for (int r = 0; r < R; r++)
            at[r][0] = at[r][1] = Sums{} + static_cast<int32_t>(job.bias[o + r]);
    for (; pair < end; pair++) {
        Words weights[R];
        for (int r = 0; r < R; r++) weights[r] = broadcast(pair->whole[r]);
        for (int q = 0; q < P; q++) {
            const Words a = load(origin + pair->first + q * step), b = load(origin + pair->second + q * step);
            const Words low = interleave_low(a, b), high = interleave_high(a, b);
            for (int r = 0; r < R; r++) {
                sums[q][r][0] = dot(sums[q][r][0], low, weights[r]);
                sums[q][r][1] = dot(sums[q][r][1], high, weights[r]);
            }
        }
    }
    for (int q = 0; q < P; q++)
        for (int r = 0; r < R; r++) put(job, o + r, pixel + q, rounded(job.rounding, sums[q][r][0], sums[q][r][1]));
}

// The same with a sum for the coarse and one for the fine bytes of the weights.
template <int R, int P>
void split_tile(const Job& job, const Pair<R>* pair, const Pair<R>* end, const int16_t* origin, int64_t o,
                int64_t pixel) {
    const int64_t step = job.p.stride_x * LANES;
    Sums coarse[P][R][2] = {}, fine[P][R][2] = {};
    for (; pair < end; pair++)
        for (int q = 0; q < P; q++) {
            const Words a = load(origin + pair->first + q * step), b = load(origin + pair->second + q * step);
            const Words low = interleave_low(a, b), high = interleave_high(a, b);
            for (int r = 0; r < R; r++) {
                const Words c = broadcast(pair->coarse[r]), f = broadcast(pair->fine[r]);
                coarse[q][r][0] = dot(coarse[q][r][0], low, c);
                coarse[q][r][1] = dot(coarse[q][r][1], high, c);
                fine[q][r][0] = dot(fine[q][r][0], low, f);
                fine[q][r][1] = dot(fine[q][r][1], high, f);
            }
        }
    for (int q = 0; q < P; q++)
        for (int r = 0; r < R; r++) {
#if defined(__AVX512F__)
            if (job.rounding.shift >= -10 && job.rounding.shift <= 50 && std::abs(job.bias[o + r]) < int64_t(1) << 40) {
                put(job, o + r, pixel + q, rounded_by_double(job.rounding, job.bias[o + r], coarse[q][r], fine[q][r]));
                continue;
            }
#endif
            put(job, o + r, pixel + q, rounded(job.rounding, job.bias[o + r], coarse[q][r], fine[q][r]));
        }
}

// One pixel, for sums that may need 64 bits.
template <int R>
void wide_tile(const Job& job, const Pair<R>* pair, const Pair<R>* end, const int16_t* origin, int64_t o,
               int64_t pixel) {
    for (int r = 0; r < R; r++) {
        int64_t sums[LANES];
        for (auto& sum : sums) sum = job.bias[o + r];
        for (const Pair<R>* k = pair; k < end; k++) {
            const int64_t a = static_cast<int16_t>(k->whole[r] & 0xffff), b = k->whole[r] >> 16;
            for (int l = 0; l < LANES; l++)
                sums[l] += a * origin[k->first + l] + b * origin[k->second + l];
        }
        Words words;
        for (int l = 0; l < LANES; l++) words[l] = job.rounding(sums[l]);
        put(job, o + r, pixel, words);
    }
}

template <int R, int P>
void tile(const Job& job, Way way, const Pair<R>* pair, const Pair<R>* end, const int16_t* origin, int64_t o,
          int64_t pixel) {
    switch (way) {
        case Way::WHOLE: return whole_tile<R, P>(job, pair, end, origin, o, pixel);
        case Way::SPLIT:
            for (int q = 0; q < P; q += (P > 1 ? 2 : 1))
                split_tile<R, (P > 1 ? 2 : 1)>(job, pair, end, origin + q * job.p.stride_x * LANES, o, pixel + q);
            return;
        case Way::WIDE:
            for (int q = 0; q < P; q++)
                wide_tile<R>(job, pair, end, origin + q * job.p.stride_x * LANES, o, pixel + q);
    }
}

template <int R>
void convolve_chunk(const Job& job, Way way, const Lists<R>& lists, const int16_t* buffer) {
    constexpr int P = R == 1 ? 4 : 2;  // as many sums as registers hold
    const Plan& p = job.p;
    for (int64_t y = 0; y < p.out_height; y++)
        for (int64_t x = 0; x < p.out_width;) {
            const int64_t pixels = p.out_width - x >= P ? P : 1;
            const int16_t* origin = buffer + (y * p.stride_y * p.buffer_width + x * p.stride_x) * LANES;
            for (size_t k = 0; k + 1 < lists.start.size(); k++) {
                const Pair<R>*pair = lists.pairs.data() + lists.start[k], *end = lists.pairs.data() + lists.start[k + 1];
                if (pixels == P) tile<R, P>(job, way, pair, end, origin, R * k, y * p.out_width + x);
                else tile<R, 1>(job, way, pair, end, origin, R * k, y * p.out_width + x);
            }
            x += pixels;
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

template <int R>
void convolve(const Plan& p, const int16_t* source, const int16_t* weights, const int64_t* bias, const Rounding& r,
              int16_t* out, const Bounds& bounds, int64_t threads) {
    const Lists<R> lists(p, weights);
    const int64_t chunks = (p.images + LANES - 1) / LANES;
    int64_t most_bias = 0;
    for (int64_t o = 0; o < p.outputs; o++) most_bias = std::max(most_bias, std::abs(bias[o]));
    std::vector<Buffer<int16_t>> buffers(std::max<int64_t>(1, std::min(threads, chunks)));
    share(threads, chunks, [&](int64_t thread, int64_t chunk) {
        int16_t* buffer = buffers[thread].get(p.channels * p.buffer_height * p.buffer_width * LANES);
        const int64_t first = chunk * LANES, most = fill(p, source, first, buffer);
        const bool shifts = r.shift >= 0 && r.shift <= 30;
        const int64_t half = shifts ? (int64_t(1) << r.shift) >> 1 : 0;
        const Way way = shifts && most_bias < LIMIT && most * bounds.whole + most_bias + half <= LIMIT ? Way::WHOLE
                        : most * std::max(bounds.coarse, bounds.fine) <= LIMIT && std::abs(r.shift) < 63
                                && most_bias < int64_t(1) << 53 ? Way::SPLIT : Way::WIDE;
        convolve_chunk<R>({p, bias, r, out + first, std::min<int64_t>(LANES, p.images - first)}, way, lists, buffer);
    });
}

// The gradients asked for: by block of R output channels and tap.
struct Gradients {
    struct Item {
        int64_t offset, place;
    };
    int64_t rows;  // output channels worked on together
    std::vector<Item> items;
    std::vector<size_t> start;

    Gradients(const Plan& p, const uint8_t* live) {
        const int64_t fan = fan_in(p), outputs = p.outputs / p.groups;
        rows = live == nullptr && outputs % 4 == 0 ? 4 : 1;
        std::vector<int32_t> where;
        for (int64_t o = 0; o < p.outputs; o += rows) {
            start.push_back(items.size());
            if (o % outputs == 0) where = offsets(p, o / outputs);
            for (int64_t k = 0; k < fan; k++)
                if (live == nullptr || live[o * fan + k]) items.push_back({where[k], o * fan + k});
        }
        start.push_back(items.size());
    }
};

// A rectangle of the output map, and steps in words from row to row and from pixel to pixel.
struct Patch {
    int64_t y, x, rows, columns;
    int64_t source_row, source_step, plane_row;
};

// Adds to E gradients for each of R planes of output gradients the sums over a patch.
template <int R, int E>
void weight_items(const Patch& patch, const Gradients::Item* item, const int16_t* origin, const int16_t* const* planes,
                  int64_t* const* targets) {
    Sums sums[R][E] = {};
    for (int64_t y = 0; y < patch.rows; y++) {
        const int16_t* x = origin + y * patch.source_row;
        for (int64_t k = 0; k < patch.columns; k++, x += patch.source_step) {
            Words here[E];
            for (int e = 0; e < E; e++) here[e] = load(x + item[e].offset);
            for (int r = 0; r < R; r++) {
                const Words g = load(planes[r] + y * patch.plane_row + k * LANES);
                for (int e = 0; e < E; e++) sums[r][e] = dot(sums[r][e], here[e], g);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int e = 0; e < E; e++) targets[r][item[e].place] += total(sums[r][e]);
}

template <int R>
void weight_list(const Patch& patch, const Gradients::Item* item, const Gradients::Item* end, const int16_t* origin,
                 const int16_t* const* planes, int64_t* const* targets) {
    constexpr int E = R == 4 ? 4 : 8;
    for (; item + E <= end; item += E) weight_items<R, E>(patch, item, origin, planes, targets);
    for (; item < end; item++) weight_items<R, 1>(patch, item, origin, planes, targets);
}

// Output gradients of a chunk as [output][pixel][LANES]; returns a bound on their magnitudes.
int64_t fill_planes(const Plan& p, const int16_t* g, int64_t first, int16_t* plane) {
    Plan whole = p;
    whole.channels = p.outputs, whole.height = p.out_height, whole.width = p.out_width;
    whole.top = whole.left = 0, whole.spread_y = whole.spread_x = 1;
    whole.buffer_height = p.out_height, whole.buffer_width = p.out_width;
    return fill(whole, g, first, plane);
}

// The memory of a thread: a chunk's source, its output gradients, their coarse and fine bytes, and sums of both.
struct Store {
    Buffer<int16_t> source, plane, coarse, fine;
    std::vector<int64_t> sums, coarse_sums;
};

void weight_chunk(const Plan& p, const Gradients& wanted, const int16_t* source, const int16_t* g, int64_t first,
                  Store& store) {
    const int64_t map = p.out_height * p.out_width, fan = fan_in(p), size = p.outputs * map * LANES;
    int16_t* buffer = store.source.get(p.channels * p.buffer_height * p.buffer_width * LANES);
    int16_t* plane = store.plane.get(size);
    const int64_t most = std::max<int64_t>(1, fill(p, source, first, buffer));
    const int64_t most_gradient = std::max<int64_t>(1, fill_planes(p, g, first, plane));
    int64_t pixels = LIMIT / (2 * most * most_gradient);  // that can be added up in 32 bits
    const bool split = pixels < std::min<int64_t>(map, 32);
    int16_t *coarse = plane, *fine = plane;
    if (split) {
        coarse = store.coarse.get(size), fine = store.fine.get(size);
        for (int64_t k = 0; k < size; k++) {
            fine[k] = static_cast<int8_t>(plane[k]);
            coarse[k] = (plane[k] - fine[k]) / 256;
        }
        pixels = LIMIT / (2 * most * 128);
    }
    const int64_t columns = std::min(p.out_width, pixels);
    const int64_t most_rows = std::max<int64_t>(1, std::min<int64_t>(pixels, 128) / columns);
    const int64_t source_row = p.stride_y * p.buffer_width * LANES, step = p.stride_x * LANES;
    for (int64_t y = 0; y < p.out_height; y += most_rows)
        for (int64_t x = 0; x < p.out_width; x += columns) {
            const Patch patch{y, x, std::min(most_rows, p.out_height - y), std::min(columns, p.out_width - x),
                              source_row, step, p.out_width * LANES};
            const int16_t* origin = buffer + y * source_row + x * step;
            for (size_t k = 0; k + 1 < wanted.start.size(); k++) {
                const Gradients::Item *item = wanted.items.data() + wanted.start[k],
                                      *end = wanted.items.data() + wanted.start[k + 1];
                const int64_t o = wanted.rows * k;
                const int16_t *planes[4], *coarse_planes[4];
                int64_t *targets[4], *coarse_targets[4];
                for (int64_t r = 0; r < wanted.rows; r++) {
                    const int64_t at = ((o + r) * map + y * p.out_width + x) * LANES;
                    planes[r] = fine + at, coarse_planes[r] = coarse + at;
                    targets[r] = store.sums.data() + r * fan, coarse_targets[r] = store.coarse_sums.data() + r * fan;
                }
                if (wanted.rows == 4) {
                    weight_list<4>(patch, item, end, origin, planes, targets);
                    if (split) weight_list<4>(patch, item, end, origin, coarse_planes, coarse_targets);
                } else if (split) {
                    const int16_t* both[2] = {planes[0], coarse_planes[0]};
                    int64_t* sums[2] = {targets[0], coarse_targets[0]};
                    weight_list<2>(patch, item, end, origin, both, sums);
                } else {
                    weight_list<1>(patch, item, end, origin, planes, targets);
                }
            }
        }
}

}  // namespace

extern "C" {

// Keep freed memory, however large the pieces: maps come and go each step, and fresh pages cost as much as the sums.
void lanes_keep_memory() {
#if defined(__GLIBC__)
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

// FP and BP: out [output][y][x][image] from source [channel][y][x][image] and weights [output][channel][ky][kx].
void lanes_convolve(const Plan* plan, const int16_t* source, const int16_t* weights, const int64_t* bias,
                    const Rounding* rounding, int16_t* out, int64_t threads) {
    const Plan& p = *plan;
    const Bounds bounds(p, weights);
    const bool dense = p.outputs / p.groups % 4 == 0 && 3 * bounds.live > p.outputs * fan_in(p);
    if (dense) convolve<4>(p, source, weights, bias, *rounding, out, bounds, threads);
    else convolve<1>(p, source, weights, bias, *rounding, out, bounds, threads);
}

// WU: sums [output][channel][ky][kx] over all pixels and images of source times g [output][y][x][image]; where live
// is given, those of dead weights stay zero.
void lanes_weight_gradient(const Plan* plan, const int16_t* source, const int16_t* g, const uint8_t* live, double* sums,
                           int64_t threads) {
    const Plan& p = *plan;
    const Gradients wanted(p, live);
    const int64_t places = p.outputs * fan_in(p), chunks = (p.images + LANES - 1) / LANES;
    std::vector<Store> stores(std::max<int64_t>(1, std::min(threads, chunks)));
    share(threads, chunks, [&](int64_t thread, int64_t chunk) {
        Store& store = stores[thread];
        store.sums.resize(places), store.coarse_sums.resize(places);
        weight_chunk(p, wanted, source, g, chunk * LANES, store);
    });
    for (int64_t k = 0; k < places; k++) {
        int64_t sum = 0;
        for (const Store& store : stores)
            if (!store.sums.empty()) sum += store.sums[k] + 256 * store.coarse_sums[k];
        sums[k] = static_cast<double>(sum);
    }
}

// Max pooling of unpadded maps, all as [channel][y][x][image].
void lanes_max_pool(const Plan* plan, const int16_t* source, int16_t* out) {
    const Plan& p = *plan;
    for (int64_t c = 0; c < p.channels; c++)
        for (int64_t y = 0; y < p.out_height; y++)
            for (int64_t x = 0; x < p.out_width; x++) {
                int16_t* best = out + ((c * p.out_height + y) * p.out_width + x) * p.images;
                for (int64_t k = 0; k < p.kernel_y * p.kernel_x; k++) {
                    const int16_t* here = source + ((c * p.height + y * p.stride_y + k / p.kernel_x) * p.width
                                                    + x * p.stride_x + k % p.kernel_x) * p.images;
                    if (k == 0) std::memcpy(best, here, p.images * sizeof(int16_t));
                    else for (int64_t n = 0; n < p.images; n++) best[n] = here[n] > best[n] ? here[n] : best[n];
                }
            }
}

// Its gradient, for windows that do not overlap: each word of g goes to the first largest word of its window.
void lanes_max_pool_gradient(const Plan* plan, const int16_t* g, const int16_t* source, int16_t* out) {
    const Plan& p = *plan;
    std::vector<int16_t> best(p.images), left(p.images);
    std::memset(out, 0, p.channels * p.height * p.width * p.images * sizeof(int16_t));
    for (int64_t c = 0; c < p.channels; c++)
        for (int64_t y = 0; y < p.out_height; y++)
            for (int64_t x = 0; x < p.out_width; x++) {
                auto place = [&](int64_t k) {
                    return ((c * p.height + y * p.stride_y + k / p.kernel_x) * p.width + x * p.stride_x
                            + k % p.kernel_x) * p.images;
                };
                std::memcpy(best.data(), source + place(0), p.images * sizeof(int16_t));
                for (int64_t k = 1; k < p.kernel_y * p.kernel_x; k++) {
                    const int16_t* here = source + place(k);
                    for (int64_t n = 0; n < p.images; n++) best[n] = here[n] > best[n] ? here[n] : best[n];
                }
                std::memcpy(left.data(), g + ((c * p.out_height + y) * p.out_width + x) * p.images,
                            p.images * sizeof(int16_t));
                for (int64_t k = 0; k < p.kernel_y * p.kernel_x; k++) {
                    const int16_t* here = source + place(k);
                    int16_t* to = out + place(k);
                    for (int64_t n = 0; n < p.images; n++) {
                        const int16_t given = here[n] == best[n] ? left[n] : 0;
                        to[n] = given;
                        left[n] -= given;
                    }
                }
            }
}

}  // extern "C"
