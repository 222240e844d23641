/* blake3_portable.c: the BLAKE3 compression function, one block at a time. This is the definition; each vector kernel
 * must give the same bytes.
 *
 * Source: O'Connor, Aumasson, Neves, Wilcox-O'Hearn, "BLAKE3: one function, fast everywhere", section 2.2, tables 1-3.
 */
#include "internal.h"

const uint32_t cas_b3_iv[8] = {0x6A09E667u, 0xBB67AE85u, 0x3C6EF372u, 0xA54FF53Au,
                               0x510E527Fu, 0x9B05688Cu, 0x1F83D9ABu, 0x5BE0CD19u};

/* Row r + 1 is row r read through the permutation of table 2 (2 6 3 10 7 0 4 13 1 11 12 5 9 14 15 8). */
const uint8_t cas_b3_schedule[7][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1}, {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4}, {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
};

static inline uint32_t rotate_right(uint32_t word, unsigned bits) { return (word >> bits) | (word << (32 - bits)); }

static inline void mix(uint32_t v[16], size_t a, size_t b, size_t c, size_t d, uint32_t x, uint32_t y) {
    v[a] = v[a] + v[b] + x;
    v[d] = rotate_right(v[d] ^ v[a], 16);
    v[c] = v[c] + v[d];
    v[b] = rotate_right(v[b] ^ v[c], 12);
    v[a] = v[a] + v[b] + y;
    v[d] = rotate_right(v[d] ^ v[a], 8);
    v[c] = v[c] + v[d];
    v[b] = rotate_right(v[b] ^ v[c], 7);
}

static inline void round_function(uint32_t v[16], const uint32_t m[16], const uint8_t order[16]) {
    mix(v, 0, 4, 8, 12, m[order[0]], m[order[1]]);
    mix(v, 1, 5, 9, 13, m[order[2]], m[order[3]]);
    mix(v, 2, 6, 10, 14, m[order[4]], m[order[5]]);
    mix(v, 3, 7, 11, 15, m[order[6]], m[order[7]]);
    mix(v, 0, 5, 10, 15, m[order[8]], m[order[9]]);
    mix(v, 1, 6, 11, 12, m[order[10]], m[order[11]]);
    mix(v, 2, 7, 8, 13, m[order[12]], m[order[13]]);
    mix(v, 3, 4, 9, 14, m[order[14]], m[order[15]]);
}

void cas_b3_compress(const uint32_t value[8], const uint8_t block[CAS_B3_BLOCK], uint32_t block_len, uint64_t counter,
                     uint32_t flags, uint32_t out[16]) {
    uint32_t m[16];
    memcpy(m, block, sizeof m);
    uint32_t v[16] = {
        value[0],     value[1],     value[2],     value[3],     value[4],          value[5],
        value[6],     value[7],     cas_b3_iv[0], cas_b3_iv[1], cas_b3_iv[2],      cas_b3_iv[3],
        (uint32_t)counter, (uint32_t)(counter >> 32), block_len, flags,
    };
    round_function(v, m, cas_b3_schedule[0]);
    round_function(v, m, cas_b3_schedule[1]);
    round_function(v, m, cas_b3_schedule[2]);
    round_function(v, m, cas_b3_schedule[3]);
    round_function(v, m, cas_b3_schedule[4]);
    round_function(v, m, cas_b3_schedule[5]);
    round_function(v, m, cas_b3_schedule[6]);
    for (size_t i = 0; i < 8; i++) {
        const uint32_t high = v[i + 8] ^ value[i];
        out[i] = v[i] ^ v[i + 8];
        out[i + 8] = high;
    }
}

void cas_b3_many_portable(const uint8_t *const *inputs, const uint64_t *counters, size_t count, size_t blocks,
                          const uint32_t key[8], uint32_t flags, uint32_t first, uint32_t last, uint8_t *out) {
    for (size_t i = 0; i < count; i++) {
        uint32_t state[16];
        memcpy(state, key, CAS_B3_VALUE);
        for (size_t b = 0; b < blocks; b++) {
            const uint32_t edge = (b == 0 ? first : 0u) | (b + 1 == blocks ? last : 0u);
            uint32_t next[16];
            cas_b3_compress(state, inputs[i] + b * CAS_B3_BLOCK, CAS_B3_BLOCK, counters[i], flags | edge, next);
            memcpy(state, next, CAS_B3_VALUE);
        }
        memcpy(out + i * CAS_B3_VALUE, state, CAS_B3_VALUE);
    }
}

void cas_b3_ragged_portable(const uint8_t *const *chunks, const uint32_t *lens, const uint64_t *counters,
                            const uint32_t *roots, size_t count, const uint32_t key[8], uint32_t flags, uint8_t *out) {
    for (size_t i = 0; i < count; i++) {
        uint32_t state[16];
        memcpy(state, key, CAS_B3_VALUE);
        const uint32_t last = lens[i] == 0 ? 0 : (lens[i] - 1) / CAS_B3_BLOCK;
        for (uint32_t b = 0; b <= last; b++) {
            const uint32_t edge = (b == 0 ? CAS_B3_CHUNK_START : 0u) | (b == last ? CAS_B3_CHUNK_END | roots[i] : 0u);
            const uint32_t block_len = b == last ? lens[i] - b * CAS_B3_BLOCK : CAS_B3_BLOCK;
            uint32_t next[16];
            cas_b3_compress(state, chunks[i] + b * (size_t)CAS_B3_BLOCK, block_len, counters[i], flags | edge, next);
            memcpy(state, next, CAS_B3_VALUE);
        }
        memcpy(out + i * CAS_B3_VALUE, state, CAS_B3_VALUE);
    }
}
