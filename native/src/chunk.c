/* chunk.c: a chunk to the payload of encoding `planes` and back, all planes in one call. */
#include "entropy.h"

enum {
    HEAD_BYTES = 2,
    PLANE_HEAD_BYTES = 5, /* method u8, length u32 */
    ROTATED = 0x80,
    PLANES_MAX = 8,
    /* 32 KiB of a plane tell its entropy to 0.01 bits, and cost an eighth of a full count. */
    WINDOWS = 8,
    WINDOW_BYTES = 4096,
    /* A quarter of a plane tells its frequencies: the streams come out 0.02 % longer than by a full count. */
    COUNTED_BYTES = 1024,
    COUNTED_PART = 4096,
    /* Sampling may be off by this much (0.06 bits, in 2^-16): the full count decides. */
    MARGIN_Q16 = 3932,
    REPEAT_WINDOW = 8192,
    REPEAT_BYTES = 16,
    REPEAT_SLOTS = REPEAT_WINDOW,
    REPEAT_BITS = 13
};
_Static_assert(REPEAT_SLOTS == 1 << REPEAT_BITS, "a hash of REPEAT_BITS bits names every slot");
_Static_assert(REPEAT_WINDOW <= 1 << 16, "a slot holds a place in the window");

static bool sampled(size_t len) { return len > 2 * WINDOWS * WINDOW_BYTES; }

static uint64_t count_sample(const uint8_t *plane, size_t len, uint64_t counts[256]) {
    if (sampled(len)) return cas_count_windows(plane, len, WINDOW_BYTES, WINDOWS, counts);
    (void)cas_histogram(plane, len, counts, 256);
    return len;
}

/* Frequencies from a part of a long plane; values that occur elsewhere count once. The sum of the counts. */
static uint64_t count_part(const uint8_t *plane, size_t len, uint64_t counts[256]) {
    uint64_t total = cas_count_windows(plane, len, COUNTED_BYTES, len / COUNTED_PART, counts);
    size_t missing = 0;
    for (size_t s = 0; s < 256; s++) missing += counts[s] == 0;
    if (missing == 0) return total;
    uint8_t seen[256];
    for (size_t s = 0; s < 256; s++) seen[s] = counts[s] != 0;
    cas_kernels()->mark_values(plane, len, seen);
    for (size_t s = 0; s < 256; s++) {
        if (counts[s] == 0 && seen[s]) {
            counts[s] = 1;
            total++;
        }
    }
    return total;
}

/* Bytes of a stretch that differ from the one before. */
static size_t count_changes(const uint8_t *plane, size_t len) {
    size_t changes = 0;
    for (size_t i = 1; i < len; i++) changes += plane[i] != plane[i - 1];
    return changes;
}

/* Positions of a stretch that repeat 16 bytes seen before in it. */
static size_t count_repeats(const uint8_t *plane, size_t len) {
    uint16_t last[REPEAT_SLOTS] = {0};
    size_t repeats = 0;
    for (size_t i = 0; i + REPEAT_BYTES <= len;) {
        const uint64_t hash = cas_load64(plane + i) * 0x9E3779B97F4A7C15u; /* Fibonacci hashing: 2^64 / golden ratio */
        uint16_t *const slot = last + (hash >> (64 - REPEAT_BITS));
        const size_t before = *slot;
        *slot = (uint16_t)i;
        if (before < i && memcmp(plane + before, plane + i, REPEAT_BYTES) == 0) {
            repeats += REPEAT_BYTES;
            i += REPEAT_BYTES;
        } else {
            i++;
        }
    }
    return repeats;
}

/* Whether bytes follow each other in a way their frequencies do not explain: half the changes that independent draws
 * would show, or a quarter of a window made of repeats. Draws of less than one bit repeat by themselves. */
static bool is_structured(const uint8_t *plane, size_t len, const uint64_t counts[256], uint64_t total,
                          uint32_t bits_q16) {
    size_t changes = 0;
    size_t seen = 0;
    if (sampled(len)) {
        for (size_t w = 0; w < WINDOWS; w++) {
            changes += count_changes(cas_window_of(plane, len, WINDOW_BYTES, WINDOWS, w), WINDOW_BYTES);
        }
        seen = WINDOWS * WINDOW_BYTES;
    } else {
        changes = count_changes(plane, len);
        seen = len;
    }
    uint64_t same = 0;
    for (size_t s = 0; s < 256; s++) {
        const uint64_t share = (counts[s] << 16) / total;
        same += share * share;
    }
    /* The shares sum to at most 1, so do their squares. */
    const uint64_t expected = (seen * ((((uint64_t)1 << 32) - same) >> 16)) >> 16;
    if (2 * changes < expected) return true;
    if (bits_q16 < 1 << 16 || len < 512) return false;
    const size_t window = len < REPEAT_WINDOW ? len : REPEAT_WINDOW;
    return 4 * count_repeats(plane + (len - window) / 2, window) > window;
}

