/* blake3_lanes.h: BLAKE3 over CAS_LANES inputs at once, one input per 32-bit vector lane. Included once by each kernel
 * file, which first defines
 *   CAS_LANES           number of lanes, a multiple of 4
 *   CAS_MANY            name of the function to define
 *   lanes_t             vector of CAS_LANES uint32_t that supports + and ^
 *   splat(word)         all lanes = word
 *   from_words(p)       lanes_t from CAS_LANES words in memory
 *   gather4(p, at)      part k (128 bits) = the 16 bytes at p[4 * k] + at
 *   scatter4(v, p, at)  its inverse
 *   transpose4(r)       4x4 transposition of 32-bit words inside each 128-bit part of r[0..4)
 *   ror16 ror12 ror8 ror7
 *
 * Why gather4: transposing 8x8 or 16x16 words needs shuffles across 128-bit parts, which are slow. When part k of a
 * vector comes from input 4k + i, shuffles inside the parts are enough, and all widths share one code.
 *
 * Source: the BLAKE3 paper, section 5.3 (SIMD over chunks and parents).
 */

#define CAS_INLINE static inline __attribute__((always_inline))

/* Half of G for four columns (or diagonals) at once, step by step, so that four dependency chains overlap. `b`, `c`,
 * `d` say which of the row's four words stands in the first column. */
#define CAS_HALF(order, first, b, c, d, ROT_D, ROT_B)                                                                  \
    do {                                                                                                               \
        for (int i = 0; i < 4; i++) v[i] = v[i] + m[(order)[first + 2 * i]] + v[4 + ((i + b) & 3)];                    \
        for (int i = 0; i < 4; i++) v[12 + ((i + d) & 3)] = ROT_D(v[12 + ((i + d) & 3)] ^ v[i]);                       \
        for (int i = 0; i < 4; i++) v[8 + ((i + c) & 3)] += v[12 + ((i + d) & 3)];                                     \
        for (int i = 0; i < 4; i++) v[4 + ((i + b) & 3)] = ROT_B(v[4 + ((i + b) & 3)] ^ v[8 + ((i + c) & 3)]);         \
    } while (0)

CAS_INLINE void lanes_round(lanes_t v[16], const lanes_t m[16], const uint8_t order[16]) {
    CAS_HALF(order, 0, 0, 0, 0, ror16, ror12);
    CAS_HALF(order, 1, 0, 0, 0, ror8, ror7);
    CAS_HALF(order, 8, 1, 2, 3, ror16, ror12);
    CAS_HALF(order, 9, 1, 2, 3, ror8, ror7);
}

/* Message words of one block, lane i from inputs[i]. */
CAS_INLINE void lanes_load(lanes_t m[16], const uint8_t *const inputs[CAS_LANES], size_t at) {
    for (size_t part = 0; part < 4; part++) {
        for (size_t i = 0; i < 4; i++) m[4 * part + i] = gather4(inputs + i, at + 16 * part);
        transpose4(m + 4 * part);
    }
}

/* One whole group of lanes, all rounds of all blocks. */
static void lanes_run(const uint8_t *const inputs[CAS_LANES], const uint64_t counters[CAS_LANES], size_t blocks,
                      const uint32_t key[8], uint32_t flags, uint32_t first, uint32_t last,
                      uint8_t *const outputs[CAS_LANES]) {
    static const uint8_t order[7][16] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
        {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1}, {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
        {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4}, {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
        {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
    };
    uint32_t low[CAS_LANES];
    uint32_t high[CAS_LANES];
    for (size_t i = 0; i < CAS_LANES; i++) {
        low[i] = (uint32_t)counters[i];
        high[i] = (uint32_t)(counters[i] >> 32);
    }
    lanes_t value[8];
    for (size_t i = 0; i < 8; i++) value[i] = splat(key[i]);
    for (size_t b = 0; b < blocks; b++) {
        const uint32_t edge = (b == 0 ? first : 0u) | (b + 1 == blocks ? last : 0u);
        lanes_t m[16];
        lanes_load(m, inputs, b * CAS_B3_BLOCK);
        lanes_t v[16] = {
            value[0],         value[1],         value[2],         value[3],
            value[4],         value[5],         value[6],         value[7],
            splat(cas_b3_iv[0]), splat(cas_b3_iv[1]), splat(cas_b3_iv[2]), splat(cas_b3_iv[3]),
            from_words(low),  from_words(high), splat(CAS_B3_BLOCK), splat(flags | edge),
        };
        lanes_round(v, m, order[0]);
        lanes_round(v, m, order[1]);
        lanes_round(v, m, order[2]);
        lanes_round(v, m, order[3]);
        lanes_round(v, m, order[4]);
        lanes_round(v, m, order[5]);
        lanes_round(v, m, order[6]);
        for (size_t i = 0; i < 8; i++) value[i] = v[i] ^ v[i + 8];
    }
    transpose4(value);
    transpose4(value + 4);
    for (size_t i = 0; i < 4; i++) {
        scatter4(value[i], outputs + i, 0);
        scatter4(value[4 + i], outputs + i, 16);
    }
}

void CAS_MANY(const uint8_t *const *inputs, const uint64_t *counters, size_t count, size_t blocks,
              const uint32_t key[8], uint32_t flags, uint32_t first, uint32_t last, uint8_t *out) {
    uint8_t *outputs[CAS_LANES];
    while (count >= CAS_LANES) {
        for (size_t i = 0; i < CAS_LANES; i++) outputs[i] = out + i * CAS_B3_VALUE;
        lanes_run(inputs, counters, blocks, key, flags, first, last, outputs);
        inputs += CAS_LANES;
        counters += CAS_LANES;
        out += CAS_LANES * (size_t)CAS_B3_VALUE;
        count -= CAS_LANES;
    }
    if (count == 1) {
        cas_b3_many_portable(inputs, counters, count, blocks, key, flags, first, last, out);
    } else if (count > 1) {
        /* A run with idle lanes costs the same as a full one, and less than two scalar inputs. The idle lanes repeat
         * the last input and write to scratch. */
        const uint8_t *padded_inputs[CAS_LANES];
        uint64_t padded_counters[CAS_LANES];
        uint8_t scratch[CAS_B3_VALUE];
        for (size_t i = 0; i < CAS_LANES; i++) {
            const size_t from = i < count ? i : count - 1;
            padded_inputs[i] = inputs[from];
            padded_counters[i] = counters[from];
            outputs[i] = i < count ? out + i * CAS_B3_VALUE : scratch;
        }
        lanes_run(padded_inputs, padded_counters, blocks, key, flags, first, last, outputs);
    }
}
