/* Any bytes come back through any filter, and every kernel writes the same planes. */
#include <stdlib.h>
#include <string.h>

#include "casckpt.h"

static uint8_t *exact(const uint8_t *from, size_t len) {
    uint8_t *copy = malloc(len == 0 ? 1 : len);
    if (copy == NULL) abort();
    if (from != NULL && len != 0) memcpy(copy, from, len);
    return copy;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_len);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_len) {
    if (input_len < 1) return 0;
    const int32_t predictor = input[0] % 3;
    const uint32_t width = 2u << (input[0] / 3 % 3);
    const int32_t rotate = input[0] / 9 % 2;
    const size_t len = (input_len - 1) / 2;
    const size_t base_len = predictor == CAS_PREDICT_NONE ? 0 : len;
    uint8_t *src = exact(input + 1, len);
    uint8_t *base = exact(input + 1 + len, len);
    uint8_t *first = exact(NULL, len);
    uint8_t *out = exact(NULL, len);
    uint8_t *back = exact(NULL, len);
    for (int32_t kernel = 0; kernel < CAS_KERNEL_COUNT; kernel++) {
        if (cas_kernel_use(kernel) != CAS_OK) continue;
        if (cas_planes_split(predictor, width, rotate, src, len, base, base_len, out, len) != CAS_OK) abort();
        if (kernel == 0) memcpy(first, out, len);
        if (memcmp(first, out, len) != 0) abort();
        if (cas_planes_join(predictor, width, rotate, out, len, base, base_len, back, len) != CAS_OK) abort();
        if (memcmp(src, back, len) != 0) abort();
    }
    uint64_t counts[256];
    double bits = -1.0;
    int32_t constant = -1;
    if (cas_histogram(src, len, counts, 256) != CAS_OK || cas_entropy(src, len, &bits) != CAS_OK) abort();
    if (cas_is_constant(src, len, &constant) != CAS_OK) abort();
    if (constant != (len == 0 || counts[src[0]] == len) || bits < 0.0 || bits > 8.0) abort();
    free(src);
    free(base);
    free(first);
    free(out);
    free(back);
    return 0;
}