/* Write the stream of a plane if it takes at most `limit` bytes; its length, or 0. */
static size_t encode_counted(const uint8_t *plane, size_t len, const uint64_t counts[256], uint64_t total, size_t limit,
                             uint8_t *out, size_t out_cap) {
    cas_entropy_model model;
    cas_entropy_fit(counts, total, &model);
    const uint64_t words = cas_entropy_words_bytes(counts, &model) * len / total;
    if (words > limit) return 0;
    /* Words are written from the end of the room and then moved: not more of it than an estimate may be off. */
    const uint64_t room = words + words / 16 + 2048;
    size_t stream_len = 0;
    if (cas_entropy_encode_with(&model, plane, len, out, room < out_cap ? (size_t)room : out_cap, &stream_len) !=
        CAS_OK) {
        return 0;
    }
    return stream_len <= limit ? stream_len : 0;
}

/* Write the stream of a plane if that pays; its length, or 0. Fills what `about` says of the samples. */
static size_t encode_stream(const uint8_t *plane, size_t len, uint32_t keep_q16, uint32_t leave_q16, uint8_t *out,
                            size_t out_cap, cas_plane *about) {
    uint64_t counts[256];
    uint64_t total = count_sample(plane, len, counts);
    about->bits_q16 = cas_entropy_bits_q16(counts, total);
    if (about->bits_q16 < leave_q16) {
        about->structured = 1;
        return 0;
    }
    if (about->bits_q16 > 8 * (uint64_t)keep_q16 + MARGIN_Q16) return 0;
    const size_t limit = (size_t)(((uint64_t)len * keep_q16) >> 16);
    if (sampled(len)) total = count_part(plane, len, counts);
    about->structured = is_structured(plane, len, counts, total, about->bits_q16);
    size_t stream_len = encode_counted(plane, len, counts, total, limit, out, out_cap);
    if (stream_len == 0 && sampled(len)) {
        /* A plane whose parts differ a lot: by a full count it may pay yet. */
        (void)cas_histogram(plane, len, counts, 256);
        stream_len = encode_counted(plane, len, counts, len, limit, out, out_cap);
    }
    return stream_len;
}

/* Write one plane's body to out; describe it. `out_cap` is at least len. */
static void encode_plane(const uint8_t *plane, size_t len, bool coded, uint32_t keep_q16, uint32_t leave_q16,
                         uint8_t *out, size_t out_cap, cas_plane *about) {
    int32_t constant = 0;
    *about = (cas_plane){.method = CAS_METHOD_RAW, .bits_q16 = 8 << 16, .len = (uint32_t)len};
    if (len == 0) return;
    (void)cas_is_constant(plane, len, &constant);
    if (constant) {
        *about = (cas_plane){.method = CAS_METHOD_CONSTANT, .len = 1};
        out[0] = plane[0];
        return;
    }
    const size_t stream_len = coded ? encode_stream(plane, len, keep_q16, leave_q16, out, out_cap, about) : 0;
    if (stream_len != 0) {
        about->method = CAS_METHOD_ENTROPY;
        about->len = (uint32_t)stream_len;
        return;
    }
    cas_copy_down(out, plane, len);
}

static void put_plane_head(uint8_t *out, const cas_plane *about) {
    out[0] = (uint8_t)about->method;
    memcpy(out + 1, &about->len, 4);
}

cas_status cas_chunk_encode(int32_t predictor, uint32_t width, const uint8_t *src, size_t src_len, const uint8_t *base,
                            size_t base_len, uint32_t coded, uint32_t keep_q16, uint32_t leave_q16, uint8_t *scratch,
                            size_t scratch_len, uint8_t *out, size_t out_cap, cas_plane *planes, size_t planes_count,
                            size_t *out_len) {
    if (out == NULL || planes == NULL || out_len == NULL) return CAS_ERR_NULL;
    if (src_len > CAS_ENTROPY_MAX_BYTES || planes_count != PLANES_MAX) return CAS_ERR_SIZE;
    if (out_cap < src_len + 2048) return CAS_ERR_CAPACITY;
    if (keep_q16 > 1 << 16) return CAS_ERR_PARAMETER;
    if (cas_ranges_overlap(out, out_cap, scratch, scratch_len) || cas_ranges_overlap(out, out_cap, src, src_len) ||
        cas_ranges_overlap(out, out_cap, base, base_len)) {
        return CAS_ERR_OVERLAP;
    }
    const cas_status status = cas_planes_split(predictor, width, 1, src, src_len, base, base_len, scratch, scratch_len);
    if (status != CAS_OK) return status;
    const size_t items = src_len / width;
    size_t at = HEAD_BYTES;
    out[0] = (uint8_t)predictor;
    out[1] = (uint8_t)(width | ROTATED);
    for (uint32_t p = 0; p < width; p++) {
        uint8_t *const head = out + at;
        at += PLANE_HEAD_BYTES;
        encode_plane(scratch + p * items, items, (coded >> p & 1) != 0, keep_q16, leave_q16, out + at, out_cap - at,
                     planes + p);
        planes[p].offset = at;
        put_plane_head(head, planes + p);
        at += planes[p].len;
    }
    const size_t tail = src_len - items * width;
    if (tail != 0) memcpy(out + at, scratch + items * width, tail);
    *out_len = at + tail;
    return CAS_OK;
}

