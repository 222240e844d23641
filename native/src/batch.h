/* batch.h: a queue of inputs to be hashed together; see blake3_batch.c. */
#ifndef CAS_BATCH_H
#define CAS_BATCH_H

#include "internal.h"

/* 256 slots are 32 runs of 8 lanes; 16 short chunks one run of the widest kernel. All of it is 44 KiB of stack. Inputs
 * of more than 64 chunks fill the lanes on their own. */
enum { CAS_BATCH_SLOTS = 256, CAS_BATCH_SHORT = 16, CAS_BATCH_CHUNKS_MAX = 64 };

typedef struct {
    size_t first; /* slot of the tree's first value */
    size_t count; /* values left */
    uint8_t *out;
} cas_batch_tree;

typedef struct {
    uint32_t key[8];
    uint32_t mode;
    const cas_kernel_set *kernels;
    size_t slots_used;
    size_t whole_count;
    size_t short_count;
    size_t trees_count;
    const uint8_t *inputs[CAS_BATCH_SLOTS];
    uint64_t counters[CAS_BATCH_SLOTS];
    size_t whole_slots[CAS_BATCH_SLOTS];
    uint8_t values[CAS_BATCH_SLOTS * CAS_B3_VALUE];
    uint8_t scratch[CAS_BATCH_SLOTS * CAS_B3_VALUE];
    uint8_t short_data[CAS_BATCH_SHORT * CAS_B3_CHUNK];
    const uint8_t *short_inputs[CAS_BATCH_SHORT];
    uint32_t short_lens[CAS_BATCH_SHORT];
    uint64_t short_counters[CAS_BATCH_SHORT];
    uint32_t short_roots[CAS_BATCH_SHORT];
    uint8_t *short_outs[CAS_BATCH_SHORT];
    cas_batch_tree trees[CAS_BATCH_SLOTS / 2]; /* a tree has at least two chunks */
} cas_batch;

/* Start an empty batch with the key and mode of a hasher just initialised. */
void cas_batch_init(cas_batch *self, const cas_hasher *fresh);
/* Whether an input of `len` bytes may be added. */
bool cas_batch_takes(size_t len);
/* Queue an input; its 32-byte id is in `out` after the next flush at the latest. `data` must live until then. */
void cas_batch_add(cas_batch *self, const uint8_t *data, size_t len, uint8_t *out);
/* Finish all that is queued. */
void cas_batch_flush(cas_batch *self);

#endif
