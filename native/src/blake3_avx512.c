/* blake3_avx512.c: sixteen lanes. The code is in blake3_lanes.h; here is the instruction set (AVX-512F and VL). */
#include "internal.h"

#if CAS_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl")
#endif
#include <immintrin.h>

#define CAS_LANES 16
/* Clang spills what two groups need (8.2 for 9.8 GB/s, Clang 19). Its sanitizers are to look at them all the same. */
#if defined(__clang__) && !defined(CAS_PAIRS_WITH_CLANG)
#define CAS_PAIRS 0
#else
#define CAS_PAIRS 1
#endif
#define CAS_MANY cas_b3_many_avx512
#define CAS_RAGGED cas_b3_ragged_avx512

typedef uint32_t lanes_t __attribute__((vector_size(64)));

static inline lanes_t splat(uint32_t word) { return (lanes_t)_mm512_set1_epi32((int)word); }
static inline void split_counters(const uint64_t *counters, lanes_t *low, lanes_t *high) {
    const __m512i a = _mm512_loadu_si512((const void *)counters);
    const __m512i b = _mm512_loadu_si512((const void *)(counters + 8));
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    *low = (lanes_t)_mm512_permutex2var_epi32(a, even, b);
    *high = (lanes_t)_mm512_permutex2var_epi32(a, _mm512_or_si512(even, _mm512_set1_epi32(1)), b);
}
static inline lanes_t gather4(const uint8_t *const *p, size_t at) {
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const void *)(p[0] + at)));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(p[4] + at)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(p[8] + at)), 2);
    return (lanes_t)_mm512_inserti32x4(v, _mm_loadu_si128((const void *)(p[12] + at)), 3);
}
static inline void scatter4(lanes_t v, uint8_t *const *p, size_t at) {
    _mm_storeu_si128((void *)(p[0] + at), _mm512_castsi512_si128((__m512i)v));
    _mm_storeu_si128((void *)(p[4] + at), _mm512_extracti32x4_epi32((__m512i)v, 1));
    _mm_storeu_si128((void *)(p[8] + at), _mm512_extracti32x4_epi32((__m512i)v, 2));
    _mm_storeu_si128((void *)(p[12] + at), _mm512_extracti32x4_epi32((__m512i)v, 3));
}
static inline void transpose4(lanes_t *r) {
    const __m512i low01 = _mm512_unpacklo_epi32((__m512i)r[0], (__m512i)r[1]);
    const __m512i high01 = _mm512_unpackhi_epi32((__m512i)r[0], (__m512i)r[1]);
    const __m512i low23 = _mm512_unpacklo_epi32((__m512i)r[2], (__m512i)r[3]);
    const __m512i high23 = _mm512_unpackhi_epi32((__m512i)r[2], (__m512i)r[3]);
    r[0] = (lanes_t)_mm512_unpacklo_epi64(low01, low23);
    r[1] = (lanes_t)_mm512_unpackhi_epi64(low01, low23);
    r[2] = (lanes_t)_mm512_unpacklo_epi64(high01, high23);
    r[3] = (lanes_t)_mm512_unpackhi_epi64(high01, high23);
}
static inline lanes_t ror16(lanes_t v) { return (lanes_t)_mm512_ror_epi32((__m512i)v, 16); }
static inline lanes_t ror12(lanes_t v) { return (lanes_t)_mm512_ror_epi32((__m512i)v, 12); }
static inline lanes_t ror8(lanes_t v) { return (lanes_t)_mm512_ror_epi32((__m512i)v, 8); }
static inline lanes_t ror7(lanes_t v) { return (lanes_t)_mm512_ror_epi32((__m512i)v, 7); }

#include "blake3_lanes.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int cas_no_avx512; /* ISO C wants a declaration in every file */
#endif
