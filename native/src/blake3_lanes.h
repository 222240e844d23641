/* blake3_lanes.h: BLAKE3 over CAS_LANES inputs at once, one input per 32-bit vector lane. Included once by each kernel
 * file, which first defines
 *   CAS_LANES           number of lanes, a multiple of 4
 *   CAS_PAIRS           1: run two groups of lanes at once where there are as many inputs; 0: never
 *   CAS_MANY CAS_RAGGED names of the functions to define
 *   lanes_t             vector of CAS_LANES uint32_t that supports + and ^
 *   splat(word)         all lanes = word
 *   split_counters(p, low, high)  the halves of CAS_LANES 64-bit words in memory
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

/* The quarter round, one column at a time. Interleaving four columns in the source looks better for the pipeline, but
 * keeps so many words alive that the compiler spills them into the critical path: 2.9 instead of 4.1 GB/s with eight
 * lanes (Zen 3, GCC 12). The processor overlaps the columns by itself. */
CAS_INLINE void lanes_mix(lanes_t (*v)[16], lanes_t (*m)[16], size_t groups, int a, int b, int c, int d, int x, int y) {
    for (size_t g = 0; g < groups; g++) {
        v[g][a] = v[g][a] + m[g][x] + v[g][b];
        v[g][d] = ror16(v[g][d] ^ v[g][a]);
        v[g][c] = v[g][c] + v[g][d];
        v[g][b] = ror12(v[g][b] ^ v[g][c]);
        v[g][a] = v[g][a] + m[g][y] + v[g][b];
        v[g][d] = ror8(v[g][d] ^ v[g][a]);
        v[g][c] = v[g][c] + v[g][d];
        v[g][b] = ror7(v[g][b] ^ v[g][c]);
    }
}

CAS_INLINE void lanes_round(lanes_t (*v)[16], lanes_t (*m)[16], size_t groups, const uint8_t order[16]) {
    lanes_mix(v, m, groups, 0, 4, 8, 12, order[0], order[1]);
    lanes_mix(v, m, groups, 1, 5, 9, 13, order[2], order[3]);
    lanes_mix(v, m, groups, 2, 6, 10, 14, order[4], order[5]);
    lanes_mix(v, m, groups, 3, 7, 11, 15, order[6], order[7]);
    lanes_mix(v, m, groups, 0, 5, 10, 15, order[8], order[9]);
    lanes_mix(v, m, groups, 1, 6, 11, 12, order[10], order[11]);
    lanes_mix(v, m, groups, 2, 7, 8, 13, order[12], order[13]);
    lanes_mix(v, m, groups, 3, 4, 9, 14, order[14], order[15]);
}

/* Message words of one block, lane i from inputs[i]. */
CAS_INLINE void lanes_load(lanes_t m[16], const uint8_t *const inputs[CAS_LANES], size_t at) {
    for (size_t part = 0; part < 4; part++) {
        for (size_t i = 0; i < 4; i++) m[4 * part + i] = gather4(inputs + i, at + 16 * part);
        transpose4(m + 4 * part);
    }
}

/* Lane i = words[i]. */
CAS_INLINE lanes_t lanes_of(const uint32_t words[CAS_LANES]) {
    lanes_t v;
    memcpy(&v, words, sizeof v);
    return v;
}

static const uint8_t lanes_order[7][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1}, {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4}, {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
};

/* What a compression takes beside value and message. */
typedef struct {
    lanes_t low;
    lanes_t high;
    lanes_t block_len;
    lanes_t flags;
} lanes_rest;

/* All seven rounds of one block of one group of lanes, or two; value becomes the next chaining value.
 *
 * Why two: a round waits for itself, and sixteen words of state leave half of the 32 registers of AVX-512 to messages
 * that memory gives as well. Hashing 1 MiB takes .86 of the time so (Zen 5, GCC 12). */
CAS_INLINE void lanes_block(lanes_t (*value)[8], size_t groups, const uint8_t *const *inputs, size_t at,
                            const lanes_rest *rest) {
    lanes_t m[2][16];
    lanes_t v[2][16];
    for (size_t g = 0; g < groups; g++) {
        lanes_load(m[g], inputs + g * CAS_LANES, at);
        for (size_t i = 0; i < 8; i++) v[g][i] = value[g][i];
        for (size_t i = 0; i < 4; i++) v[g][8 + i] = splat(cas_b3_iv[i]);
        v[g][12] = rest[g].low;
        v[g][13] = rest[g].high;
        v[g][14] = rest[g].block_len;
        v[g][15] = rest[g].flags;
    }
    lanes_round(v, m, groups, lanes_order[0]);
    lanes_round(v, m, groups, lanes_order[1]);
    lanes_round(v, m, groups, lanes_order[2]);
    lanes_round(v, m, groups, lanes_order[3]);
    lanes_round(v, m, groups, lanes_order[4]);
    lanes_round(v, m, groups, lanes_order[5]);
    lanes_round(v, m, groups, lanes_order[6]);
    for (size_t g = 0; g < groups; g++) {
        for (size_t i = 0; i < 8; i++) value[g][i] = v[g][i] ^ v[g][i + 8];
    }
}

CAS_INLINE void lanes_store(lanes_t value[8], uint8_t *const outputs[CAS_LANES]) {
    transpose4(value);
    transpose4(value + 4);
    for (size_t i = 0; i < 4; i++) {
        scatter4(value[i], outputs + i, 0);
        scatter4(value[4 + i], outputs + i, 16);
    }
}

