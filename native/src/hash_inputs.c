/* hash_inputs.c: whole inputs, one or many per call: checks, then the streaming hasher or a batch. */
#include "batch.h"

cas_status cas_hash(uint32_t mode, const uint8_t *key, size_t key_len, const uint8_t *data, size_t data_len,
                    uint8_t *out, size_t out_len) {
    if ((out == NULL && out_len != 0) || (data == NULL && data_len != 0)) return CAS_ERR_NULL;
    cas_hasher hasher;
    cas_status status = cas_hasher_init(&hasher, mode, key, key_len);
    if (status == CAS_OK) status = cas_hasher_update(&hasher, data, data_len);
    if (status == CAS_OK) status = cas_hasher_finish(&hasher, out, out_len);
    return status;
}

/* `count` ids of 32 bytes must fill `out_len` exactly. */
static cas_status check_ids(const uint8_t *out, size_t out_len, size_t count) {
    if (count > SIZE_MAX / CAS_B3_VALUE || out_len != count * CAS_B3_VALUE) return CAS_ERR_SIZE;
    return out == NULL && count != 0 ? CAS_ERR_NULL : CAS_OK;
}

/* Large inputs at once, small ones into the batch. `fresh` is copied, so its key is set up once. */
static void add_input(cas_batch *queue, const cas_hasher *fresh, const uint8_t *data, size_t len, uint8_t *out) {
    if (cas_batch_takes(len)) {
        cas_batch_add(queue, data, len, out);
        return;
    }
    cas_hasher hasher;
    memcpy(&hasher, fresh, offsetof(cas_hasher, chunk));
    (void)cas_hasher_update(&hasher, data, len); /* cannot fail: the pointers are checked */
    (void)cas_hasher_finish(&hasher, out, CAS_B3_VALUE);
}

cas_status cas_hash_grid(uint32_t mode, const uint8_t *key, size_t key_len, const uint8_t *data, size_t data_len,
                         size_t piece_len, uint8_t *out, size_t out_len) {
    if (data == NULL && data_len != 0) return CAS_ERR_NULL;
    if (piece_len == 0) return CAS_ERR_PARAMETER;
    cas_status status = check_ids(out, out_len, data_len / piece_len + (data_len % piece_len != 0));
    cas_hasher fresh;
    if (status == CAS_OK) status = cas_hasher_init(&fresh, mode, key, key_len);
    if (status != CAS_OK) return status;
    cas_batch queue;
    cas_batch_init(&queue, &fresh);
    for (size_t at = 0; at < data_len; out += CAS_B3_VALUE) {
        const size_t take = data_len - at < piece_len ? data_len - at : piece_len;
        add_input(&queue, &fresh, data + at, take, out);
        at += take;
    }
    cas_batch_flush(&queue);
    return CAS_OK;
}

cas_status cas_hash_pieces(uint32_t mode, const uint8_t *key, size_t key_len, const uint8_t *data, size_t data_len,
                           const uint64_t *ends, size_t ends_count, uint8_t *out, size_t out_len) {
    if ((data == NULL && data_len != 0) || (ends == NULL && ends_count != 0)) return CAS_ERR_NULL;
    cas_status status = check_ids(out, out_len, ends_count);
    cas_hasher fresh;
    if (status == CAS_OK) status = cas_hasher_init(&fresh, mode, key, key_len);
    uint64_t start = 0;
    for (size_t i = 0; status == CAS_OK && i < ends_count; i++) {
        if (ends[i] < start || ends[i] > data_len) status = CAS_ERR_SIZE;
        start = ends[i];
    }
    if (status != CAS_OK) return status;
    cas_batch queue;
    cas_batch_init(&queue, &fresh);
    start = 0;
    for (size_t i = 0; i < ends_count; i++) {
        const uint8_t *piece = data == NULL ? NULL : data + start;
        add_input(&queue, &fresh, piece, (size_t)(ends[i] - start), out + i * CAS_B3_VALUE);
        start = ends[i];
    }
    cas_batch_flush(&queue);
    return CAS_OK;
}

cas_status cas_hash_many(uint32_t mode, const uint8_t *key, size_t key_len, const uint8_t *const *inputs,
                         const size_t *lens, size_t count, uint8_t *out, size_t out_len) {
    if ((inputs == NULL || lens == NULL) && count != 0) return CAS_ERR_NULL;
    cas_status status = check_ids(out, out_len, count);
    cas_hasher fresh;
    if (status == CAS_OK) status = cas_hasher_init(&fresh, mode, key, key_len);
    for (size_t i = 0; status == CAS_OK && i < count; i++) {
        if (inputs[i] == NULL && lens[i] != 0) status = CAS_ERR_NULL;
    }
    if (status != CAS_OK) return status;
    cas_batch queue;
    cas_batch_init(&queue, &fresh);
    for (size_t i = 0; i < count; i++) add_input(&queue, &fresh, inputs[i], lens[i], out + i * CAS_B3_VALUE);
    cas_batch_flush(&queue);
    return CAS_OK;
}

/* Small enough that the second reader of a block finds it in L2 (256 KiB on older machines), large enough for whole
 * groups of the hash. */
enum { BLOCK_LEN = 128 * 1024 };

cas_status cas_equal_and_hash(uint32_t mode, const uint8_t *key, size_t key_len, const uint8_t *a, size_t a_len,
                              const uint8_t *b, size_t b_len, int32_t *equal, uint8_t *out, size_t out_len) {
    if ((a == NULL && a_len != 0) || (b == NULL && b_len != 0) || equal == NULL || out == NULL) return CAS_ERR_NULL;
    if (out_len != CAS_B3_VALUE) return CAS_ERR_SIZE;
    cas_hasher hasher;
    cas_status status = cas_hasher_init(&hasher, mode, key, key_len);
    bool same = a_len == b_len;
    for (size_t at = 0; status == CAS_OK && at < a_len;) {
        const size_t take = a_len - at < BLOCK_LEN ? a_len - at : BLOCK_LEN;
        if (same) same = memcmp(a + at, b + at, take) == 0;
        status = cas_hasher_update(&hasher, a + at, take);
        at += take;
    }
    if (status == CAS_OK) status = cas_hasher_finish(&hasher, out, out_len);
    if (status == CAS_OK) *equal = same ? 1 : 0;
    return status;
}
