/* entropy.c: streams of the entropy coder: checks, tables, the symbols that fill no group, the ends of the stream. */
#include "entropy.h"

/* Division by freq as a multiplication (Granlund and Montgomery, PLDI 1994): with s = ceil(log2 freq) and inverse =
 * ceil(2^(31+s) / freq), the error inverse * freq - 2^(31+s) is below freq <= 2^s. A state before a step is below
 * freq * 2^(31-bits), so state * error < 2^(2s+31-bits) <= 2^(31+s), and the quotient is exact. */
static cas_entropy_symbol symbol_of(uint32_t start, uint32_t freq, uint32_t bits) {
    if (freq == 0) return (cas_entropy_symbol){0, 0};
    uint32_t shift = 0;
    while (1u << shift < freq) shift++;
    const uint64_t power = (uint64_t)1 << (31 + shift);
    return (cas_entropy_symbol){(uint32_t)((power + freq - 1) / freq),
                                start | ((1u << bits) - freq) << 14 | shift << 28};
}

/* The common value has the first slots, the others follow in order. */
static void make_symbols(const cas_entropy_model *model, cas_entropy_symbol symbols[256]) {
    uint32_t start = model->common < 0 ? 0 : model->freqs[model->common];
    for (int32_t s = 0; s < 256; s++) {
        const uint32_t freq = model->freqs[s];
        symbols[s] = symbol_of(s == model->common ? 0 : start, freq, model->bits);
        if (s != model->common) start += freq;
    }
}

static void make_decoder(const cas_entropy_model *model, cas_entropy_decoder *decoder) {
    uint32_t *slot = decoder->slots;
    decoder->bits = model->bits;
    decoder->common_freq = 0;
    if (model->common >= 0) {
        decoder->common_freq = model->freqs[model->common];
        *slot++ = (uint32_t)model->common << 24;
    }
    for (int32_t s = 0; s < 256; s++) {
        if (s == model->common) continue;
        /* Reading the head has checked that there are no more of these than slots. */
        const uint32_t freq = model->freqs[s];
        for (uint32_t offset = 0; offset < freq; offset++) *slot++ = (uint32_t)s << 24 | freq << 12 | offset;
    }
}

cas_status cas_entropy_encode_with(const cas_entropy_model *model, const uint8_t *src, size_t src_len, uint8_t *out,
                                   size_t out_cap, size_t *out_len) {
    if (out_cap < CAS_ENTROPY_HEAD_MAX_BYTES + CAS_ENTROPY_STATES_BYTES + CAS_ENTROPY_GROUP_BYTES) {
        return CAS_ERR_CAPACITY;
    }
    cas_entropy_symbol symbols[256];
    uint32_t states[CAS_ENTROPY_LANES];
    make_symbols(model, symbols);
    for (size_t lane = 0; lane < CAS_ENTROPY_LANES; lane++) states[lane] = CAS_ENTROPY_LOW;

    const size_t head_len = cas_entropy_put_head(model, out);
    uint8_t *const floor = out + head_len + CAS_ENTROPY_STATES_BYTES;
    uint8_t *const top = out + out_cap;
    uint8_t *at = top;
    /* A decoder meets the symbols in order, so the encoder takes them from the end, and writes backwards. */
    const size_t groups = src_len / CAS_ENTROPY_LANES;
    for (size_t i = src_len; i-- > groups * CAS_ENTROPY_LANES;) {
        const size_t lane = i % CAS_ENTROPY_LANES;
        states[lane] = cas_entropy_push(states[lane], symbols[src[i]], model->bits, &at);
    }
    at = cas_kernels()->push_groups(src, groups, symbols, model->bits, states, floor, at);
    if (at == NULL) return CAS_ERR_CAPACITY;
    memcpy(out + head_len, states, CAS_ENTROPY_STATES_BYTES);
    cas_copy_down(floor, at, (size_t)(top - at));
    *out_len = (size_t)(floor - out) + (size_t)(top - at);
    return CAS_OK;
}

