/* entropy.h: the order-0 entropy coder inside: the numbers that fix its stream, its tables, one step of each direction.
 *
 * The range variant of asymmetric numeral systems (rANS). Source: Duda, "Asymmetric numeral systems: entropy coding
 * combining speed of Huffman coding with compression rate of arithmetic coding" (arXiv 1311.2540), section 3; streams
 * side by side as in Giesen, "Interleaved entropy coders" (arXiv 1402.3392). The stream: docs/format.md, section 6.
 */
#ifndef CAS_ENTROPY_H
#define CAS_ENTROPY_H

#include "internal.h"

enum {
    /* Frequencies sum to 2^bits, bits = 12, 13 or 14. A byte value with at least half (three quarters) of the data is
     * `common`: its slots need no table, so the rest gets 2 (4) times the resolution out of the same 4,096 slots, which
     * are 16 KiB and leave room in L1. With 12 bits alone, sparse deltas came out 2 to 4 % above their entropy. */
    CAS_ENTROPY_MIN_BITS = 12,
    CAS_ENTROPY_MAX_BITS = 14,
    CAS_ENTROPY_SLOTS = 4096,
    CAS_ENTROPY_LANES = 32,
    /* States live in [2^15, 2^31) and move 16 bits at a time: signed comparisons work, 32-bit reciprocals are exact. */
    CAS_ENTROPY_LOW = 1 << 15,
    CAS_ENTROPY_STATE_BITS = 31,
    /* What one group of 32 symbols can take from the stream or add to it. */
    CAS_ENTROPY_GROUP_BYTES = 2 * CAS_ENTROPY_LANES,
    CAS_ENTROPY_STATES_BYTES = 4 * CAS_ENTROPY_LANES,
    CAS_ENTROPY_HEAD_MAX_BYTES = 1 + 512,
    CAS_ENTROPY_MAX_BYTES = 1 << 26
};

/* ---- the model: entropy_model.c ---- */

/* freqs[] sum to 2^bits. `common` is the value whose slots come first and need no table, or -1 when bits is 12. */
typedef struct {
    uint32_t bits;
    int32_t common;
    uint16_t freqs[256];
} cas_entropy_model;

/* Choose frequencies near counts / total: above 0 where counts are, below 4,096 but for the common value; constant data
 * gets a second value. total > 0 is the sum of counts. */
void cas_entropy_fit(const uint64_t counts[256], uint64_t total, cas_entropy_model *model);
/* Bytes of the words that a stream over these counts will have, to within 0.1 %; the same on every machine. */
uint64_t cas_entropy_words_bytes(const uint64_t counts[256], const cas_entropy_model *model);
/* Order-0 entropy of the counts in bits per byte times 2^16; without floating point, so the same on every machine. */
uint32_t cas_entropy_bits_q16(const uint64_t counts[256], uint64_t total);
/* Write the model as a stream's head; return how many bytes that took. */
size_t cas_entropy_put_head(const cas_entropy_model *model, uint8_t out[CAS_ENTROPY_HEAD_MAX_BYTES]);
/* Read a head; return the bytes used, or 0 when it is none. */
size_t cas_entropy_get_head(const uint8_t *src, size_t src_len, cas_entropy_model *model);
/* Write the stream of src_len > 0 bytes under a fitting model; everything is checked but the room. */
cas_status cas_entropy_encode_with(const cas_entropy_model *model, const uint8_t *src, size_t src_len, uint8_t *out,
                                   size_t out_cap, size_t *out_len);

/* ---- one step, in plain C: the definition ---- */

/* Push a symbol onto a state. One word is always written before `at`, which moves only if the word counts. */
static inline uint32_t cas_entropy_push(uint32_t x, cas_entropy_symbol symbol, uint32_t bits, uint8_t **at) {
    const uint32_t complement = (symbol.packed >> 14) & 16383u;
    const uint32_t due = ((x >> (CAS_ENTROPY_STATE_BITS - bits)) + complement) >> bits != 0;
    const uint16_t word = (uint16_t)x;
    memcpy(*at - 2, &word, 2);
    *at -= 2 * due;
    x >>= 16 * due;
    const uint32_t quotient = (uint32_t)((2 * (uint64_t)x * symbol.inverse) >> 32) >> (symbol.packed >> 28);
    return x + (symbol.packed & 16383u) + quotient * complement;
}

/* Pop a symbol; the state it leaves may be below CAS_ENTROPY_LOW, then one word is due. */
static inline uint32_t cas_entropy_pop(uint32_t x, const cas_entropy_decoder *decoder, uint8_t *symbol) {
    const uint32_t index = x & ((1u << decoder->bits) - 1);
    const uint32_t common_freq = decoder->common_freq;
    const bool is_common = index < common_freq;
    const uint32_t place = is_common ? 0 : index - common_freq + (common_freq != 0);
    const uint32_t slot = decoder->slots[place];
    *symbol = (uint8_t)(slot >> 24);
    const uint32_t freq = is_common ? common_freq : (slot >> 12) & 4095u;
    const uint32_t offset = is_common ? index : slot & 4095u;
    return freq * (x >> decoder->bits) + offset;
}

#endif
