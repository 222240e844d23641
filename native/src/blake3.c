/* blake3.c: the BLAKE3 tree over a stream of bytes.
 *
 * Outline: input gathers in 1,024-byte chunks. Whole aligned groups of 2^k chunks (at most CAS_B3_GROUP) are hashed by
 * the vector kernel and reduced level by level to one chaining value. Values of finished subtrees wait on a stack whose
 * shape is the binary form of the number of chunks, as in a counter. A value is merged only when the next one arrives,
 * because the last merge of all must carry the ROOT flag.
 *
 * Source: the BLAKE3 paper, sections 2.4 (tree), 2.5 (root and extended output), 5.1.2 (the stack).
 */
#include "internal.h"

static uint32_t count_ones(uint64_t word) { return (uint32_t)__builtin_popcountll(word); }

/* The key of KEYED and DERIVE_MATERIAL replaces the IV everywhere, parents included (section 2.3). */
cas_status cas_hasher_init(cas_hasher *hasher, uint32_t mode, const uint8_t *key, size_t key_len) {
    if (hasher == NULL) return CAS_ERR_NULL;
    if (mode == CAS_MODE_KEYED || mode == CAS_MODE_DERIVE_MATERIAL) {
        if (key == NULL) return CAS_ERR_NULL;
        if (key_len != CAS_B3_VALUE) return CAS_ERR_SIZE;
        memcpy(hasher->key, key, CAS_B3_VALUE);
    } else if (mode == CAS_MODE_HASH || mode == CAS_MODE_DERIVE_CONTEXT) {
        if (key != NULL || key_len != 0) return CAS_ERR_PARAMETER;
        memcpy(hasher->key, cas_b3_iv, CAS_B3_VALUE);
    } else {
        return CAS_ERR_PARAMETER;
    }
    hasher->mode = mode;
    hasher->chunk_len = 0;
    hasher->stack_count = 0;
    hasher->chunk_index = 0;
    return CAS_OK;
}

/* The last compression of a node, kept open: only its user knows whether it is the root. */
typedef struct {
    uint32_t value[8];
    uint8_t block[CAS_B3_BLOCK];
    uint32_t block_len;
    uint32_t flags;
    uint64_t counter;
} node;

static void node_value(const node *self, uint8_t out[CAS_B3_VALUE]) {
    uint32_t words[16];
    cas_b3_compress(self->value, self->block, self->block_len, self->counter, self->flags, words);
    memcpy(out, words, CAS_B3_VALUE);
}

static node chunk_node(const cas_hasher *hasher) {
    node self = {.counter = hasher->chunk_index, .flags = hasher->mode | CAS_B3_CHUNK_START};
    memcpy(self.value, hasher->key, CAS_B3_VALUE);
    size_t at = 0;
    for (; hasher->chunk_len - at > CAS_B3_BLOCK; at += CAS_B3_BLOCK) {
        uint32_t words[16];
        cas_b3_compress(self.value, hasher->chunk + at, CAS_B3_BLOCK, self.counter, self.flags, words);
        memcpy(self.value, words, CAS_B3_VALUE);
        self.flags = hasher->mode;
    }
    self.block_len = (uint32_t)(hasher->chunk_len - at);
    memcpy(self.block, hasher->chunk + at, self.block_len);
    self.flags |= CAS_B3_CHUNK_END;
    return self;
}

static node parent_node(const cas_hasher *hasher, const uint8_t left[CAS_B3_VALUE],
                        const uint8_t right[CAS_B3_VALUE]) {
    node self = {.block_len = CAS_B3_BLOCK, .flags = hasher->mode | CAS_B3_PARENT};
    memcpy(self.value, hasher->key, CAS_B3_VALUE);
    memcpy(self.block, left, CAS_B3_VALUE);
    memcpy(self.block + CAS_B3_VALUE, right, CAS_B3_VALUE);
    return self;
}

/* Merge until the stack is as long as the binary form of chunk_index has ones. */
static void merge_stack(cas_hasher *hasher) {
    while (hasher->stack_count > count_ones(hasher->chunk_index)) {
        uint8_t *left = hasher->stack + (hasher->stack_count - 2) * (size_t)CAS_B3_VALUE;
        const node parent = parent_node(hasher, left, left + CAS_B3_VALUE);
        node_value(&parent, left);
        hasher->stack_count--;
    }
}

static void push_value(cas_hasher *hasher, const uint8_t value[CAS_B3_VALUE], uint64_t chunks) {
    merge_stack(hasher);
    memcpy(hasher->stack + hasher->stack_count * (size_t)CAS_B3_VALUE, value, CAS_B3_VALUE);
    hasher->stack_count++;
    hasher->chunk_index += chunks;
}

