/* blake3_lanes.h: BLAKE3 over CAS_LANES inputs at once, one input per 32-bit vector lane. Included once by each kernel
 * file, which first defines
 *   CAS_LANES           number of lanes, a multiple of 4
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
CAS_INLINE void lanes_mix(lanes_t v[16], int a, int b, int c, int d, lanes_t x, lanes_t y) {
    v[a] = v[a] + x + v[b];
    v[d] = ror16(v[d] ^ v[a]);
    v[c] = v[c] + v[d];
    v[b] = ror12(v[b] ^ v[c]);
    v[a] = v[a] + y + v[b];
    v[d] = ror8(v[d] ^ v[a]);
    v[c] = v[c] + v[d];
    v[b] = ror7(v[b] ^ v[c]);
}

CAS_INLINE void lanes_round(lanes_t v[16], const lanes_t m[16], const uint8_t order[16]) {
    lanes_mix(v, 0, 4, 8, 12, m[order[0]], m[order[1]]);
    lanes_mix(v, 1, 5, 9, 13, m[order[2]], m[order[3]]);
    lanes_mix(v, 2, 6, 10, 14, m[order[4]], m[order[5]]);
    lanes_mix(v, 3, 7, 11, 15, m[order[6]], m[order[7]]);
    lanes_mix(v, 0, 5, 10, 15, m[order[8]], m[order[9]]);
    lanes_mix(v, 1, 6, 11, 12, m[order[10]], m[order[11]]);
    lanes_mix(v, 2, 7, 8, 13, m[order[12]], m[order[13]]);
    lanes_mix(v, 3, 4, 9, 14, m[order[14]], m[order[15]]);
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

/* All seven rounds of one block; value becomes the next chaining value. */
CAS_INLINE void lanes_block(lanes_t value[8], const uint8_t *const inputs[CAS_LANES], size_t at, lanes_t low,
                            lanes_t high, lanes_t block_len, lanes_t flags) {
    lanes_t m[16];
    lanes_load(m, inputs, at);
    lanes_t v[16] = {
        value[0], value[1], value[2], value[3], value[4], value[5], value[6], value[7],
        splat(cas_b3_iv[0]), splat(cas_b3_iv[1]), splat(cas_b3_iv[2]), splat(cas_b3_iv[3]),
        low, high, block_len, flags,
    };
    lanes_round(v, m, lanes_order[0]);
    lanes_round(v, m, lanes_order[1]);
    lanes_round(v, m, lanes_order[2]);
    lanes_round(v, m, lanes_order[3]);
    lanes_round(v, m, lanes_order[4]);
    lanes_round(v, m, lanes_order[5]);
    lanes_round(v, m, lanes_order[6]);
    for (size_t i = 0; i < 8; i++) value[i] = v[i] ^ v[i + 8];
}

CAS_INLINE void lanes_store(lanes_t value[8], uint8_t *const outputs[CAS_LANES]) {
    transpose4(value);
    transpose4(value + 4);
    for (size_t i = 0; i < 4; i++) {
        scatter4(value[i], outputs + i, 0);
        scatter4(value[4 + i], outputs + i, 16);
    }
}

/* One whole group of lanes, all blocks. */
static void lanes_run(const uint8_t *const inputs[CAS_LANES], const uint64_t counters[CAS_LANES], size_t blocks,
                      const uint32_t key[8], uint32_t flags, uint32_t first, uint32_t last,
                      uint8_t *const outputs[CAS_LANES]) {
    lanes_t low;
    lanes_t high;
    split_counters(counters, &low, &high);
    lanes_t value[8];
    for (size_t i = 0; i < 8; i++) value[i] = splat(key[i]);
    for (size_t b = 0; b < blocks; b++) {
        const uint32_t edge = (b == 0 ? first : 0u) | (b + 1 == blocks ? last : 0u);
        lanes_block(value, inputs, b * CAS_B3_BLOCK, low, high, splat(CAS_B3_BLOCK), splat(flags | edge));
    }
    lanes_store(value, outputs);
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
    lanes_t low;
    lanes_t high;
    split_counters(counters, &low, &high);
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
        lanes_t next[8];
        memcpy(next, value, sizeof next);
        lanes_block(next, inputs, b * (size_t)CAS_B3_BLOCK, low, high, lanes_of(block_lens), lanes_of(lane_flags));
        const lanes_t keep = lanes_of(running);
        for (size_t i = 0; i < 8; i++) value[i] = value[i] ^ ((value[i] ^ next[i]) & keep);
    }
    lanes_store(value, outputs);
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
