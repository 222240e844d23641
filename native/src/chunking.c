/* chunking.c: content-defined chunking with the Gear hash and normalised chunking at level 2.
 *
 * Outline: h = (h << 1) + gear[byte], so bit 63 - k of h depends on the last 64 - k bytes; only the top bits are
 * tested, which makes a cut a function of the 64 bytes before it. Below min_bytes nothing can be cut, so the scan jumps
 * to 64 bytes before it. Up to avg_bytes the test asks for 2 more zero bits than log2(avg), from there on for 2 less.
 * At max_bytes the chunk ends in any case. The whole state is (h, length), so the split into calls cannot matter.
 *
 * Source: Xia et al., "FastCDC: a Fast and Efficient Content-Defined Chunking Approach", USENIX ATC 2016, sections 3.2
 * to 3.5. Unlike there the mask is the top bits, not spread ones: with a 64-bit h the window is 64 bytes either way.
 */
#include "internal.h"

enum { WINDOW = 64, GEAR_BYTES = 256 * 8, NORMAL_LEVEL = 2 };

static const char GEAR_CONTEXT[] = "casckpt gear v1"; /* FORMAT: changing it changes every cut */

cas_status cas_gear_table(uint8_t *out, size_t out_len) {
    if (out == NULL) return CAS_ERR_NULL;
    if (out_len != GEAR_BYTES) return CAS_ERR_SIZE;
    uint8_t key[CAS_B3_VALUE];
    const cas_status status = cas_hash(CAS_MODE_DERIVE_CONTEXT, NULL, 0, (const uint8_t *)GEAR_CONTEXT,
                                       sizeof GEAR_CONTEXT - 1, key, sizeof key);
    if (status != CAS_OK) return status;
    return cas_hash(CAS_MODE_DERIVE_MATERIAL, key, sizeof key, NULL, 0, out, out_len);
}

static uint64_t top_bits(uint32_t count) { return ~UINT64_C(0) << (64 - count); }

cas_status cas_chunker_init(cas_chunker *chunker, uint64_t min_bytes, uint64_t avg_bytes, uint64_t max_bytes) {
    if (chunker == NULL) return CAS_ERR_NULL;
    if (min_bytes < WINDOW || avg_bytes < 256 || (avg_bytes & (avg_bytes - 1)) != 0 || min_bytes > avg_bytes ||
        max_bytes < avg_bytes || max_bytes >= UINT64_C(1) << 62) {
        return CAS_ERR_PARAMETER;
    }
    const uint32_t bits = (uint32_t)__builtin_ctzll(avg_bytes);
    uint8_t table[GEAR_BYTES];
    const cas_status status = cas_gear_table(table, sizeof table);
    if (status != CAS_OK) return status;
    memset(chunker, 0, sizeof *chunker);
    for (size_t i = 0; i < 256; i++) chunker->gear[i] = cas_load64(table + 8 * i);
    chunker->min_bytes = min_bytes;
    chunker->avg_bytes = avg_bytes;
    chunker->max_bytes = max_bytes;
    chunker->hard_mask = top_bits(bits + NORMAL_LEVEL);
    chunker->easy_mask = top_bits(bits - NORMAL_LEVEL);
    return CAS_OK;
}

/* The chain h -> h costs 2 cycles a byte when written plainly (shift and add). Four bytes per step keep it at 2 cycles
 * for four: h4 = (h << 4) + c4, where c1..c4 depend on the table alone. */
