/* filters_portable.c: the plane filters for the baseline instruction set; the definition of their results.
 *
 * Outline: loops shaped so that the compiler's vectoriser does the work. Items go through in blocks that stay in L1. A
 * block is predicted item by item, then halved in steps: 64-bit items into their upper and lower 32 bits, those into
 * 16, those into bytes. Each step is one vector pack (or, on the way back, one unpack); writing eight planes straight
 * from 64-bit items is 3 to 4 times slower. Every combination of predictor and rotation is a loop of its own: they are
 * constants after inlining.
 */
#include "filters_cases.h"
#include "internal.h"

#define CAS_INLINE static inline __attribute__((always_inline))

/* The steps know neither predictor nor rotation: one copy of each, not one per combination, keeps compiling short. */
#define CAS_STEP static __attribute__((noinline))

/* 4 KiB of temporaries at width 8, far below any L1. */
enum { BLOCK_ITEMS = 256 };

/* Per item. `turn`: rotation by one bit to the left moves the sign to the bottom; the exponent of bf16 and fp32 then is
 * the top byte. Zigzag: 0 -1 1 -2 ... become 0 1 2 3 ..., so small differences of either sign have zero top bytes. */
#define CAS_DEFINE_ITEM(bits)                                                                                          \
    typedef uint##bits##_t item##bits;                                                                                 \
    CAS_INLINE item##bits turn##bits(item##bits x, bool rotate) {                                                      \
        if (!rotate) return x;                                                                                         \
        return (item##bits)((item##bits)(x << 1) | (item##bits)(x >> (bits - 1)));                                     \
    }                                                                                                                  \
    CAS_INLINE item##bits unturn##bits(item##bits x, bool rotate) {                                                    \
        if (!rotate) return x;                                                                                         \
        return (item##bits)((item##bits)(x >> 1) | (item##bits)(x << (bits - 1)));                                     \
    }                                                                                                                  \
    CAS_INLINE item##bits read##bits(const uint8_t *from, size_t i, bool rotate) {                                     \
        item##bits x;                                                                                                  \
        memcpy(&x, from + i * sizeof x, sizeof x);                                                                     \
        return turn##bits(x, rotate);                                                                                  \
    }                                                                                                                  \
    CAS_INLINE item##bits forward##bits(item##bits x, item##bits base, int predictor) {                                \
        if (predictor == CAS_PREDICT_XOR) return (item##bits)(x ^ base);                                               \
        const item##bits d = (item##bits)(x - base);                                                                   \
        const item##bits sign = (item##bits)(0u - (item##bits)(d >> (bits - 1)));                                      \
        return (item##bits)((item##bits)(d << 1) ^ sign);                                                              \
    }                                                                                                                  \
    CAS_INLINE item##bits backward##bits(item##bits z, item##bits base, int predictor) {                               \
        if (predictor == CAS_PREDICT_XOR) return (item##bits)(z ^ base);                                               \
        const item##bits sign = (item##bits)(0u - (item##bits)(z & 1u));                                               \
        return (item##bits)((item##bits)((item##bits)(z >> 1) ^ sign) + base);                                         \
    }                                                                                                                  \
    CAS_INLINE void predict##bits(int predictor, bool rotate, const uint8_t *restrict src,                             \
                                  const uint8_t *restrict base, item##bits *restrict z, size_t count) {                \
        if (predictor == CAS_PREDICT_NONE) {                                                                           \
            for (size_t i = 0; i < count; i++) z[i] = read##bits(src, i, rotate);                                      \
        } else {                                                                                                       \
            for (size_t i = 0; i < count; i++) {                                                                       \
                z[i] = forward##bits(read##bits(src, i, rotate), read##bits(base, i, rotate), predictor);              \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    CAS_INLINE void recover##bits(int predictor, bool rotate, const item##bits *restrict z,                            \
                                  const uint8_t *restrict base, uint8_t *restrict out, size_t count) {                 \
        for (size_t i = 0; i < count; i++) {                                                                           \
            item##bits x = z[i];                                                                                       \
            if (predictor != CAS_PREDICT_NONE) x = backward##bits(x, read##bits(base, i, rotate), predictor);          \
            x = unturn##bits(x, rotate);                                                                               \
            memcpy(out + i * sizeof x, &x, sizeof x);                                                                  \
        }                                                                                                              \
    }

/* One halving step and its inverse, over a block. */
#define CAS_DEFINE_STEP(bits, half, half_t)                                                                            \
    CAS_INLINE void halve##bits(const item##bits *restrict z, half_t *restrict upper, half_t *restrict lower,          \
                                size_t count) {                                                                        \
        for (size_t i = 0; i < count; i++) {                                                                           \
            upper[i] = (half_t)(z[i] >> half);                                                                         \
            lower[i] = (half_t)z[i];                                                                                   \
        }                                                                                                              \
    }                                                                                                                  \
    CAS_INLINE void unite##bits(const half_t *restrict upper, const half_t *restrict lower, item##bits *restrict z,    \
                                size_t count) {                                                                        \
        for (size_t i = 0; i < count; i++) {                                                                           \
            z[i] = (item##bits)((item##bits)((item##bits)upper[i] << half) | (item##bits)lower[i]);                    \
        }                                                                                                              \
    }

CAS_DEFINE_ITEM(16)
CAS_DEFINE_ITEM(32)
CAS_DEFINE_ITEM(64)
CAS_DEFINE_STEP(16, 8, uint8_t)
CAS_DEFINE_STEP(32, 16, uint16_t)
CAS_DEFINE_STEP(64, 32, uint32_t)

/* Items to planes and back for one block; `stride` is the distance from one plane to the next, `at` the block's place
 * in each plane. */
CAS_STEP void spread16(const item16 *z, uint8_t *out, size_t stride, size_t count) {
    halve16(z, out, out + stride, count);
}
CAS_STEP void spread32(const item32 *z, uint8_t *out, size_t stride, size_t count) {
    item16 upper[BLOCK_ITEMS];
    item16 lower[BLOCK_ITEMS];
    halve32(z, upper, lower, count);
    spread16(upper, out, stride, count);
    spread16(lower, out + 2 * stride, stride, count);
}
CAS_STEP void spread64(const item64 *z, uint8_t *out, size_t stride, size_t count) {
    item32 upper[BLOCK_ITEMS];
    item32 lower[BLOCK_ITEMS];
    halve64(z, upper, lower, count);
    spread32(upper, out, stride, count);
    spread32(lower, out + 4 * stride, stride, count);
}
CAS_STEP void collect16(const uint8_t *const *planes, size_t at, item16 *z, size_t count) {
    unite16(planes[0] + at, planes[1] + at, z, count);
}
CAS_STEP void collect32(const uint8_t *const *planes, size_t at, item32 *z, size_t count) {
    item16 upper[BLOCK_ITEMS];
    item16 lower[BLOCK_ITEMS];
    collect16(planes, at, upper, count);
    collect16(planes + 2, at, lower, count);
    unite32(upper, lower, z, count);
}
CAS_STEP void collect64(const uint8_t *const *planes, size_t at, item64 *z, size_t count) {
    item32 upper[BLOCK_ITEMS];
    item32 lower[BLOCK_ITEMS];
    collect32(planes, at, upper, count);
    collect32(planes + 4, at, lower, count);
    unite64(upper, lower, z, count);
}

#define CAS_DEFINE_WIDTH(bits)                                                                                         \
    CAS_INLINE void split##bits(int predictor, bool rotate, const uint8_t *src, const uint8_t *base, uint8_t *out,     \
                                size_t items) {                                                                        \
        const size_t width = bits / 8;                                                                                 \
        item##bits z[BLOCK_ITEMS];                                                                                     \
        for (size_t at = 0; at < items; at += BLOCK_ITEMS) {                                                           \
            const size_t count = items - at < BLOCK_ITEMS ? items - at : BLOCK_ITEMS;                                  \
            const uint8_t *base_at = predictor == CAS_PREDICT_NONE ? base : base + at * width;                         \
            predict##bits(predictor, rotate, src + at * width, base_at, z, count);                                     \
            spread##bits(z, out + at, items, count);                                                                   \
        }                                                                                                              \
    }                                                                                                                  \
    CAS_INLINE void join##bits(int predictor, bool rotate, const uint8_t *const *src, const uint8_t *base,             \
                               uint8_t *out, size_t items) {                                                           \
        const size_t width = bits / 8;                                                                                 \
        item##bits z[BLOCK_ITEMS];                                                                                     \
        for (size_t at = 0; at < items; at += BLOCK_ITEMS) {                                                           \
            const size_t count = items - at < BLOCK_ITEMS ? items - at : BLOCK_ITEMS;                                  \
            const uint8_t *base_at = predictor == CAS_PREDICT_NONE ? base : base + at * width;                         \
            collect##bits(src, at, z, count);                                                                          \
            recover##bits(predictor, rotate, z, base_at, out + at * width, count);                                     \
        }                                                                                                              \
    }

CAS_DEFINE_WIDTH(16)
CAS_DEFINE_WIDTH(32)
CAS_DEFINE_WIDTH(64)

void cas_split_portable(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, const uint8_t *base,
                        uint8_t *out, size_t items) {
    switch ((int32_t)width * 8 + predictor * 2 + (rotate != 0)) { CAS_CASES(split) }
}

void cas_join_portable(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *const *src,
                       const uint8_t *base, uint8_t *out, size_t items) {
    switch ((int32_t)width * 8 + predictor * 2 + (rotate != 0)) { CAS_CASES(join) }
}
