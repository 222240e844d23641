/* The set agrees with a plain search, through growth. The first byte says how many ids a call gets, each other byte
 * makes one id, so repeats and 0 are common. */
#include <stdlib.h>
#include <string.h>

#include "casckpt.h"

enum { ID_LEN = 32, LARGEST_BATCH = 48 };

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_len);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_len) {
    if (input_len < 1) return 0;
    const size_t batch = 1 + input[0] % LARGEST_BATCH;
    int seen[256] = {0};
    size_t slots = 16;
    uint64_t used = 0;
    uint64_t *table = calloc(slots + 1, sizeof *table);
    if (table == NULL) abort();
    for (size_t start = 1; start < input_len; start += batch) {
        const size_t count = input_len - start < batch ? input_len - start : batch;
        uint8_t *ids = calloc(count, ID_LEN);
        uint8_t *found = malloc(count);
        if (ids == NULL || found == NULL) abort();
        /* The highest of the eight bytes: all ids want the same slot. */
        for (size_t i = 0; i < count; i++) ids[i * ID_LEN + 7] = input[start + i];
        memset(found, 2, count);
        if (cas_prefix_contains(table, slots, ids, count * ID_LEN, found, count) != CAS_OK) abort();
        for (size_t i = 0; i < count; i++) {
            if (found[i] != seen[input[start + i]]) abort();
        }
        uint64_t missing = 0;
        for (size_t i = 0; i < count; i++) {
            missing += seen[input[start + i]] == 0;
            seen[input[start + i]] = 1;
        }
        uint64_t added = 0;
        cas_status status = cas_prefix_add(table, slots, &used, ids, count * ID_LEN, &added);
        while (status == CAS_ERR_CAPACITY) {
            uint64_t *larger = calloc(2 * slots + 1, sizeof *larger);
            if (larger == NULL || cas_prefix_rehash(table, slots, larger, 2 * slots) != CAS_OK) abort();
            free(table);
            table = larger;
            slots *= 2;
            status = cas_prefix_add(table, slots, &used, ids, count * ID_LEN, &added);
        }
        if (status != CAS_OK || added != missing) abort();
        free(ids);
        free(found);
    }
    free(table);
    return 0;
}