/* Hash `chunks` (a power of two, at most CAS_B3_GROUP) whole chunks and reduce them to `wanted` (1 or 2) values. */
static void subtree_values(const cas_hasher *hasher, const uint8_t *data, size_t chunks, size_t wanted, uint8_t *out) {
    const cas_b3_many_fn many = cas_kernels()->many;
    const uint8_t *inputs[CAS_B3_GROUP];
    uint64_t counters[CAS_B3_GROUP];
    uint8_t values[CAS_B3_GROUP * CAS_B3_VALUE];
    for (size_t i = 0; i < chunks; i++) {
        inputs[i] = data + i * CAS_B3_CHUNK;
        counters[i] = hasher->chunk_index + i;
    }
    many(inputs, counters, chunks, CAS_B3_CHUNK / CAS_B3_BLOCK, hasher->key, hasher->mode, CAS_B3_CHUNK_START,
         CAS_B3_CHUNK_END, values);
    memset(counters, 0, chunks * sizeof counters[0]);
    for (size_t left = chunks / 2; left >= wanted; left /= 2) {
        for (size_t i = 0; i < left; i++) inputs[i] = values + i * CAS_B3_BLOCK;
        many(inputs, counters, left, 1, hasher->key, hasher->mode | CAS_B3_PARENT, 0, 0, values);
    }
    memcpy(out, values, wanted * CAS_B3_VALUE);
}

/* How many chunks to take as one subtree: a power of two that fits the input, the group and the stack's alignment. */
static size_t group_chunks(uint64_t chunk_index, size_t data_len) {
    size_t chunks = CAS_B3_GROUP;
    while (chunks > 1 && (chunks * CAS_B3_CHUNK > data_len || (chunk_index & (chunks - 1)) != 0)) chunks /= 2;
    return chunks;
}

cas_status cas_hasher_update(cas_hasher *hasher, const uint8_t *data, size_t data_len) {
    if (hasher == NULL || (data == NULL && data_len != 0)) return CAS_ERR_NULL;
    if (data_len == 0) return CAS_OK;
    if (hasher->chunk_len > 0) {
        const size_t room = CAS_B3_CHUNK - (size_t)hasher->chunk_len;
        const size_t take = data_len < room ? data_len : room;
        memcpy(hasher->chunk + hasher->chunk_len, data, take);
        hasher->chunk_len += (uint32_t)take;
        data += take;
        data_len -= take;
        if (data_len == 0) return CAS_OK;
        uint8_t value[CAS_B3_VALUE];
        const node chunk = chunk_node(hasher);
        node_value(&chunk, value);
        push_value(hasher, value, 1);
        hasher->chunk_len = 0;
    }
    while (data_len > CAS_B3_CHUNK) {
        const size_t chunks = group_chunks(hasher->chunk_index, data_len);
        /* The first subtree may turn out to be the whole input. Its two halves stay apart, for their merge would need
         * the ROOT flag then. */
        const size_t wanted = hasher->chunk_index == 0 && chunks > 1 ? 2 : 1;
        uint8_t values[2 * CAS_B3_VALUE];
        subtree_values(hasher, data, chunks, wanted, values);
        for (size_t i = 0; i < wanted; i++) push_value(hasher, values + i * CAS_B3_VALUE, chunks / wanted);
        data += chunks * CAS_B3_CHUNK;
        data_len -= chunks * CAS_B3_CHUNK;
    }
    if (data_len > 0) memcpy(hasher->chunk, data, data_len);
    hasher->chunk_len = (uint32_t)data_len;
    return CAS_OK;
}

/* The root, still open. */
static node root_node(cas_hasher *hasher) {
    if (hasher->stack_count == 0) return chunk_node(hasher);
    uint8_t right[CAS_B3_VALUE];
    uint32_t waiting = hasher->stack_count;
    if (hasher->chunk_len > 0) {
        /* The open chunk is the last one: everything before it is complete and must be merged first. */
        merge_stack(hasher);
        waiting = hasher->stack_count;
        const node chunk = chunk_node(hasher);
        node_value(&chunk, right);
    } else {
        waiting--;
        memcpy(right, hasher->stack + waiting * (size_t)CAS_B3_VALUE, CAS_B3_VALUE);
    }
    while (waiting > 1) {
        waiting--;
        const node parent = parent_node(hasher, hasher->stack + waiting * (size_t)CAS_B3_VALUE, right);
        node_value(&parent, right);
    }
    return parent_node(hasher, hasher->stack, right);
}

cas_status cas_hasher_finish(const cas_hasher *hasher, uint8_t *out, size_t out_len) {
    if (hasher == NULL || (out == NULL && out_len != 0)) return CAS_ERR_NULL;
    cas_hasher copy; /* merging changes the stack, and finishing promises not to */
    memcpy(&copy, hasher, offsetof(cas_hasher, stack));
    memcpy(copy.stack, hasher->stack, hasher->stack_count * (size_t)CAS_B3_VALUE);
    node root = root_node(&copy);
    root.flags |= CAS_B3_ROOT;
    for (size_t at = 0; at < out_len; at += CAS_B3_BLOCK) {
        uint32_t words[16];
        cas_b3_compress(root.value, root.block, root.block_len, at / CAS_B3_BLOCK, root.flags, words);
        memcpy(out + at, words, out_len - at < CAS_B3_BLOCK ? out_len - at : CAS_B3_BLOCK);
    }
    return CAS_OK;
}