/* One whole group of lanes, or two, all blocks. */
CAS_INLINE void lanes_run(size_t groups, const uint8_t *const *inputs, const uint64_t *counters, size_t blocks,
                          const uint32_t key[8], uint32_t flags, uint32_t first, uint32_t last,
                          uint8_t *const *outputs) {
    lanes_rest rest[2];
    lanes_t value[2][8];
    for (size_t g = 0; g < groups; g++) {
        split_counters(counters + g * CAS_LANES, &rest[g].low, &rest[g].high);
        rest[g].block_len = splat(CAS_B3_BLOCK);
        for (size_t i = 0; i < 8; i++) value[g][i] = splat(key[i]);
    }
    for (size_t b = 0; b < blocks; b++) {
        const uint32_t edge = (b == 0 ? first : 0u) | (b + 1 == blocks ? last : 0u);
        for (size_t g = 0; g < groups; g++) rest[g].flags = splat(flags | edge);
        lanes_block(value, groups, inputs, b * CAS_B3_BLOCK, rest);
    }
    for (size_t g = 0; g < groups; g++) lanes_store(value[g], outputs + g * CAS_LANES);
}

/* Not inlined twice where it is called. */
static void lanes_run_one(const uint8_t *const *inputs, const uint64_t *counters, size_t blocks, const uint32_t key[8],
                          uint32_t flags, uint32_t first, uint32_t last, uint8_t *const *outputs) {
    lanes_run(1, inputs, counters, blocks, key, flags, first, last, outputs);
}

/* One group of chunks of different lengths: lanes run on in step, and one that has ended keeps its value. */
static void lanes_run_ragged(const uint8_t *const inputs[CAS_LANES], const uint32_t lens[CAS_LANES],
                             const uint64_t counters[CAS_LANES], const uint32_t roots[CAS_LANES],
                             const uint32_t key[8], uint32_t flags, uint8_t *const outputs[CAS_LANES]) {
    uint32_t last_blocks[CAS_LANES];
    uint32_t blocks = 0;
    for (size_t i = 0; i < CAS_LANES; i++) {
        last_blocks[i] = lens[i] == 0 ? 0 : (lens[i] - 1) / CAS_B3_BLOCK;
        if (last_blocks[i] + 1 > blocks) blocks = last_blocks[i] + 1;
    }
    lanes_rest rest;
    split_counters(counters, &rest.low, &rest.high);
    lanes_t value[8];
    for (size_t i = 0; i < 8; i++) value[i] = splat(key[i]);
    for (uint32_t b = 0; b < blocks; b++) {
        uint32_t block_lens[CAS_LANES];
        uint32_t lane_flags[CAS_LANES];
        uint32_t running[CAS_LANES];
        for (size_t i = 0; i < CAS_LANES; i++) {
            const bool last = b == last_blocks[i];
            block_lens[i] = last ? lens[i] - b * CAS_B3_BLOCK : CAS_B3_BLOCK;
            lane_flags[i] = flags | (b == 0 ? CAS_B3_CHUNK_START : 0u) | (last ? CAS_B3_CHUNK_END | roots[i] : 0u);
            running[i] = b <= last_blocks[i] ? ~0u : 0u;
        }
        rest.block_len = lanes_of(block_lens);
        rest.flags = lanes_of(lane_flags);
        lanes_t next[8];
        memcpy(next, value, sizeof next);
        lanes_block(&next, 1, inputs, b * (size_t)CAS_B3_BLOCK, &rest);
        const lanes_t keep = lanes_of(running);
        for (size_t i = 0; i < 8; i++) value[i] = value[i] ^ ((value[i] ^ next[i]) & keep);
    }
    lanes_store(value, outputs);
}

void CAS_MANY(const uint8_t *const *inputs, const uint64_t *counters, size_t count, size_t blocks,
              const uint32_t key[8], uint32_t flags, uint32_t first, uint32_t last, uint8_t *out) {
    uint8_t *outputs[2 * CAS_LANES];
#if CAS_PAIRS
    while (count >= 2 * CAS_LANES) {
        for (size_t i = 0; i < 2 * CAS_LANES; i++) outputs[i] = out + i * CAS_B3_VALUE;
        lanes_run(2, inputs, counters, blocks, key, flags, first, last, outputs);
        inputs += 2 * CAS_LANES;
        counters += 2 * CAS_LANES;
        out += 2 * CAS_LANES * (size_t)CAS_B3_VALUE;
        count -= 2 * CAS_LANES;
    }
#endif
    while (count >= CAS_LANES) {
        for (size_t i = 0; i < CAS_LANES; i++) outputs[i] = out + i * CAS_B3_VALUE;
        lanes_run_one(inputs, counters, blocks, key, flags, first, last, outputs);
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
        lanes_run_one(padded_inputs, padded_counters, blocks, key, flags, first, last, outputs);
    }
}

void CAS_RAGGED(const uint8_t *const *chunks, const uint32_t *lens, const uint64_t *counters, const uint32_t *roots,
                size_t count, const uint32_t key[8], uint32_t flags, uint8_t *out) {
    for (size_t at = 0; at < count; at += CAS_LANES) {
        const uint8_t *inputs[CAS_LANES];
        uint32_t lane_lens[CAS_LANES];
        uint64_t lane_counters[CAS_LANES];
        uint32_t lane_roots[CAS_LANES];
        uint8_t *outputs[CAS_LANES];
        uint8_t scratch[CAS_B3_VALUE];
        for (size_t i = 0; i < CAS_LANES; i++) {
            const size_t from = at + i < count ? at + i : count - 1;
            inputs[i] = chunks[from];
            lane_lens[i] = lens[from];
            lane_counters[i] = counters[from];
            lane_roots[i] = roots[from];
            outputs[i] = at + i < count ? out + from * CAS_B3_VALUE : scratch;
        }
        lanes_run_ragged(inputs, lane_lens, lane_counters, lane_roots, key, flags, outputs);
    }
}
