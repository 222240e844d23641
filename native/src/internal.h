/* internal.h: what the C files share and callers do not see. */
#ifndef CAS_INTERNAL_H
#define CAS_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "casckpt.h"

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "casckpt stores little-endian words and is built for little-endian machines only"
#endif

#if defined(__x86_64__)
#define CAS_X86 1
#else
#define CAS_X86 0
#endif
#if defined(__aarch64__)
#define CAS_ARM 1
#else
#define CAS_ARM 0
#endif

/* ---- BLAKE3 ---- */

enum {
    CAS_B3_CHUNK_START = 1,
    CAS_B3_CHUNK_END = 2,
    CAS_B3_PARENT = 4,
    CAS_B3_ROOT = 8,
    CAS_B3_BLOCK = 64,
    CAS_B3_CHUNK = 1024,
    CAS_B3_VALUE = 32,
    /* Chunks per subtree that is hashed level by level on the stack: 8 KiB of chaining values. Larger groups gain less
     * than 1 % (the levels below the vector width cost 4 kernel runs per group), smaller ones lose 3 % at 64. */
    CAS_B3_GROUP = 256
};

extern const uint32_t cas_b3_iv[8];
/* Row r is the order in which round r reads the message words. */
extern const uint8_t cas_b3_schedule[7][16];

static inline uint32_t cas_load32(const uint8_t *from) {
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

static inline uint64_t cas_load64(const uint8_t *from) {
    uint64_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

/* One compression; out[0..8] is the new chaining value, out[0..16] the extended output of a root. */
void cas_b3_compress(const uint32_t value[8], const uint8_t block[CAS_B3_BLOCK], uint32_t block_len, uint64_t counter,
                     uint32_t flags, uint32_t out[16]);

/* Hash `count` independent inputs of `blocks` whole blocks (>= 1) from the same key; input i has counters[i]. `flags`
 * goes into every block, `first` also into the first and `last` into the last. Writes 32 bytes per input to `out`,
 * which may be the memory the inputs are in, as long as value i never lies behind the end of input i. */
typedef void (*cas_b3_many_fn)(const uint8_t *const *inputs, const uint64_t *counters, size_t count, size_t blocks,
                               const uint32_t key[8], uint32_t flags, uint32_t first, uint32_t last, uint8_t *out);

void cas_b3_many_portable(const uint8_t *const *inputs, const uint64_t *counters, size_t count, size_t blocks,
                          const uint32_t key[8], uint32_t flags, uint32_t first, uint32_t last, uint8_t *out);
void cas_b3_many_sse41(const uint8_t *const *inputs, const uint64_t *counters, size_t count, size_t blocks,
                       const uint32_t key[8], uint32_t flags, uint32_t first, uint32_t last, uint8_t *out);
void cas_b3_many_avx2(const uint8_t *const *inputs, const uint64_t *counters, size_t count, size_t blocks,
                      const uint32_t key[8], uint32_t flags, uint32_t first, uint32_t last, uint8_t *out);
void cas_b3_many_avx512(const uint8_t *const *inputs, const uint64_t *counters, size_t count, size_t blocks,
                        const uint32_t key[8], uint32_t flags, uint32_t first, uint32_t last, uint8_t *out);
void cas_b3_many_neon(const uint8_t *const *inputs, const uint64_t *counters, size_t count, size_t blocks,
                      const uint32_t key[8], uint32_t flags, uint32_t first, uint32_t last, uint8_t *out);

/* Hash `count` chunks of lens[i] <= 1024 bytes; each must be readable up to 1,024, and zero from its end to the end of
 * its last block. roots[i] is CAS_B3_ROOT for a chunk that is the whole input, else 0. Writes 32 bytes per chunk. */
typedef void (*cas_b3_ragged_fn)(const uint8_t *const *chunks, const uint32_t *lens, const uint64_t *counters,
                                 const uint32_t *roots, size_t count, const uint32_t key[8], uint32_t flags,
                                 uint8_t *out);

void cas_b3_ragged_portable(const uint8_t *const *chunks, const uint32_t *lens, const uint64_t *counters,
                       const uint32_t *roots, size_t count, const uint32_t key[8], uint32_t flags, uint8_t *out);
void cas_b3_ragged_sse41(const uint8_t *const *chunks, const uint32_t *lens, const uint64_t *counters,
                       const uint32_t *roots, size_t count, const uint32_t key[8], uint32_t flags, uint8_t *out);
void cas_b3_ragged_avx2(const uint8_t *const *chunks, const uint32_t *lens, const uint64_t *counters,
                       const uint32_t *roots, size_t count, const uint32_t key[8], uint32_t flags, uint8_t *out);
void cas_b3_ragged_avx512(const uint8_t *const *chunks, const uint32_t *lens, const uint64_t *counters,
                       const uint32_t *roots, size_t count, const uint32_t key[8], uint32_t flags, uint8_t *out);
void cas_b3_ragged_neon(const uint8_t *const *chunks, const uint32_t *lens, const uint64_t *counters,
                       const uint32_t *roots, size_t count, const uint32_t key[8], uint32_t flags, uint8_t *out);

/* ---- filters ---- */

/* Item loops over `items` whole items; parameters are already checked. `base` is unused for CAS_PREDICT_NONE. */
typedef void (*cas_planes_fn)(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src,
                              const uint8_t *base, uint8_t *out, size_t items);

void cas_split_portable(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, const uint8_t *base,
                        uint8_t *out, size_t items);
void cas_join_portable(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, const uint8_t *base,
                       uint8_t *out, size_t items);
void cas_split_avx2(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, const uint8_t *base,
                    uint8_t *out, size_t items);
void cas_join_avx2(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, const uint8_t *base,
                   uint8_t *out, size_t items);
void cas_split_avx512(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, const uint8_t *base,
                      uint8_t *out, size_t items);
void cas_join_avx512(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, const uint8_t *base,
                     uint8_t *out, size_t items);

/* ---- dispatch ---- */

typedef struct {
    cas_b3_many_fn many;
    cas_b3_ragged_fn ragged;
    cas_planes_fn split;
    cas_planes_fn join;
} cas_kernel_set;

/* The functions of the kernel in use. The reference stays valid for ever. */
const cas_kernel_set *cas_kernels(void);

#endif
