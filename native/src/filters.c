/* filters.c: checks in front of the plane filters, the bytes that are no whole item, and plain copies. */
#include "internal.h"

static cas_status check(int32_t predictor, uint32_t width, const uint8_t *base, size_t base_len, const uint8_t *out,
                        size_t out_len) {
    const bool needs_base = predictor == CAS_PREDICT_SUB || predictor == CAS_PREDICT_XOR;
    if (!needs_base && predictor != CAS_PREDICT_NONE) return CAS_ERR_PARAMETER;
    if (width != 2 && width != 4 && width != 8) return CAS_ERR_PARAMETER;
    if (base_len != (needs_base ? out_len : 0)) return CAS_ERR_SIZE;
    if (out_len != 0 && (out == NULL || (needs_base && base == NULL))) return CAS_ERR_NULL;
    return cas_ranges_overlap(base, base_len, out, out_len) ? CAS_ERR_OVERLAP : CAS_OK;
}

static cas_status check_source(const uint8_t *src, size_t len, const uint8_t *out, size_t out_len) {
    if (len != out_len) return CAS_ERR_SIZE;
    if (len != 0 && src == NULL) return CAS_ERR_NULL;
    return cas_ranges_overlap(src, len, out, out_len) ? CAS_ERR_OVERLAP : CAS_OK;
}

/* The bytes behind the last whole item stand behind the planes, unchanged. */
static void copy_tail(const uint8_t *src, uint8_t *out, size_t len, uint32_t width) {
    const size_t tail = len % width;
    if (tail != 0) memcpy(out + len - tail, src + len - tail, tail);
}

cas_status cas_planes_split(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, size_t len,
                            const uint8_t *base, size_t base_len, uint8_t *out, size_t out_len) {
    cas_status status = check(predictor, width, base, base_len, out, out_len);
    if (status == CAS_OK) status = check_source(src, len, out, out_len);
    if (status != CAS_OK) return status;
    cas_kernels()->split(predictor, width, rotate, src, base, out, len / width);
    copy_tail(src, out, len, width);
    return CAS_OK;
}

cas_status cas_planes_join(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *planes, size_t len,
                           const uint8_t *base, size_t base_len, uint8_t *out, size_t out_len) {
    cas_status status = check(predictor, width, base, base_len, out, out_len);
    if (status == CAS_OK) status = check_source(planes, len, out, out_len);
    if (status != CAS_OK) return status;
    const size_t items = len / width;
    const uint8_t *each[8] = {NULL};
    for (size_t plane = 0; plane < width && items != 0; plane++) each[plane] = planes + plane * items;
    cas_kernels()->join(predictor, width, rotate, each, base, out, items);
    copy_tail(planes, out, len, width);
    return CAS_OK;
}

cas_status cas_planes_join_from(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *const *planes,
                                size_t plane_len, const uint8_t *tail, size_t tail_len, const uint8_t *base,
                                size_t base_len, uint8_t *out, size_t out_len) {
    cas_status status = check(predictor, width, base, base_len, out, out_len);
    if (status != CAS_OK) return status;
    if (plane_len != out_len / width || tail_len != out_len % width) return CAS_ERR_SIZE;
    if (planes == NULL || (tail == NULL && tail_len != 0)) return CAS_ERR_NULL;
    for (size_t plane = 0; plane < width && plane_len != 0; plane++) {
        status = planes[plane] == NULL ? CAS_ERR_NULL : CAS_OK;
        if (cas_ranges_overlap(planes[plane], plane_len, out, out_len)) status = CAS_ERR_OVERLAP;
        if (status != CAS_OK) return status;
    }
    if (cas_ranges_overlap(tail, tail_len, out, out_len)) return CAS_ERR_OVERLAP;
    cas_kernels()->join(predictor, width, rotate, planes, base, out, plane_len);
    if (tail_len != 0) memcpy(out + out_len - tail_len, tail, tail_len);
    return CAS_OK;
}

cas_status cas_copy(uint8_t *dst, size_t dst_len, const uint8_t *src, size_t src_len) {
    if (dst_len != src_len) return CAS_ERR_SIZE;
    if (src_len != 0 && (dst == NULL || src == NULL)) return CAS_ERR_NULL;
    if (cas_ranges_overlap(dst, dst_len, src, src_len)) return CAS_ERR_OVERLAP;
    cas_copy_down(dst, src, src_len);
    return CAS_OK;
}

cas_status cas_equal(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len, int32_t *equal) {
    if ((a == NULL && a_len != 0) || (b == NULL && b_len != 0) || equal == NULL) return CAS_ERR_NULL;
    *equal = a_len == b_len && (a_len == 0 || memcmp(a, b, a_len) == 0) ? 1 : 0;
    return CAS_OK;
}