cas_status cas_entropy_encode(const uint8_t *src, size_t src_len, uint8_t *out, size_t out_cap, size_t *out_len) {
    if ((src == NULL && src_len != 0) || (out == NULL && out_cap != 0) || out_len == NULL) return CAS_ERR_NULL;
    if (src_len > CAS_ENTROPY_MAX_BYTES) return CAS_ERR_SIZE;
    if (cas_ranges_overlap(src, src_len, out, out_cap)) return CAS_ERR_OVERLAP;
    if (src_len == 0) {
        *out_len = 0;
        return CAS_OK;
    }
    uint64_t counts[256];
    cas_entropy_model model;
    const cas_status status = cas_histogram(src, src_len, counts, 256);
    if (status != CAS_OK) return status;
    cas_entropy_fit(counts, src_len, &model);
    return cas_entropy_encode_with(&model, src, src_len, out, out_cap, out_len);
}

/* What fills no group, with a check of every word; then the end of the stream. */
static cas_status pop_rest(const cas_entropy_decoder *decoder, uint32_t states[CAS_ENTROPY_LANES], const uint8_t *at,
                           const uint8_t *end, uint8_t *out, size_t count) {
    for (size_t lane = 0; lane < count; lane++) {
        uint32_t x = cas_entropy_pop(states[lane], decoder, out + lane);
        if (x < CAS_ENTROPY_LOW) {
            uint16_t word;
            if (end - at < 2) return CAS_ERR_DATA;
            memcpy(&word, at, 2);
            x = x << 16 | word;
            at += 2;
        }
        states[lane] = x;
    }
    /* A whole stream ends where the encoder began: a weak check that costs nothing. */
    if (at != end) return CAS_ERR_DATA;
    for (size_t lane = 0; lane < CAS_ENTROPY_LANES; lane++) {
        if (states[lane] != CAS_ENTROPY_LOW) return CAS_ERR_DATA;
    }
    return CAS_OK;
}

static cas_status pop_all(const cas_entropy_decoder *decoder, uint32_t states[CAS_ENTROPY_LANES], const uint8_t *at,
                          const uint8_t *end, uint8_t *out, size_t out_len) {
    const size_t groups = out_len / CAS_ENTROPY_LANES;
    size_t done = cas_kernels()->pop_groups(&at, end, decoder, states, out, groups);
    if (done == groups)
        return pop_rest(decoder, states, at, end, out + done * CAS_ENTROPY_LANES, out_len % CAS_ENTROPY_LANES);
    /* Fewer than 64 bytes of words are left, which may yet be thousands of symbols. Zeros behind a copy of them let the
     * kernel go on until it has used a word that is none. */
    uint8_t last[2 * CAS_ENTROPY_GROUP_BYTES] = {0};
    const size_t left = (size_t)(end - at);
    memcpy(last, at, left);
    at = last;
    uint8_t *const rest = out + done * CAS_ENTROPY_LANES;
    done = cas_kernels()->pop_groups(&at, last + left + CAS_ENTROPY_GROUP_BYTES, decoder, states, rest, groups - done);
    if ((size_t)(at - last) > left) return CAS_ERR_DATA;
    /* It stops early only behind `left`, so all groups are done. */
    return pop_rest(decoder, states, at, last + left, rest + done * CAS_ENTROPY_LANES, out_len % CAS_ENTROPY_LANES);
}

cas_status cas_entropy_decode(const uint8_t *src, size_t src_len, uint8_t *out, size_t out_len) {
    if ((src == NULL && src_len != 0) || (out == NULL && out_len != 0)) return CAS_ERR_NULL;
    if (out_len > CAS_ENTROPY_MAX_BYTES) return CAS_ERR_SIZE;
    if (cas_ranges_overlap(src, src_len, out, out_len)) return CAS_ERR_OVERLAP;
    if (out_len == 0) return src_len == 0 ? CAS_OK : CAS_ERR_DATA;

    cas_entropy_model model;
    cas_entropy_decoder decoder;
    uint32_t states[CAS_ENTROPY_LANES];
    const size_t head_len = cas_entropy_get_head(src, src_len, &model);
    if (head_len == 0 || src_len - head_len < CAS_ENTROPY_STATES_BYTES) return CAS_ERR_DATA;
    memcpy(states, src + head_len, CAS_ENTROPY_STATES_BYTES);
    for (size_t lane = 0; lane < CAS_ENTROPY_LANES; lane++) {
        /* A state in range stays in range with one word per step, whatever the words are. */
        if (states[lane] < CAS_ENTROPY_LOW || states[lane] >> CAS_ENTROPY_STATE_BITS != 0) return CAS_ERR_DATA;
    }
    make_decoder(&model, &decoder);
    const uint8_t *at = src + head_len + CAS_ENTROPY_STATES_BYTES;
    return pop_all(&decoder, states, at, src + src_len, out, out_len);
}
