/* filters_avx2.c: the plane filters for AVX2, 32 items at a time and without temporaries in memory.
 *
 * Outline: the halves of a register do not mix in AVX2's shuffles, so the low halves hold items 0 to 15 and the high
 * ones items 16 to 31, and what comes out is in order. One byte shuffle gathers the bytes of each plane within a
 * register, then each round of unpacks doubles how many stand together; a join goes the same way with unpacks alone.
 * The last items are done again with their neighbours as one more group of 32, so there is no loop for a tail.
 */
#include "filters_cases.h"
#include "internal.h"

#if CAS_X86
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif

#define CAS_INLINE static inline __attribute__((always_inline))

enum { GROUP = 32 };

#define CAS_DEFINE_ITEM(bits)                                                                                          \
    CAS_INLINE __m256i turn##bits(__m256i x, bool rotate) {                                                            \
        if (!rotate) return x;                                                                                         \
        return _mm256_or_si256(_mm256_add_epi##bits(x, x), _mm256_srli_epi##bits(x, bits - 1));                        \
    }                                                                                                                  \
    CAS_INLINE __m256i unturn##bits(__m256i x, bool rotate) {                                                          \
        if (!rotate) return x;                                                                                         \
        return _mm256_or_si256(_mm256_srli_epi##bits(x, 1), _mm256_slli_epi##bits(x, bits - 1));                       \
    }                                                                                                                  \
    CAS_INLINE __m256i forward##bits(__m256i x, __m256i base, int predictor) {                                         \
        if (predictor == CAS_PREDICT_XOR) return _mm256_xor_si256(x, base);                                            \
        const __m256i d = _mm256_sub_epi##bits(x, base);                                                               \
        const __m256i sign = _mm256_cmpgt_epi##bits(_mm256_setzero_si256(), d);                                        \
        return _mm256_xor_si256(_mm256_add_epi##bits(d, d), sign);                                                     \
    }                                                                                                                  \
    CAS_INLINE __m256i backward##bits(__m256i z, __m256i base, int predictor) {                                        \
        if (predictor == CAS_PREDICT_XOR) return _mm256_xor_si256(z, base);                                            \
        const __m256i odd = _mm256_and_si256(z, ONE##bits);                                                            \
        const __m256i sign = _mm256_sub_epi##bits(_mm256_setzero_si256(), odd);                                        \
        return _mm256_add_epi##bits(_mm256_xor_si256(_mm256_srli_epi##bits(z, 1), sign), base);                        \
    }
#define ONE16 _mm256_set1_epi16(1)
#define ONE32 _mm256_set1_epi32(1)
#define ONE64 _mm256_set1_epi64x(1)

CAS_DEFINE_ITEM(16)
CAS_DEFINE_ITEM(32)
CAS_DEFINE_ITEM(64)

