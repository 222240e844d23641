/* blake3_batch.c: many inputs per call, gathered so that all lanes have work.
 *
 * Inputs of a few KiB leave most lanes idle when hashed one by one. So the chunks of several inputs are gathered until
 * a batch is full, hashed together (whole chunks in one run, those cut short in another), and the trees are reduced
 * together, level by level. Joining neighbours and carrying an odd last value up gives the tree of the specification,
 * whose left subtree is always the largest power of two.
 *
 * Source: the BLAKE3 paper, sections 2.4 (tree) and 5.3 (SIMD over chunks).
 */
#include "batch.h"

void cas_batch_init(cas_batch *self, const cas_hasher *fresh) {
    memcpy(self->key, fresh->key, sizeof self->key);
    self->mode = fresh->mode;
    self->kernels = cas_kernels();
    self->slots_used = 0;
    self->whole_count = 0;
    self->short_count = 0;
    self->trees_count = 0;
}

/* Queue the chunk at `data` for slot or, when it is a whole input, for `root_out`. */
static void queue_short(cas_batch *self, const uint8_t *data, size_t len, uint64_t counter, size_t slot,
                        uint8_t *root_out) {
    const size_t at = self->short_count++;
    uint8_t *copy = self->short_data + at * CAS_B3_CHUNK;
    const size_t padded = len == 0 ? CAS_B3_BLOCK : (len + CAS_B3_BLOCK - 1) / CAS_B3_BLOCK * CAS_B3_BLOCK;
    if (len != 0) memcpy(copy, data, len);
    memset(copy + len, 0, padded - len);
    self->short_inputs[at] = copy;
    self->short_lens[at] = (uint32_t)len;
    self->short_counters[at] = counter;
    self->short_roots[at] = root_out == NULL ? 0 : CAS_B3_ROOT;
    self->short_outs[at] = root_out == NULL ? self->values + slot * CAS_B3_VALUE : root_out;
}

static void hash_chunks(cas_batch *self) {
    self->kernels->many(self->inputs, self->counters, self->whole_count, CAS_B3_CHUNK / CAS_B3_BLOCK, self->key,
                        self->mode, CAS_B3_CHUNK_START, CAS_B3_CHUNK_END, self->scratch);
    for (size_t i = 0; i < self->whole_count; i++) {
        memcpy(self->values + self->whole_slots[i] * CAS_B3_VALUE, self->scratch + i * CAS_B3_VALUE, CAS_B3_VALUE);
    }
    self->kernels->ragged(self->short_inputs, self->short_lens, self->short_counters, self->short_roots,
                          self->short_count, self->key, self->mode, self->scratch);
    for (size_t i = 0; i < self->short_count; i++) {
        memcpy(self->short_outs[i], self->scratch + i * CAS_B3_VALUE, CAS_B3_VALUE);
    }
}

/* One level: parents of all trees that still have more than two values. False when there was none. */
static bool reduce_level(cas_batch *self) {
    size_t parents = 0;
    for (size_t t = 0; t < self->trees_count; t++) {
        const cas_batch_tree *tree = &self->trees[t];
        for (size_t pair = 0; tree->count > 2 && pair < tree->count / 2; pair++) {
            self->inputs[parents++] = self->values + (tree->first + 2 * pair) * CAS_B3_VALUE;
        }
    }
    if (parents == 0) return false;
    self->kernels->many(self->inputs, self->counters, parents, 1, self->key, self->mode | CAS_B3_PARENT, 0, 0,
                        self->scratch);
    const uint8_t *next = self->scratch;
    for (size_t t = 0; t < self->trees_count; t++) {
        cas_batch_tree *tree = &self->trees[t];
        if (tree->count <= 2) continue;
        const size_t pairs = tree->count / 2;
        uint8_t *values = self->values + tree->first * CAS_B3_VALUE;
        if (tree->count % 2 == 1) {
            memcpy(values + pairs * CAS_B3_VALUE, values + (tree->count - 1) * CAS_B3_VALUE, CAS_B3_VALUE);
        }
        memcpy(values, next, pairs * CAS_B3_VALUE);
        next += pairs * CAS_B3_VALUE;
        tree->count = pairs + tree->count % 2;
    }
    return true;
}

void cas_batch_flush(cas_batch *self) {
    hash_chunks(self);
    memset(self->counters, 0, sizeof self->counters); /* parents count from 0 */
    while (reduce_level(self)) {
    }
    for (size_t t = 0; t < self->trees_count; t++) {
        self->inputs[t] = self->values + self->trees[t].first * CAS_B3_VALUE;
    }
    self->kernels->many(self->inputs, self->counters, self->trees_count, 1, self->key,
                        self->mode | CAS_B3_PARENT | CAS_B3_ROOT, 0, 0, self->scratch);
    for (size_t t = 0; t < self->trees_count; t++) {
        memcpy(self->trees[t].out, self->scratch + t * CAS_B3_VALUE, CAS_B3_VALUE);
    }
    self->slots_used = 0;
    self->whole_count = 0;
    self->short_count = 0;
    self->trees_count = 0;
}

bool cas_batch_takes(size_t len) { return len <= (size_t)CAS_BATCH_CHUNKS_MAX * CAS_B3_CHUNK; }

void cas_batch_add(cas_batch *self, const uint8_t *data, size_t len, uint8_t *out) {
    const size_t chunks = len == 0 ? 1 : (len + CAS_B3_CHUNK - 1) / CAS_B3_CHUNK;
    if (self->slots_used + chunks > CAS_BATCH_SLOTS || self->short_count == CAS_BATCH_SHORT) cas_batch_flush(self);
    if (chunks == 1) {
        queue_short(self, data, len, 0, 0, out);
        return;
    }
    const size_t first = self->slots_used;
    self->slots_used += chunks;
    self->trees[self->trees_count++] = (cas_batch_tree){.first = first, .count = chunks, .out = out};
    const size_t whole = len / CAS_B3_CHUNK;
    for (size_t i = 0; i < whole; i++) {
        self->inputs[self->whole_count] = data + i * CAS_B3_CHUNK;
        self->counters[self->whole_count] = i;
        self->whole_slots[self->whole_count] = first + i;
        self->whole_count++;
    }
    if (whole < chunks) {
        queue_short(self, data + whole * CAS_B3_CHUNK, len - whole * CAS_B3_CHUNK, whole, first + whole, NULL);
    }
}
