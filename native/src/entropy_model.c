/* entropy_model.c: from byte counts to frequencies, what they will cost, and their form in the stream. */
#include "entropy.h"

/* log2(1 + i / 64) * 2^16, rounded; i = 0..64. */
static const uint32_t log_table[65] = {
    0,     1466,  2909,  4331,  5732,  7112,  8473,  9814,  11136, 12440, 13727, 14996, 16248,
    17484, 18704, 19909, 21098, 22272, 23433, 24579, 25711, 26830, 27936, 29029, 30109, 31178,
    32234, 33279, 34312, 35334, 36346, 37346, 38336, 39316, 40286, 41246, 42196, 43137, 44068,
    44990, 45904, 46809, 47705, 48593, 49472, 50344, 51207, 52063, 52911, 53751, 54584, 55410,
    56229, 57040, 57845, 58643, 59434, 60219, 60997, 61769, 62534, 63294, 64047, 64794, 65536,
};

/* log2(x) * 2^16 for x > 0, linear between 64 steps of an octave: off by less than 0.0001. */
static uint32_t log2_q16(uint64_t x) {
    uint32_t whole = 0;
    while (x >> whole > 1) whole++;
    /* 16 bits behind the leading one, 6 of which choose the step. */
    const uint32_t fraction = (uint32_t)((whole >= 16 ? x >> (whole - 16) : x << (16 - whole)) & 0xFFFF);
    const uint32_t step = fraction >> 10;
    const uint32_t rest = fraction & 1023;
    const uint32_t low = log_table[step];
    return (whole << 16) + low + (((log_table[step + 1] - low) * rest) >> 10);
}

uint32_t cas_entropy_bits_q16(const uint64_t counts[256], uint64_t total) {
    if (total == 0) return 0;
    uint64_t sum = 0;
    const uint32_t all = log2_q16(total);
    for (size_t s = 0; s < 256; s++) {
        if (counts[s] != 0) sum += counts[s] * (all - log2_q16(counts[s]));
    }
    return (uint32_t)(sum / total);
}

uint64_t cas_entropy_words_bytes(const uint64_t counts[256], const cas_entropy_model *model) {
    uint64_t sum = 0;
    for (size_t s = 0; s < 256; s++) {
        if (counts[s] != 0) sum += counts[s] * ((model->bits << 16) - log2_q16(model->freqs[s]));
    }
    return (sum >> 19) + 1;
}

/* The value that loses least (step -1) or gains most (step +1) by the step; frequencies stay in 1..limit. The bits at
 * stake are about counts / (freq +- 1/2), compared without division. 256 if there is none. */
static size_t best_step(const uint64_t counts[256], const cas_entropy_model *model, int step) {
    const uint16_t *freqs = model->freqs;
    size_t best = 256;
    for (size_t s = 0; s < 256; s++) {
        if (freqs[s] == 0 || (step < 0 && freqs[s] == 1)) continue;
        if (step > 0 && freqs[s] == CAS_ENTROPY_SLOTS - 1 && (int32_t)s != model->common) continue;
        if (best != 256) {
            const uint64_t mine = counts[s] * (uint64_t)(2 * (int)freqs[best] + step);
            const uint64_t other = counts[best] * (uint64_t)(2 * (int)freqs[s] + step);
            if (step < 0 ? mine >= other : mine <= other) continue;
        }
        best = s;
    }
    return best;
}

