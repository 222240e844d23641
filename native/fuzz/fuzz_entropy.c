/* Any bytes come back through the entropy coder, any bytes may be taken for a stream, and all kernels agree on both. */
#include <stdlib.h>
#include <string.h>

#include "casckpt.h"

static uint8_t *exact(const uint8_t *from, size_t len) {
    uint8_t *copy = malloc(len == 0 ? 1 : len);
    if (copy == NULL) abort();
    if (from != NULL && len != 0) memcpy(copy, from, len);
    return copy;
}

/* Decode under every kernel into blocks of exactly the length; the same verdict and, if it is good, the same bytes. */
static int32_t decode(const uint8_t *stream, size_t stream_len, uint8_t *out, size_t out_len) {
    uint8_t *src = exact(stream, stream_len);
    int32_t verdict = -1;
    for (int32_t kernel = 0; kernel < CAS_KERNEL_COUNT; kernel++) {
        if (cas_kernel_use(kernel) != CAS_OK) continue;
        uint8_t *back = exact(NULL, out_len);
        const cas_status status = cas_entropy_decode(src, stream_len, back, out_len);
        if (status != CAS_OK && status != CAS_ERR_DATA) abort();
        if (kernel == 0) {
            verdict = (int32_t)status;
            if (status == CAS_OK) memcpy(out, back, out_len);
        }
        if (verdict != (int32_t)status || (status == CAS_OK && memcmp(out, back, out_len) != 0)) abort();
        free(back);
    }
    free(src);
    return verdict;
}

static void round_trip(const uint8_t *input, size_t len, size_t cap) {
    uint8_t *src = exact(input, len);
    uint8_t *first = exact(NULL, cap);
    uint8_t *back = exact(NULL, len);
    size_t first_len = 0;
    int32_t verdict = -1;
    for (int32_t kernel = 0; kernel < CAS_KERNEL_COUNT; kernel++) {
        if (cas_kernel_use(kernel) != CAS_OK) continue;
        uint8_t *out = exact(NULL, cap);
        size_t out_len = 12345;
        const int32_t status = (int32_t)cas_entropy_encode(src, len, out, cap, &out_len);
        if (status != CAS_OK && (status != CAS_ERR_CAPACITY || out_len != 12345 || cap >= 705 + 2 * len)) abort();
        if (kernel == 0) {
            verdict = status;
            first_len = out_len;
            if (status == CAS_OK) memcpy(first, out, out_len);
        }
        if (status != verdict || out_len != first_len) abort();
        if (status == CAS_OK && memcmp(first, out, out_len) != 0) abort();
        free(out);
    }
    if (verdict == CAS_OK) {
        if (decode(first, first_len, back, len) != CAS_OK || memcmp(src, back, len) != 0) abort();
        /* A damaged byte is found or changes what comes out; it is never a fault of memory. */
        if (first_len > 0) {
            first[input[0] % first_len] ^= (uint8_t)(1 + input[len - 1] % 255);
            (void)decode(first, first_len, back, len);
        }
    }
    free(src);
    free(first);
    free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_len);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_len) {
    if (input_len < 3) return 0;
    const size_t claimed = (size_t)input[0] | (size_t)(input[1] & 15) << 8;
    uint8_t *out = exact(NULL, claimed);
    (void)decode(input + 2, input_len - 2, out, claimed);
    free(out);
    const size_t len = input_len - 2;
    round_trip(input + 2, len, 705 + 2 * len);
    round_trip(input + 2, len, claimed + 600);
    return 0;
}
