/* The set agrees with a plain search, through growth. One input byte makes one id, so repeats and 0 are common. */
#include <stdlib.h>
#include <string.h>

#include "casckpt.h"

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_len);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_len) {
    int seen[256] = {0};
    size_t slots = 16;
    uint64_t used = 0;
    uint64_t *table = calloc(slots + 1, sizeof *table);
    if (table == NULL) abort();
    for (size_t i = 0; i < input_len; i++) {
        uint8_t *id = calloc(1, 32);
        if (id == NULL) abort();
        id[7] = input[i]; /* high byte: all ids want the same slot */
        uint8_t found = 2;
        uint64_t added = 0;
        if (cas_prefix_contains(table, slots, id, 32, &found, 1) != CAS_OK || found != seen[input[i]]) abort();
        if (cas_prefix_add(table, slots, &used, id, 32, &added) == CAS_ERR_CAPACITY) {
            uint64_t *larger = calloc(2 * slots + 1, sizeof *larger);
            if (larger == NULL || cas_prefix_rehash(table, slots, larger, 2 * slots) != CAS_OK) abort();
            free(table);
            table = larger;
            slots *= 2;
            if (cas_prefix_add(table, slots, &used, id, 32, &added) != CAS_OK) abort();
        }
        if (added != (seen[input[i]] ? 0 : 1)) abort();
        seen[input[i]] = 1;
        free(id);
    }
    free(table);
    return 0;
}
