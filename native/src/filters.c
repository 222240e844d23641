/* filters.c: checks in front of the plane filters, the bytes that are no whole item, and plain copies. */
#include "internal.h"

static bool overlap(const uint8_t *a, const uint8_t *b, size_t len) {
    const uintptr_t from = (uintptr_t)a;
    const uintptr_t other = (uintptr_t)b;
    return len > 0 && (from < other ? other - from : from - other) < len;
}

static cas_status check(int32_t predictor, uint32_t width, const uint8_t *src, size_t len, const uint8_t *base,
                        size_t base_len, const uint8_t *out, size_t out_len) {
    const bool needs_base = predictor == CAS_PREDICT_SUB || predictor == CAS_PREDICT_XOR;
    if (!needs_base && predictor != CAS_PREDICT_NONE) return CAS_ERR_PARAMETER;
    if (width != 2 && width != 4 && width != 8) return CAS_ERR_PARAMETER;
    if (out_len != len || base_len != (needs_base ? len : 0)) return CAS_ERR_SIZE;
    if (len != 0 && (src == NULL || out == NULL || (needs_base && base == NULL))) return CAS_ERR_NULL;
    if (overlap(src, out, len) || (needs_base && overlap(base, out, len))) return CAS_ERR_OVERLAP;
    return CAS_OK;
}

/* The bytes behind the last whole item stand behind the planes, unchanged. */
static void copy_tail(const uint8_t *src, uint8_t *out, size_t len, uint32_t width) {
    const size_t tail = len % width;
    if (tail != 0) memcpy(out + len - tail, src + len - tail, tail);
}

cas_status cas_planes_split(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, size_t len,
                            const uint8_t *base, size_t base_len, uint8_t *out, size_t out_len) {
    const cas_status status = check(predictor, width, src, len, base, base_len, out, out_len);
    if (status != CAS_OK) return status;
    cas_kernels()->split(predictor, width, rotate, src, base, out, len / width);
    copy_tail(src, out, len, width);
    return CAS_OK;
}

cas_status cas_planes_join(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *planes, size_t len,
                           const uint8_t *base, size_t base_len, uint8_t *out, size_t out_len) {
    const cas_status status = check(predictor, width, planes, len, base, base_len, out, out_len);
    if (status != CAS_OK) return status;
    cas_kernels()->join(predictor, width, rotate, planes, base, out, len / width);
    copy_tail(planes, out, len, width);
    return CAS_OK;
}

cas_status cas_copy(uint8_t *dst, size_t dst_len, const uint8_t *src, size_t src_len) {
    if (dst_len != src_len) return CAS_ERR_SIZE;
    if (src_len != 0 && (dst == NULL || src == NULL)) return CAS_ERR_NULL;
    if (overlap(dst, src, src_len)) return CAS_ERR_OVERLAP;
    if (src_len != 0) memcpy(dst, src, src_len);
    return CAS_OK;
}
