/* estimate.c: does a difference pay? Asked of samples, before a chunk is coded. */
#include "entropy.h"

enum { WINDOWS = 16, WINDOW_BYTES = 4096, SAMPLE_BYTES = WINDOWS * WINDOW_BYTES };

/* Bring the windows of a chunk together; return their length. They begin on bounds of items. */
static size_t collect(const uint8_t *src, size_t len, uint8_t *out) {
    if (len <= SAMPLE_BYTES) {
        cas_copy_down(out, src, len);
        return len;
    }
    for (size_t w = 0; w < WINDOWS; w++) {
        const size_t at = (size_t)(cas_window_of(src, len, WINDOW_BYTES, WINDOWS, w) - src) / 8 * 8;
        cas_copy_down(out + w * WINDOW_BYTES, src + at, WINDOW_BYTES);
    }
    return SAMPLE_BYTES;
}

static uint32_t mean_bits_q16(int32_t predictor, uint32_t width, const uint8_t *src, const uint8_t *base, size_t items,
                              uint8_t *planes) {
    uint64_t counts[256];
    uint32_t sum = 0;
    cas_kernels()->split(predictor, width, 1, src, base, planes, items);
    for (size_t p = 0; p < width; p++) {
        (void)cas_histogram(planes + p * items, items, counts, 256);
        sum += cas_entropy_bits_q16(counts, items);
    }
    return sum / width;
}

cas_status cas_delta_estimate(uint32_t width, const uint8_t *src, size_t src_len, const uint8_t *base, size_t base_len,
                              uint8_t *scratch, size_t scratch_len, uint32_t *plain_q16, uint32_t *delta_q16) {
    if (width != 2 && width != 4 && width != 8) return CAS_ERR_PARAMETER;
    if (base_len != src_len || src_len > CAS_ENTROPY_MAX_BYTES || scratch_len < 3 * SAMPLE_BYTES) return CAS_ERR_SIZE;
    if (src_len != 0 && (src == NULL || base == NULL)) return CAS_ERR_NULL;
    if (scratch == NULL || plain_q16 == NULL || delta_q16 == NULL) return CAS_ERR_NULL;
    if (cas_ranges_overlap(scratch, scratch_len, src, src_len) ||
        cas_ranges_overlap(scratch, scratch_len, base, base_len)) {
        return CAS_ERR_OVERLAP;
    }
    uint8_t *const news = scratch;
    uint8_t *const olds = scratch + SAMPLE_BYTES;
    uint8_t *const planes = scratch + 2 * SAMPLE_BYTES;
    const size_t items = collect(src, src_len, news) / width;
    (void)collect(base, base_len, olds);
    *plain_q16 = mean_bits_q16(CAS_PREDICT_NONE, width, news, olds, items, planes);
    *delta_q16 = mean_bits_q16(CAS_PREDICT_SUB, width, news, olds, items, planes);
    return CAS_OK;
}
