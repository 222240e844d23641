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
    /* Chunks per subtree that is hashed level by level on the stack: 16 KiB of chaining values. Larger groups gain less
     * than 1 % (the levels below the vector width cost 4 kernel runs per group), smaller ones lose 3 % at 256. */
    CAS_B3_GROUP = 512
};

extern const uint32_t cas_b3_iv[8];
/* Row r is the order in which round r reads the message words. */
extern const uint8_t cas_b3_schedule[7][16];

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

/* Whether two ranges share a byte. */
static inline bool cas_ranges_overlap(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len) {
    const uintptr_t from = (uintptr_t)a;
    const uintptr_t other = (uintptr_t)b;
    return a_len > 0 && b_len > 0 && (from < other ? other - from < a_len : from - other < b_len);
}

/* Copy to another place or to a lower address of the same memory. In pieces: C libraries copy more than some KiB with
 * `rep movsb`, which took 5 times as long on Zen 3 between addresses of different alignment (2 against 11 GB/s). */
static inline void cas_copy_down(uint8_t *to, const uint8_t *from, size_t len) {
    enum { PIECE = 1024 };
    for (; len > PIECE; len -= PIECE) {
        memmove(to, from, PIECE);
        to += PIECE;
        from += PIECE;
    }
    if (len != 0) memmove(to, from, len);
}

/* ---- chunking ---- */

/* Scan until a byte after which the hash has no bit of `mask`, a number of top bits; the bytes read. *found says
 * whether the last one cut; if not, *hash is moved on. */
typedef size_t (*cas_gear_scan_fn)(const uint64_t gear[256], const uint8_t *data, size_t len, uint64_t mask,
                                   uint64_t *hash, bool *found);

size_t cas_gear_scan_portable(const uint64_t gear[256], const uint8_t *data, size_t len, uint64_t mask, uint64_t *hash,
                              bool *found);
size_t cas_gear_scan_avx2(const uint64_t gear[256], const uint8_t *data, size_t len, uint64_t mask, uint64_t *hash,
                          bool *found);

/* ---- samples ---- */

/* Window w of `windows`: in the w-th part of the data, each at another distance from its part's start, so that rows do
 * not line up with them. A part must not be shorter than a window. */
static inline const uint8_t *cas_window_of(const uint8_t *data, size_t len, size_t window, size_t windows, size_t w) {
    const size_t part = len / windows;
    return data + w * part + w * w * 2741 % (part - window + 1);
}

/* Count the bytes of all windows; how many they are (below 2^32). */
uint64_t cas_count_windows(const uint8_t *data, size_t len, size_t window, size_t windows, uint64_t counts[256]);
/* Mark the values that occur: seen[v] becomes 1. Those marked already, which are most of what occurs, cost least. */
typedef void (*cas_mark_values_fn)(const uint8_t *data, size_t len, uint8_t seen[256]);

void cas_mark_values_portable(const uint8_t *data, size_t len, uint8_t seen[256]);
void cas_mark_values_avx2(const uint8_t *data, size_t len, uint8_t seen[256]);

/* ---- filters ---- */

/* Item loops over `items` whole items; parameters are already checked. `base` is unused for CAS_PREDICT_NONE.
 * Splitting writes plane after plane; joining takes each plane from where it is. */
typedef void (*cas_split_fn)(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src,
                             const uint8_t *base, uint8_t *out, size_t items);
typedef void (*cas_join_fn)(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *const *planes,
                            const uint8_t *base, uint8_t *out, size_t items);

void cas_split_portable(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, const uint8_t *base,
                        uint8_t *out, size_t items);
void cas_join_portable(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *const *planes,
                       const uint8_t *base, uint8_t *out, size_t items);
void cas_split_avx2(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, const uint8_t *base,
                    uint8_t *out, size_t items);
void cas_join_avx2(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *const *planes,
                   const uint8_t *base, uint8_t *out, size_t items);

/* ---- entropy coder; entropy.h has the rest ---- */

/* x / freq == mulhi(2 * x, inverse) >> shift for every state x before a step, and the next state is
 * x + start + (x / freq) * (2^bits - freq). `packed` is start: bits 0-13 | 2^bits - freq: bits 14-27 | shift: 28-31. */
typedef struct {
    uint32_t inverse;
    uint32_t packed;
} cas_entropy_symbol;

/* Offset in the symbol's interval: bits 0-11 | freq: bits 12-23 | symbol: bits 24-31. Without a common value slot i is
 * slots[i]; with one, the slots below common_freq are its own, slots[0] holds it with 0 for the rest, and slot
 * common_freq + i is slots[1 + i]. */
typedef struct {
    uint32_t slots[4096];
    uint32_t bits;
    uint32_t common_freq;
} cas_entropy_decoder;

/* Push `groups` groups of 32 bytes, the last group first, and put words before `at`; the place of the last word, or
 * NULL when less than 64 bytes were left above `floor` before a group. What is above `floor` may be overwritten. */
typedef uint8_t *(*cas_push_groups_fn)(const uint8_t *src, size_t groups, const cas_entropy_symbol symbols[256],
                                       uint32_t bits, uint32_t states[32], uint8_t *floor, uint8_t *at);
/* Pop groups while 64 bytes of words are left; how many were. Moves *src behind the words it used. */
typedef size_t (*cas_pop_groups_fn)(const uint8_t **src, const uint8_t *end, const cas_entropy_decoder *decoder,
                                    uint32_t states[32], uint8_t *out, size_t groups);

uint8_t *cas_entropy_push_groups_portable(const uint8_t *src, size_t groups, const cas_entropy_symbol symbols[256],
                                          uint32_t bits, uint32_t states[32], uint8_t *floor, uint8_t *at);
size_t cas_entropy_pop_groups_portable(const uint8_t **src, const uint8_t *end, const cas_entropy_decoder *decoder,
                                       uint32_t states[32], uint8_t *out, size_t groups);
uint8_t *cas_entropy_push_groups_avx2(const uint8_t *src, size_t groups, const cas_entropy_symbol symbols[256],
                                      uint32_t bits, uint32_t states[32], uint8_t *floor, uint8_t *at);
size_t cas_entropy_pop_groups_avx2(const uint8_t **src, const uint8_t *end, const cas_entropy_decoder *decoder,
                                   uint32_t states[32], uint8_t *out, size_t groups);

/* ---- dispatch ---- */

typedef struct {
    cas_b3_many_fn many;
    cas_b3_ragged_fn ragged;
    cas_gear_scan_fn gear_scan;
    cas_mark_values_fn mark_values;
    cas_split_fn split;
    cas_join_fn join;
    cas_push_groups_fn push_groups;
    cas_pop_groups_fn pop_groups;
} cas_kernel_set;

/* The functions of the kernel in use. The reference stays valid for ever. */
const cas_kernel_set *cas_kernels(void);

#endif
