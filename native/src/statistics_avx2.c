/* statistics_avx2.c: which values occur, 32 bytes at a time.
 *
 * Outline: what is not marked yet is a set of bits, one byte of eight for each low half of a value and each half of the
 * high ones. Two shuffles look a byte's low half up, a third makes the bit of its high half. Bytes that hit the set are
 * rare, as each value leaves it when it is met.
 */
#include "internal.h"

#if CAS_X86
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif

enum { GROUP = 32 };

typedef struct {
    __m256i low;  /* of values below 128 */
    __m256i high; /* of the others */
} value_set;

static value_set unmarked(const uint8_t seen[256]) {
    uint8_t bits[2][16] = {{0}};
    for (size_t v = 0; v < 256; v++) {
        if (!seen[v]) bits[v >> 7][v & 15] |= (uint8_t)(1u << (v >> 4 & 7));
    }
    return (value_set){_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)bits[0])),
                       _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)bits[1]))};
}

static inline bool hits(value_set set, __m256i bytes) {
    const __m256i half = _mm256_set1_epi8(15);
    const __m256i powers = _mm256_set1_epi64x((long long)0x8040201008040201u);
    const __m256i low = _mm256_and_si256(bytes, half);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), half);
    const __m256i rows =
        _mm256_blendv_epi8(_mm256_shuffle_epi8(set.low, low), _mm256_shuffle_epi8(set.high, low), bytes);
    return !_mm256_testz_si256(rows, _mm256_shuffle_epi8(powers, high));
}

void cas_mark_values_avx2(const uint8_t *data, size_t len, uint8_t seen[256]) {
    value_set set = unmarked(seen);
    size_t at = 0;
    for (; len - at >= GROUP; at += GROUP) {
        if (hits(set, _mm256_loadu_si256((const __m256i *)(const void *)(data + at)))) {
            cas_mark_values_portable(data + at, GROUP, seen);
            set = unmarked(seen);
        }
    }
    cas_mark_values_portable(data + at, len - at, seen);
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int cas_no_statistics_avx2; /* ISO C wants a declaration in every file */
#endif