size_t cas_gear_scan_portable(const uint64_t gear[256], const uint8_t *data, size_t len, uint64_t mask, uint64_t *hash,
                              bool *found) {
    uint64_t h = *hash;
    size_t at = 0;
    *found = false;
    for (; len - at >= 4; at += 4) {
        const uint64_t c1 = gear[data[at]];
        const uint64_t c2 = (c1 << 1) + gear[data[at + 1]];
        const uint64_t c3 = (c2 << 1) + gear[data[at + 2]];
        const uint64_t c4 = (c3 << 1) + gear[data[at + 3]];
        const uint64_t h1 = (h << 1) + c1;
        const uint64_t h2 = (h << 2) + c2;
        const uint64_t h3 = (h << 3) + c3;
        h = (h << 4) + c4;
        if ((h1 & mask) == 0 || (h2 & mask) == 0 || (h3 & mask) == 0 || (h & mask) == 0) {
            const size_t step = (h1 & mask) == 0 ? 1 : (h2 & mask) == 0 ? 2 : (h3 & mask) == 0 ? 3 : 4;
            *found = true;
            return at + step; /* *hash is not needed: a cut starts a new one */
        }
    }
    for (; at < len; at++) {
        h = (h << 1) + gear[data[at]];
        if ((h & mask) == 0) {
            *found = true;
            return at + 1;
        }
    }
    *hash = h;
    return at;
}

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Read on until the open chunk is cut (true) or the input ends (false); *used is how much was read. */
static bool next_cut(cas_chunker *chunker, const uint8_t *data, size_t len, size_t *used) {
    const uint64_t warm_from = chunker->min_bytes - WINDOW;
    const cas_gear_scan_fn scan = cas_kernels()->gear_scan;
    size_t at = 0;
    bool found = false;
    if (chunker->length < warm_from) {
        at = (size_t)smaller(warm_from - chunker->length, len);
        chunker->length += at;
        chunker->hash = 0;
    }
    /* The first length that may be a cut is min_bytes, so its byte is left to the scan below. */
    if (chunker->length + 1 < chunker->min_bytes) {
        const size_t until = at + (size_t)smaller(chunker->min_bytes - 1 - chunker->length, len - at);
        uint64_t hash = chunker->hash;
        chunker->length += until - at;
        for (; at < until; at++) hash = (hash << 1) + chunker->gear[data[at]];
        chunker->hash = hash;
    }
    while (at < len && !found) {
        /* Lengths below avg_bytes face the hard test: scan up to length avg_bytes - 1, then the rest. */
        const bool hard = chunker->length + 1 < chunker->avg_bytes;
        const uint64_t until = hard ? chunker->avg_bytes - 1 : chunker->max_bytes;
        const size_t span = (size_t)smaller(until - chunker->length, len - at);
        const size_t read = scan(chunker->gear, data + at, span, hard ? chunker->hard_mask : chunker->easy_mask,
                                 &chunker->hash, &found);
        at += read;
        chunker->length += read;
        found = found || chunker->length == chunker->max_bytes;
    }
    *used = at;
    return found;
}

cas_status cas_chunker_feed(cas_chunker *chunker, const uint8_t *data, size_t data_len, uint64_t *ends,
                            size_t ends_cap, size_t *ends_count) {
    if (chunker == NULL || (data == NULL && data_len != 0) || ends == NULL || ends_count == NULL) return CAS_ERR_NULL;
    if (data_len / chunker->min_bytes + 1 > ends_cap) return CAS_ERR_CAPACITY;
    if (data_len > UINT64_MAX - chunker->offset) return CAS_ERR_SIZE;
    size_t count = 0;
    for (size_t at = 0; at < data_len;) {
        size_t used = 0;
        const bool cut = next_cut(chunker, data + at, data_len - at, &used);
        at += used;
        chunker->offset += used;
        if (cut) {
            ends[count++] = chunker->offset;
            chunker->length = 0;
            chunker->hash = 0;
        }
    }
    *ends_count = count;
    return CAS_OK;
}

cas_status cas_chunker_finish(cas_chunker *chunker, uint64_t *end, int32_t *has_end) {
    if (chunker == NULL || end == NULL || has_end == NULL) return CAS_ERR_NULL;
    *has_end = chunker->length > 0 ? 1 : 0;
    if (chunker->length > 0) *end = chunker->offset;
    chunker->length = 0;
    chunker->hash = 0;
    return CAS_OK;
}
