/* entropy_portable.c: whole groups of 32 symbols in plain C; the definition of what the other kernels do. */
#include "entropy.h"

uint8_t *cas_entropy_push_groups_portable(const uint8_t *src, size_t groups, const cas_entropy_symbol symbols[256],
                                          uint32_t bits, uint32_t states[32], uint8_t *floor, uint8_t *at) {
    uint32_t x[CAS_ENTROPY_LANES];
    memcpy(x, states, sizeof x);
    while (groups-- > 0) {
        if ((size_t)(at - floor) < CAS_ENTROPY_GROUP_BYTES) return NULL;
        const uint8_t *group = src + groups * CAS_ENTROPY_LANES;
        for (size_t lane = CAS_ENTROPY_LANES; lane-- > 0;) {
            x[lane] = cas_entropy_push(x[lane], symbols[group[lane]], bits, &at);
        }
    }
    memcpy(states, x, sizeof x);
    return at;
}

size_t cas_entropy_pop_groups_portable(const uint8_t **src, const uint8_t *end, const cas_entropy_decoder *decoder,
                                       uint32_t states[32], uint8_t *out, size_t groups) {
    const uint8_t *at = *src;
    uint32_t x[CAS_ENTROPY_LANES];
    size_t done = 0;
    memcpy(x, states, sizeof x);
    for (; done < groups && (size_t)(end - at) >= CAS_ENTROPY_GROUP_BYTES; done++) {
        for (size_t lane = 0; lane < CAS_ENTROPY_LANES; lane++) {
            const uint32_t popped = cas_entropy_pop(x[lane], decoder, out + done * CAS_ENTROPY_LANES + lane);
            /* Without a branch: it would be mispredicted. */
            const uint32_t due = popped < CAS_ENTROPY_LOW;
            uint16_t word;
            memcpy(&word, at, 2);
            x[lane] = popped << (16 * due) | (word & (0u - due));
            at += 2 * due;
        }
    }
    memcpy(states, x, sizeof x);
    *src = at;
    return done;
}