cas_status cas_chunk_parse(const uint8_t *src, size_t src_len, size_t chunk_len, int32_t *predictor, uint32_t *width,
                           cas_plane *planes, size_t planes_count, size_t *tail_offset) {
    if ((src == NULL && src_len != 0) || predictor == NULL || width == NULL || planes == NULL || tail_offset == NULL) {
        return CAS_ERR_NULL;
    }
    if (planes_count != PLANES_MAX) return CAS_ERR_SIZE;
    if (src_len < HEAD_BYTES) return CAS_ERR_DATA;
    const uint32_t count = src[1] & (ROTATED - 1u);
    if (src[0] > CAS_PREDICT_XOR || (src[1] & ROTATED) == 0 || (count != 2 && count != 4 && count != 8)) {
        return CAS_ERR_NEWER;
    }
    const size_t items = chunk_len / count;
    cas_plane found[PLANES_MAX];
    memset(found, 0, sizeof found);
    size_t at = HEAD_BYTES;
    for (uint32_t p = 0; p < count; p++) {
        if (src_len - at < PLANE_HEAD_BYTES) return CAS_ERR_DATA;
        found[p].method = src[at];
        memcpy(&found[p].len, src + at + 1, 4);
        at += PLANE_HEAD_BYTES;
        found[p].offset = at;
        if (src_len - at < found[p].len) return CAS_ERR_DATA;
        if (found[p].method > CAS_METHOD_ENTROPY) return CAS_ERR_NEWER;
        if (found[p].method == CAS_METHOD_RAW && found[p].len != items) return CAS_ERR_DATA;
        if (found[p].method == CAS_METHOD_CONSTANT && found[p].len != 1) return CAS_ERR_DATA;
        at += found[p].len;
    }
    if (src_len - at != chunk_len - items * count) return CAS_ERR_DATA;
    *predictor = src[0];
    *width = count;
    memcpy(planes, found, sizeof found);
    *tail_offset = at;
    return CAS_OK;
}

cas_status cas_chunk_decode(const uint8_t *src, size_t src_len, const uint8_t *base, size_t base_len,
                            const uint8_t *const *given, size_t given_count, uint8_t *scratch, size_t scratch_len,
                            uint8_t *out, size_t out_len) {
    if (given == NULL || (scratch == NULL && scratch_len != 0) || (out == NULL && out_len != 0)) return CAS_ERR_NULL;
    if (given_count != PLANES_MAX || scratch_len != out_len || out_len > CAS_ENTROPY_MAX_BYTES) return CAS_ERR_SIZE;
    if (cas_ranges_overlap(scratch, scratch_len, out, out_len) ||
        cas_ranges_overlap(scratch, scratch_len, src, src_len) ||
        cas_ranges_overlap(scratch, scratch_len, base, base_len)) {
        return CAS_ERR_OVERLAP;
    }
    int32_t predictor = 0;
    uint32_t width = 0;
    cas_plane planes[PLANES_MAX];
    size_t tail_offset = 0;
    cas_status status = cas_chunk_parse(src, src_len, out_len, &predictor, &width, planes, PLANES_MAX, &tail_offset);
    if (status != CAS_OK) return status;
    const size_t items = out_len / width;
    const uint8_t *where[PLANES_MAX] = {NULL};
    for (uint32_t p = 0; p < width; p++) {
        const uint8_t *const body = src + planes[p].offset;
        uint8_t *const decoded = items == 0 ? scratch : scratch + p * items;
        where[p] = decoded;
        if (planes[p].method == CAS_METHOD_RAW) {
            where[p] = body;
        } else if (planes[p].method == CAS_METHOD_ZSTD) {
            where[p] = given[p];
        } else if (planes[p].method == CAS_METHOD_ENTROPY) {
            status = cas_entropy_decode(body, planes[p].len, decoded, items);
            if (status != CAS_OK) return status;
        } else if (items != 0) {
            memset(decoded, body[0], items);
        }
    }
    if (predictor == CAS_PREDICT_NONE) base_len = 0;
    return cas_planes_join_from(predictor, width, 1, where, items, src + tail_offset, src_len - tail_offset, base,
                                base_len, out, out_len);
}
