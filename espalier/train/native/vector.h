// Vectors of 16-bit words, one lane an image, and of the 32-bit sums of their products.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512BW__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int LANES = BYTES / 2;
constexpr int64_t LIMIT = INT32_MAX;
constexpr int64_t CARRIED = (1 << 16) - 1;  // the bits that a sum keeps when it is carried

typedef int16_t Words __attribute__((vector_size(BYTES)));
typedef int32_t Sums __attribute__((vector_size(BYTES)));  // half as many

inline Words load(const int16_t* p) {
    Words v;
    std::memcpy(&v, p, BYTES);
    return v;
}

// sums + a[0]*b[0] + a[1]*b[1] in each place, for neighbouring words
inline Sums dot(Sums sums, Words a, Words b) {
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

// Moves all but the last 16 bits of a sum to the upper one.
inline void carry(Sums& lower, Sums& upper) {
    upper += lower >> 16;
    lower &= static_cast<int32_t>(CARRIED);
}

// Words of a and b in turn, from the lower or upper half of each 16 bytes; pack undoes it.
template <bool UPPER>
Words interleave(Words a, Words b) {
#if defined(__AVX512BW__)
    const __m512i x = (__m512i)a, y = (__m512i)b;
    return (Words)(UPPER ? _mm512_unpackhi_epi16(x, y) : _mm512_unpacklo_epi16(x, y));
#elif defined(__AVX2__)
    const __m256i x = (__m256i)a, y = (__m256i)b;
    return (Words)(UPPER ? _mm256_unpackhi_epi16(x, y) : _mm256_unpacklo_epi16(x, y));
#else
    Words v;
    for (int k = 0; k < 4; k++) v[2 * k] = a[4 * UPPER + k], v[2 * k + 1] = b[4 * UPPER + k];
    return v;
#endif
}

// Sums of the lower and upper halves as words in the order of the lanes, saturated.
inline Words pack(Sums low, Sums high) {
#if defined(__AVX512BW__)
    return (Words)_mm512_packs_epi32((__m512i)low, (__m512i)high);
#elif defined(__AVX2__)
    return (Words)_mm256_packs_epi32((__m256i)low, (__m256i)high);
#else
    Words v;
    for (int k = 0; k < 4; k++) {
        v[k] = std::clamp<int32_t>(low[k], INT16_MIN, INT16_MAX);
        v[4 + k] = std::clamp<int32_t>(high[k], INT16_MIN, INT16_MAX);
    }
    return v;
#endif
}

inline Words limit(Words v, int16_t low, int16_t high) {
    const Words lowest = Words{} + low, highest = Words{} + high;
    v = v < lowest ? lowest : v;
    return v > highest ? highest : v;
}

// All ones where a mask's word is in 1..high.
inline Words passes(Words mask, int16_t high) { return (mask > 0) & (mask <= Words{} + high); }

inline int64_t total(Sums v) {
    int64_t sum = 0;
    for (int k = 0; k < LANES / 2; k++) sum += v[k];
    return sum;
}

// The sums of all places of each of four vectors, which 32 bits hold.
inline void totals(const Sums* v, int32_t* found) {
#if defined(__AVX512BW__)
    auto pairs = [](Sums a, Sums b) {
        return _mm512_add_epi32(_mm512_unpacklo_epi32((__m512i)a, (__m512i)b),
                                _mm512_unpackhi_epi32((__m512i)a, (__m512i)b));
    };
    const __m512i ab = pairs(v[0], v[1]), cd = pairs(v[2], v[3]);
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    _mm_storeu_si128((__m128i*)found, _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
#elif defined(__AVX2__)
    const __m256i ab = _mm256_hadd_epi32((__m256i)v[0], (__m256i)v[1]);
    const __m256i cd = _mm256_hadd_epi32((__m256i)v[2], (__m256i)v[3]), all = _mm256_hadd_epi32(ab, cd);
    _mm_storeu_si128((__m128i*)found, _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
#else
    for (int k = 0; k < 4; k++) found[k] = static_cast<int32_t>(total(v[k]));
#endif
}

inline void store(int16_t* p, Words v) { std::memcpy(p, &v, BYTES); }

// What raises ``most`` to the magnitude of each word; one less than that of a negative word.
inline Words larger(Words most, Words words) {
    const Words magnitude = words ^ (words >> 15);
    return magnitude > most ? magnitude : most;
}

// A bound on the magnitudes that ``most`` has seen.
inline int64_t bound(Words most) {
    int64_t found = 0;
    for (int k = 0; k < LANES; k++) found = std::max<int64_t>(found, most[k] + 1);
    return found;
}
