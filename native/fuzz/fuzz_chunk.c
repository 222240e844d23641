/* Any chunk comes back through its payload, and any bytes may be taken for a payload. */
#include <stdlib.h>
#include <string.h>

#include "casckpt.h"

static uint8_t *exact(const uint8_t *from, size_t len) {
    uint8_t *copy = malloc(len == 0 ? 1 : len);
    if (copy == NULL) abort();
    if (from != NULL && len != 0) memcpy(copy, from, len);
    return copy;
}

static int32_t decode(const uint8_t *payload, size_t payload_len, const uint8_t *base, uint8_t *out, size_t len) {
    uint8_t *src = exact(payload, payload_len);
    uint8_t *scratch = exact(NULL, len);
    uint8_t *zstd = exact(NULL, len);
    memset(zstd, 7, len);
    const uint8_t *given[8];
    for (size_t p = 0; p < 8; p++) given[p] = zstd;
    const int32_t status = (int32_t)cas_chunk_decode(src, payload_len, base, len, given, 8, scratch, len, out, len);
    if (status != CAS_OK && status != CAS_ERR_DATA && status != CAS_ERR_NEWER) abort();
    free(src);
    free(scratch);
    free(zstd);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_len);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_len) {
    if (input_len < 4) return 0;
    const int32_t predictor = input[0] % 3;
    const uint32_t width = 2u << (input[0] / 3 % 3);
    const uint32_t coded = input[1];
    const uint32_t keep_q16 = (uint32_t)input[2] << 8 | 255;
    const uint32_t leave_q16 = (uint32_t)(input[1] ^ input[2]) % 4 << 14;
    const size_t len = (input_len - 3) / 2;
    uint8_t *src = exact(input + 3, len);
    uint8_t *base = exact(input + 3 + len, len);
    uint8_t *scratch = exact(NULL, len);
    uint8_t *out = exact(NULL, len + 2048);
    uint8_t *back = exact(NULL, len);
    cas_plane planes[8];
    size_t out_len = 0;
    if (cas_chunk_encode(predictor, width, src, len, base, predictor == CAS_PREDICT_NONE ? 0 : len, coded, keep_q16,
                         leave_q16, scratch, len, out, len + 2048, planes, 8, &out_len) != CAS_OK) {
        abort();
    }
    uint32_t plain = UINT32_MAX;
    uint32_t delta = UINT32_MAX;
    static uint8_t samples[3 * 65536];
    if (cas_delta_estimate(width, src, len, base, len, samples, sizeof samples, &plain, &delta) != CAS_OK) abort();
    if (plain > 8 << 16 || delta > 8 << 16) abort();
    if (out_len > len + 2 + 5 * (size_t)width + 1) abort();
    if (decode(out, out_len, base, back, len) != CAS_OK || memcmp(src, back, len) != 0) abort();
    out[input[1] % out_len] ^= (uint8_t)(1 + input[2] % 255);
    (void)decode(out, out_len, base, back, len);
    (void)decode(input + 3, input_len - 3, base, back, len);
    free(src);
    free(base);
    free(scratch);
    free(out);
    free(back);
    return 0;
}