void cas_entropy_fit(const uint64_t counts[256], uint64_t total, cas_entropy_model *model) {
    size_t most = 0;
    size_t kinds = 0;
    for (size_t s = 0; s < 256; s++) {
        if (counts[s] > counts[most]) most = s;
        kinds += counts[s] != 0;
    }
    const uint64_t rest = total - counts[most];
    /* The rest must fit the slots with one to spare for each value that rounding lifts to 1. */
    model->bits = CAS_ENTROPY_MIN_BITS;
    if (rest <= total / 2) model->bits++;
    if (rest <= total / 4) model->bits++;
    model->common = model->bits == CAS_ENTROPY_MIN_BITS ? -1 : (int32_t)most;

    /* Values that would round to 0 get 1, and the others share what is left: few single steps remain to be made. */
    const int32_t target = 1 << model->bits;
    uint64_t left = total;
    uint64_t slots = (uint64_t)target;
    for (size_t s = 0; s < 256; s++) {
        if (counts[s] != 0 && counts[s] << (model->bits + 1) < total) {
            left -= counts[s];
            slots--;
        }
    }
    int32_t sum = 0;
    for (size_t s = 0; s < 256; s++) {
        const uint64_t share = (counts[s] * slots + left / 2) / left;
        model->freqs[s] = (uint16_t)(share == 0 && counts[s] != 0 ? 1 : share);
        sum += model->freqs[s];
    }
    if (kinds == 1) {
        model->freqs[most] = (uint16_t)(target - 1);
        model->freqs[most == 0 ? 1 : 0] = 1;
        return;
    }
    while (sum != target) {
        const int step = sum > target ? -1 : 1;
        const size_t s = best_step(counts, model, step);
        model->freqs[s] = (uint16_t)(model->freqs[s] + step);
        sum += step;
    }
    if (model->common >= 0) {
        /* Rounding may have left more to the others than there are slots. */
        while (target - model->freqs[most] >= CAS_ENTROPY_SLOTS) {
            const uint16_t kept = model->freqs[most];
            model->freqs[most] = 1; /* so that it is not chosen */
            model->freqs[best_step(counts, model, -1)]--;
            model->freqs[most] = (uint16_t)(kept + 1);
        }
    }
}

size_t cas_entropy_put_head(const cas_entropy_model *model, uint8_t out[CAS_ENTROPY_HEAD_MAX_BYTES]) {
    const uint16_t *freqs = model->freqs;
    size_t at = 0;
    out[at++] = (uint8_t)model->bits;
    for (size_t s = 0; s < 256; s++) {
        if (freqs[s] == 0) {
            const size_t first = s;
            while (s + 1 < 256 && freqs[s + 1] == 0) s++;
            out[at++] = 0;
            out[at++] = (uint8_t)(s - first);
        } else if (freqs[s] < 128) {
            out[at++] = (uint8_t)freqs[s];
        } else {
            out[at++] = (uint8_t)(128 | freqs[s] >> 8);
            out[at++] = (uint8_t)freqs[s];
        }
    }
    return at;
}

/* The value of the largest frequency, the first of equals, as the common one; false unless the others fit the slots. */
static bool find_common(cas_entropy_model *model) {
    size_t most = 0;
    for (size_t s = 1; s < 256; s++) {
        if (model->freqs[s] > model->freqs[most]) most = s;
    }
    if (model->bits == CAS_ENTROPY_MIN_BITS) {
        model->common = -1;
        return model->freqs[most] < CAS_ENTROPY_SLOTS;
    }
    model->common = (int32_t)most;
    return (1u << model->bits) - model->freqs[most] < CAS_ENTROPY_SLOTS;
}

size_t cas_entropy_get_head(const uint8_t *src, size_t src_len, cas_entropy_model *model) {
    size_t at = 0;
    size_t s = 0;
    uint32_t sum = 0;
    memset(model, 0, sizeof *model);
    if (src_len == 0 || src[0] < CAS_ENTROPY_MIN_BITS || src[0] > CAS_ENTROPY_MAX_BITS) return 0;
    model->bits = src[at++];
    while (s < 256) {
        if (at == src_len) return 0;
        const uint32_t first = src[at++];
        if (first != 0 && first < 128) {
            model->freqs[s++] = (uint16_t)first;
            sum += first;
            continue;
        }
        if (at == src_len) return 0;
        const uint32_t second = src[at++];
        if (first == 0) {
            s += second + 1;
            continue;
        }
        /* One form only for each frequency. */
        const uint32_t freq = (first & 127u) << 8 | second;
        if (freq < 128) return 0;
        model->freqs[s++] = (uint16_t)freq;
        sum += freq;
    }
    return s == 256 && sum == 1u << model->bits && find_common(model) ? at : 0;
}
