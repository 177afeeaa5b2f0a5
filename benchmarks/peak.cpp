// The most 16-bit multiply-adds that one core makes: independent sums in registers, operands that never change.
#include "vector.h"

#if defined(__x86_64__)
#define VECTOR_REGISTER "+v"
#else
#define VECTOR_REGISTER "+w"
#endif

namespace {
constexpr int SUMS = 12;  // more than latency times width of the units
}

extern "C" int64_t multiply_adds(int64_t rounds, int32_t* out) {
    Words a, b;
    for (int k = 0; k < LANES; k++) a[k] = static_cast<int16_t>(out[k & 3]), b[k] = static_cast<int16_t>(out[k & 3] + k);
    Sums sums[SUMS] = {};
    for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 16
        for (Sums& sum : sums) {  // both loops unrolled, or sums would lie in memory
            sum = dot(sum, a, b);
            asm volatile("" : VECTOR_REGISTER(sum));  // or the compiler would multiply once
        }
    }
#pragma GCC unroll 16
    for (const Sums& sum : sums) out[0] += sum[0];
    return rounds * SUMS * LANES;
}