/* Sixteen bytes of the first half of a group, and sixteen of the second. */
CAS_INLINE __m256i load_halves(const uint8_t *from, size_t apart) {
    const __m128i low = _mm_loadu_si128((const __m128i *)(const void *)from);
    const __m128i high = _mm_loadu_si128((const __m128i *)(const void *)(from + apart));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

CAS_INLINE void store_halves(uint8_t *to, size_t apart, __m256i v) {
    _mm_storeu_si128((__m128i *)(void *)to, _mm256_castsi256_si128(v));
    _mm_storeu_si128((__m128i *)(void *)(to + apart), _mm256_extracti128_si256(v, 1));
}

CAS_INLINE __m256i load_plane(const uint8_t *from) { return _mm256_loadu_si256((const __m256i *)(const void *)from); }
CAS_INLINE void store_plane(uint8_t *to, __m256i v) { _mm256_storeu_si256((__m256i *)(void *)to, v); }

/* Bytes of each plane together, the top plane first. */
CAS_INLINE __m256i order16(__m256i v) {
    return _mm256_shuffle_epi8(
        v, _mm256_broadcastsi128_si256(_mm_setr_epi8(1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10, 12, 14)));
}
CAS_INLINE __m256i order32(__m256i v) {
    return _mm256_shuffle_epi8(
        v, _mm256_broadcastsi128_si256(_mm_setr_epi8(3, 7, 11, 15, 2, 6, 10, 14, 1, 5, 9, 13, 0, 4, 8, 12)));
}
CAS_INLINE __m256i order64(__m256i v) {
    return _mm256_shuffle_epi8(
        v, _mm256_broadcastsi128_si256(_mm_setr_epi8(7, 15, 6, 14, 5, 13, 4, 12, 3, 11, 2, 10, 1, 9, 0, 8)));
}

/* v[k] is 16 bytes of either half; v becomes the planes, and back. */
CAS_INLINE void spread16(__m256i v[2]) {
    const __m256i a = order16(v[0]);
    const __m256i b = order16(v[1]);
    v[0] = _mm256_unpacklo_epi64(a, b);
    v[1] = _mm256_unpackhi_epi64(a, b);
}
CAS_INLINE void spread32(__m256i v[4]) {
    for (size_t k = 0; k < 4; k++) v[k] = order32(v[k]);
    const __m256i top = _mm256_unpacklo_epi32(v[0], v[1]);
    const __m256i top_next = _mm256_unpacklo_epi32(v[2], v[3]);
    const __m256i low = _mm256_unpackhi_epi32(v[0], v[1]);
    const __m256i low_next = _mm256_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm256_unpacklo_epi64(top, top_next);
    v[1] = _mm256_unpackhi_epi64(top, top_next);
    v[2] = _mm256_unpacklo_epi64(low, low_next);
    v[3] = _mm256_unpackhi_epi64(low, low_next);
}
CAS_INLINE void spread64(__m256i v[8]) {
    __m256i pairs[8]; /* 0 to 3: planes 0 to 3, four items each */
    for (size_t k = 0; k < 4; k++) {
        const __m256i a = order64(v[2 * k]);
        const __m256i b = order64(v[2 * k + 1]);
        pairs[k] = _mm256_unpacklo_epi16(a, b);
        pairs[4 + k] = _mm256_unpackhi_epi16(a, b);
    }
    for (size_t half = 0; half < 8; half += 4) {
        const __m256i *const p = pairs + half;
        const __m256i top = _mm256_unpacklo_epi32(p[0], p[1]);
        const __m256i top_next = _mm256_unpacklo_epi32(p[2], p[3]);
        const __m256i low = _mm256_unpackhi_epi32(p[0], p[1]);
        const __m256i low_next = _mm256_unpackhi_epi32(p[2], p[3]);
        v[half] = _mm256_unpacklo_epi64(top, top_next);
        v[half + 1] = _mm256_unpackhi_epi64(top, top_next);
        v[half + 2] = _mm256_unpacklo_epi64(low, low_next);
        v[half + 3] = _mm256_unpackhi_epi64(low, low_next);
    }
}
CAS_INLINE void collect16(__m256i v[2]) {
    const __m256i top = v[0];
    v[0] = _mm256_unpacklo_epi8(v[1], top);
    v[1] = _mm256_unpackhi_epi8(v[1], top);
}
CAS_INLINE void collect32(__m256i v[4]) {
    collect16(v);
    collect16(v + 2);
    const __m256i first = v[0];
    const __m256i second = v[1];
    v[0] = _mm256_unpacklo_epi16(v[2], first);
    v[1] = _mm256_unpackhi_epi16(v[2], first);
    const __m256i low = v[3];
    v[2] = _mm256_unpacklo_epi16(low, second);
    v[3] = _mm256_unpackhi_epi16(low, second);
}
CAS_INLINE void collect64(__m256i v[8]) {
    collect32(v);
    collect32(v + 4);
    __m256i whole[8];
    for (size_t k = 0; k < 4; k++) {
        whole[2 * k] = _mm256_unpacklo_epi32(v[4 + k], v[k]);
        whole[2 * k + 1] = _mm256_unpackhi_epi32(v[4 + k], v[k]);
    }
    for (size_t k = 0; k < 8; k++) v[k] = whole[k];
}

#define CAS_DEFINE_WIDTH(bits)                                                                                         \
    CAS_INLINE void split_group##bits(int predictor, bool rotate, const uint8_t *src, const uint8_t *base,             \
                                      uint8_t *out, size_t stride) {                                                   \
        enum { WIDTH = bits / 8, APART = GROUP / 2 * WIDTH };                                                          \
        __m256i v[WIDTH];                                                                                              \
        for (size_t k = 0; k < WIDTH; k++) {                                                                           \
            v[k] = turn##bits(load_halves(src + 16 * k, APART), rotate);                                               \
            if (predictor != CAS_PREDICT_NONE) {                                                                       \
                v[k] = forward##bits(v[k], turn##bits(load_halves(base + 16 * k, APART), rotate), predictor);          \
            }                                                                                                          \
        }                                                                                                              \
        spread##bits(v);                                                                                               \
        for (size_t k = 0; k < WIDTH; k++) store_plane(out + k * stride, v[k]);                                        \
    }                                                                                                                  \
    CAS_INLINE void join_group##bits(int predictor, bool rotate, const uint8_t *const *planes, size_t at,              \
                                     const uint8_t *base, uint8_t *out) {                                              \
        enum { WIDTH = bits / 8, APART = GROUP / 2 * WIDTH };                                                          \
        __m256i v[WIDTH];                                                                                              \
        for (size_t k = 0; k < WIDTH; k++) v[k] = load_plane(planes[k] + at);                                          \
        collect##bits(v);                                                                                              \
        for (size_t k = 0; k < WIDTH; k++) {                                                                           \
            if (predictor != CAS_PREDICT_NONE) {                                                                       \
                v[k] = backward##bits(v[k], turn##bits(load_halves(base + 16 * k, APART), rotate), predictor);         \
            }                                                                                                          \
            store_halves(out + 16 * k, APART, unturn##bits(v[k], rotate));                                             \
        }                                                                                                              \
    }                                                                                                                  \
    CAS_INLINE void split##bits(int predictor, bool rotate, const uint8_t *src, const uint8_t *base, uint8_t *out,     \
                                size_t items) {                                                                        \
        const size_t width = bits / 8;                                                                                 \
        for (size_t at = 0; at < items; at += GROUP) {                                                                 \
            if (items - at < GROUP) at = items - GROUP;                                                                \
            const uint8_t *const base_at = predictor == CAS_PREDICT_NONE ? base : base + at * width;                   \
            split_group##bits(predictor, rotate, src + at * width, base_at, out + at, items);                          \
        }                                                                                                              \
    }                                                                                                                  \
    CAS_INLINE void join##bits(int predictor, bool rotate, const uint8_t *const *src, const uint8_t *base,             \
                               uint8_t *out, size_t items) {                                                           \
        const size_t width = bits / 8;                                                                                 \
        const uint8_t *planes[8];                                                                                      \
        for (size_t k = 0; k < width; k++) planes[k] = src[k];                                                         \
        for (size_t at = 0; at < items; at += GROUP) {                                                                 \
            if (items - at < GROUP) at = items - GROUP;                                                                \
            const uint8_t *const base_at = predictor == CAS_PREDICT_NONE ? base : base + at * width;                   \
            join_group##bits(predictor, rotate, planes, at, base_at, out + at * width);                                \
        }                                                                                                              \
    }

CAS_DEFINE_WIDTH(16)
CAS_DEFINE_WIDTH(32)
CAS_DEFINE_WIDTH(64)

void cas_split_avx2(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, const uint8_t *base,
                    uint8_t *out, size_t items) {
    if (items < GROUP) {
        cas_split_portable(predictor, width, rotate, src, base, out, items);
        return;
    }
    switch ((int32_t)width * 8 + predictor * 2 + (rotate != 0)) { CAS_CASES(split) }
}

void cas_join_avx2(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *const *src, const uint8_t *base,
                   uint8_t *out, size_t items) {
    if (items < GROUP) {
        cas_join_portable(predictor, width, rotate, src, base, out, items);
        return;
    }
    switch ((int32_t)width * 8 + predictor * 2 + (rotate != 0)) { CAS_CASES(join) }
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int cas_no_filters_avx2; /* ISO C wants a declaration in every file */
#endif
