/* filters_loops.h: the item loops of the plane filters, written so that the compiler's vectoriser does the work.
 * Included once by each kernel file, which first defines CAS_SPLIT and CAS_JOIN (the names) and may select a target.
 *
 * Every combination of predictor, width and rotation becomes a loop of its own: the parameters are constants after
 * inlining. Measured as intrinsics-free code because the compilers turn these loops into the shuffles one would write.
 */

#define CAS_INLINE static inline __attribute__((always_inline))

/* Rotation by one bit to the left moves the sign to the bottom; the exponent of bf16 and fp32 then is the top byte. */
#define CAS_DEFINE_WIDTH(bits)                                                                                         \
    CAS_INLINE uint##bits##_t turn##bits(uint##bits##_t x, bool rotate) {                                              \
        return rotate ? (uint##bits##_t)((uint##bits##_t)(x << 1) | (uint##bits##_t)(x >> (bits - 1))) : x;            \
    }                                                                                                                  \
    CAS_INLINE uint##bits##_t unturn##bits(uint##bits##_t x, bool rotate) {                                            \
        return rotate ? (uint##bits##_t)((uint##bits##_t)(x >> 1) | (uint##bits##_t)(x << (bits - 1))) : x;            \
    }                                                                                                                  \
    CAS_INLINE uint##bits##_t read##bits(const uint8_t *from) {                                                        \
        uint##bits##_t x;                                                                                              \
        memcpy(&x, from, sizeof x);                                                                                    \
        return x;                                                                                                      \
    }                                                                                                                  \
    /* zigzag: 0 -1 1 -2 ... become 0 1 2 3 ..., so small differences of either sign have zero top bytes */            \
    CAS_INLINE uint##bits##_t forward##bits(uint##bits##_t x, uint##bits##_t base, int predictor) {                    \
        if (predictor == CAS_PREDICT_XOR) return (uint##bits##_t)(x ^ base);                                           \
        if (predictor == CAS_PREDICT_NONE) return x;                                                                   \
        const uint##bits##_t d = (uint##bits##_t)(x - base);                                                           \
        const uint##bits##_t sign = (uint##bits##_t)(0u - (uint##bits##_t)(d >> (bits - 1)));                          \
        return (uint##bits##_t)((uint##bits##_t)(d << 1) ^ sign);                                                      \
    }                                                                                                                  \
    CAS_INLINE uint##bits##_t backward##bits(uint##bits##_t z, uint##bits##_t base, int predictor) {                   \
        if (predictor == CAS_PREDICT_XOR) return (uint##bits##_t)(z ^ base);                                           \
        if (predictor == CAS_PREDICT_NONE) return z;                                                                   \
        const uint##bits##_t sign = (uint##bits##_t)(0u - (uint##bits##_t)(z & 1u));                                   \
        return (uint##bits##_t)((uint##bits##_t)((uint##bits##_t)(z >> 1) ^ sign) + base);                             \
    }                                                                                                                  \
    CAS_INLINE void split##bits(int predictor, bool rotate, const uint8_t *restrict src, const uint8_t *restrict base, \
                                uint8_t *restrict out, size_t items) {                                                 \
        for (size_t i = 0; i < items; i++) {                                                                           \
            const uint##bits##_t x = turn##bits(read##bits(src + i * (bits / 8)), rotate);                             \
            const uint##bits##_t b =                                                                                   \
                predictor == CAS_PREDICT_NONE ? 0 : turn##bits(read##bits(base + i * (bits / 8)), rotate);             \
            const uint##bits##_t z = forward##bits(x, b, predictor);                                                   \
            for (size_t p = 0; p < bits / 8; p++) out[p * items + i] = (uint8_t)(z >> (bits - 8 - 8 * p));             \
        }                                                                                                              \
    }                                                                                                                  \
    CAS_INLINE void join##bits(int predictor, bool rotate, const uint8_t *restrict src, const uint8_t *restrict base,  \
                               uint8_t *restrict out, size_t items) {                                                  \
        for (size_t i = 0; i < items; i++) {                                                                           \
            uint##bits##_t z = 0;                                                                                      \
            for (size_t p = 0; p < bits / 8; p++) {                                                                    \
                z = (uint##bits##_t)(z | (uint##bits##_t)((uint##bits##_t)src[p * items + i] << (bits - 8 - 8 * p)));  \
            }                                                                                                          \
            const uint##bits##_t b =                                                                                   \
                predictor == CAS_PREDICT_NONE ? 0 : turn##bits(read##bits(base + i * (bits / 8)), rotate);             \
            const uint##bits##_t x = unturn##bits(backward##bits(z, b, predictor), rotate);                            \
            memcpy(out + i * (bits / 8), &x, sizeof x);                                                                \
        }                                                                                                              \
    }

CAS_DEFINE_WIDTH(16)
CAS_DEFINE_WIDTH(32)
CAS_DEFINE_WIDTH(64)

#define CAS_CASE(action, bits, predictor, rotate)                                                                      \
    case (bits / 8) * 8 + predictor * 2 + rotate:                                                                      \
        action##bits(predictor, rotate, src, base, out, items);                                                        \
        break;
#define CAS_CASES_OF(action, bits)                                                                                     \
    CAS_CASE(action, bits, CAS_PREDICT_NONE, 0)                                                                        \
    CAS_CASE(action, bits, CAS_PREDICT_NONE, 1)                                                                        \
    CAS_CASE(action, bits, CAS_PREDICT_SUB, 0)                                                                         \
    CAS_CASE(action, bits, CAS_PREDICT_SUB, 1)                                                                         \
    CAS_CASE(action, bits, CAS_PREDICT_XOR, 0)                                                                         \
    CAS_CASE(action, bits, CAS_PREDICT_XOR, 1)
#define CAS_CASES(action) CAS_CASES_OF(action, 16) CAS_CASES_OF(action, 32) CAS_CASES_OF(action, 64)

void CAS_SPLIT(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, const uint8_t *base,
               uint8_t *out, size_t items) {
    switch ((int32_t)width * 8 + predictor * 2 + (rotate != 0)) { CAS_CASES(split) }
}

void CAS_JOIN(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, const uint8_t *base,
              uint8_t *out, size_t items) {
    switch ((int32_t)width * 8 + predictor * 2 + (rotate != 0)) { CAS_CASES(join) }
}
