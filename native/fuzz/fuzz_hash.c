/* Streaming, batches and every kernel must agree with the portable one-shot hash. The first bytes choose the cuts:
   64 at most, of 64 KiB at most, since an execution that takes longer tells less than the many it stands in for. */
#include <stdlib.h>
#include <string.h>

#include "casckpt.h"

static uint8_t *exact(const uint8_t *from, size_t len) {
    uint8_t *copy = malloc(len == 0 ? 1 : len);
    if (copy == NULL) abort();
    if (len != 0) memcpy(copy, from, len);
    return copy;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_len);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_len) {
    if (input_len < 4) return 0;
    const size_t part = input_len - 4;
    const size_t repeat = 1 + (input[1] & 63) % (1 + 65536 / (part + 1));
    const size_t step = 1 + input[0] * (size_t)23 + part * repeat / 64;
    const uint32_t mode = input[2] & 1 ? CAS_MODE_KEYED : CAS_MODE_HASH;
    const size_t len = part * repeat;
    uint8_t key[32] = {0};
    const uint8_t *mode_key = mode == CAS_MODE_KEYED ? key : NULL;
    const size_t key_len = mode == CAS_MODE_KEYED ? 32 : 0;
    uint8_t *data = exact(input, 0);
    data = realloc(data, len == 0 ? 1 : len);
    if (data == NULL) abort();
    for (size_t i = 0; i < repeat; i++) memcpy(data + i * part, input + 4, part);
    uint8_t expected[32];
    uint8_t got[32];
    const size_t count = len / step + (len % step != 0);
    uint8_t *expected_ids = exact(input, 0);
    expected_ids = realloc(expected_ids, 32 * count + 1);
    if (expected_ids == NULL) abort();
    for (int32_t kernel = 0; kernel < CAS_KERNEL_COUNT; kernel++) {
        if (cas_kernel_use(kernel) != CAS_OK) continue;
        if (cas_hash(mode, mode_key, key_len, data, len, got, 32) != CAS_OK) abort();
        if (kernel == 0) memcpy(expected, got, 32);
        if (memcmp(expected, got, 32) != 0) abort();
        cas_hasher hasher;
        if (cas_hasher_init(&hasher, mode, mode_key, key_len) != CAS_OK) abort();
        for (size_t at = 0; at < len; at += step) {
            const size_t take = len - at < step ? len - at : step;
            uint8_t *piece = exact(data + at, take);
            if (cas_hasher_update(&hasher, piece, take) != CAS_OK) abort();
            free(piece);
        }
        if (cas_hasher_finish(&hasher, got, 32) != CAS_OK || memcmp(expected, got, 32) != 0) abort();
        uint8_t *ids = malloc(32 * count + (count == 0));
        if (ids == NULL) abort();
        if (cas_hash_grid(mode, mode_key, key_len, data, len, step, ids, 32 * count) != CAS_OK) abort();
        if (kernel == 0) memcpy(expected_ids, ids, 32 * count);
        if (memcmp(expected_ids, ids, 32 * count) != 0) abort();
        free(ids);
    }
    free(expected_ids);
    free(data);
    return 0;
}
