/* blake3_avx2.c: eight lanes. The code is in blake3_lanes.h; here is the instruction set. */
#include "internal.h"

#if CAS_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#include <immintrin.h>

#define CAS_LANES 8
#define CAS_PAIRS 0
#define CAS_MANY cas_b3_many_avx2
#define CAS_RAGGED cas_b3_ragged_avx2

typedef uint32_t lanes_t __attribute__((vector_size(32)));

static inline lanes_t splat(uint32_t word) { return (lanes_t)_mm256_set1_epi32((int)word); }
static inline void split_counters(const uint64_t *counters, lanes_t *low, lanes_t *high) {
    const __m256 a = _mm256_castsi256_ps(_mm256_loadu_si256((const void *)counters));
    const __m256 b = _mm256_castsi256_ps(_mm256_loadu_si256((const void *)(counters + 4)));
    /* The shuffle works inside 128-bit parts; the permutation puts the middle two quarters in order. */
    *low = (lanes_t)_mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), 0xD8);
    *high = (lanes_t)_mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xDD)), 0xD8);
}
static inline lanes_t gather4(const uint8_t *const *p, size_t at) {
    const __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const void *)(p[0] + at)));
    return (lanes_t)_mm256_inserti128_si256(low, _mm_loadu_si128((const void *)(p[4] + at)), 1);
}
static inline void scatter4(lanes_t v, uint8_t *const *p, size_t at) {
    _mm_storeu_si128((void *)(p[0] + at), _mm256_castsi256_si128((__m256i)v));
    _mm_storeu_si128((void *)(p[4] + at), _mm256_extracti128_si256((__m256i)v, 1));
}
static inline void transpose4(lanes_t *r) {
    const __m256i low01 = _mm256_unpacklo_epi32((__m256i)r[0], (__m256i)r[1]);
    const __m256i high01 = _mm256_unpackhi_epi32((__m256i)r[0], (__m256i)r[1]);
    const __m256i low23 = _mm256_unpacklo_epi32((__m256i)r[2], (__m256i)r[3]);
    const __m256i high23 = _mm256_unpackhi_epi32((__m256i)r[2], (__m256i)r[3]);
    r[0] = (lanes_t)_mm256_unpacklo_epi64(low01, low23);
    r[1] = (lanes_t)_mm256_unpackhi_epi64(low01, low23);
    r[2] = (lanes_t)_mm256_unpacklo_epi64(high01, high23);
    r[3] = (lanes_t)_mm256_unpackhi_epi64(high01, high23);
}
/* Rotations by whole bytes are one shuffle; the others two shifts and an or. */
static inline lanes_t ror16(lanes_t v) {
    return (lanes_t)_mm256_shuffle_epi8(
        (__m256i)v, _mm256_set_epi8(13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2, 13, 12, 15, 14, 9, 8, 11, 10,
                                    5, 4, 7, 6, 1, 0, 3, 2));
}
static inline lanes_t ror8(lanes_t v) {
    return (lanes_t)_mm256_shuffle_epi8(
        (__m256i)v, _mm256_set_epi8(12, 15, 14, 13, 8, 11, 10, 9, 4, 7, 6, 5, 0, 3, 2, 1, 12, 15, 14, 13, 8, 11, 10, 9,
                                    4, 7, 6, 5, 0, 3, 2, 1));
}
static inline lanes_t ror12(lanes_t v) { return (v >> 12) | (v << 20); }
static inline lanes_t ror7(lanes_t v) { return (v >> 7) | (v << 25); }

#include "blake3_lanes.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int cas_no_avx2; /* ISO C wants a declaration in every file */
#endif
