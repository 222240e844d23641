/* statistics.c: what the codec asks before it decides: byte counts, order-0 entropy, constant or not. */
#include <math.h>

#include "internal.h"

enum { TABLES = 8, TABLE_STRIDE = 256 + 8, ROUND_LEN = 1 << 30 };

/* Eight tables, one per byte of a word: equal neighbours (the common case in exponent planes) would otherwise wait for
 * each other's store. 32-bit counters keep them in 8 KiB; a round is short enough that they cannot overflow. The stride
 * keeps counters of one value from lying 4 KiB apart, where stores are taken for each other: up to 1.3 times as fast.
 */
static void count_into(uint32_t tables[TABLES][TABLE_STRIDE], const uint8_t *data, size_t len) {
    size_t at = 0;
    for (; len - at >= 8; at += 8) {
        const uint64_t word = cas_load64(data + at);
        tables[0][word & 255]++;
        tables[1][(word >> 8) & 255]++;
        tables[2][(word >> 16) & 255]++;
        tables[3][(word >> 24) & 255]++;
        tables[4][(word >> 32) & 255]++;
        tables[5][(word >> 40) & 255]++;
        tables[6][(word >> 48) & 255]++;
        tables[7][word >> 56]++;
    }
    for (; at < len; at++) tables[0][data[at]]++;
}

static void add_up(uint32_t tables[TABLES][TABLE_STRIDE], uint64_t counts[256]) {
    for (size_t value = 0; value < 256; value++) {
        for (size_t table = 0; table < TABLES; table++) counts[value] += tables[table][value];
    }
}

cas_status cas_histogram(const uint8_t *data, size_t data_len, uint64_t *counts, size_t counts_count) {
    if ((data == NULL && data_len != 0) || counts == NULL) return CAS_ERR_NULL;
    if (counts_count != 256) return CAS_ERR_SIZE;
    uint32_t tables[TABLES][TABLE_STRIDE];
    memset(counts, 0, 256 * sizeof counts[0]);
    for (size_t at = 0; at < data_len;) {
        const size_t take = data_len - at < ROUND_LEN ? data_len - at : ROUND_LEN;
        memset(tables, 0, sizeof tables);
        count_into(tables, data + at, take);
        add_up(tables, counts);
        at += take;
    }
    return CAS_OK;
}

uint64_t cas_count_windows(const uint8_t *data, size_t len, size_t window, size_t windows, uint64_t counts[256]) {
    uint32_t tables[TABLES][TABLE_STRIDE];
    memset(tables, 0, sizeof tables);
    memset(counts, 0, 256 * sizeof counts[0]);
    for (size_t w = 0; w < windows; w++) count_into(tables, cas_window_of(data, len, window, windows, w), window);
    add_up(tables, counts);
    return (uint64_t)window * windows;
}

void cas_mark_values_portable(const uint8_t *data, size_t len, uint8_t seen[256]) {
    size_t at = 0;
    for (; len - at >= 8; at += 8) {
        const uint64_t word = cas_load64(data + at);
        for (size_t byte = 0; byte < 8; byte++) seen[(word >> (8 * byte)) & 255] = 1;
    }
    for (; at < len; at++) seen[data[at]] = 1;
}

cas_status cas_entropy(const uint8_t *data, size_t data_len, double *bits) {
    if (bits == NULL) return CAS_ERR_NULL;
    uint64_t counts[256];
    const cas_status status = cas_histogram(data, data_len, counts, 256);
    if (status != CAS_OK) return status;
    double sum = 0.0;
    for (size_t value = 0; value < 256; value++) {
        if (counts[value] == 0 || counts[value] == data_len) continue;
        const double share = (double)counts[value] / (double)data_len;
        sum -= share * log2(share);
    }
    *bits = sum;
    return CAS_OK;
}

cas_status cas_is_constant(const uint8_t *data, size_t data_len, int32_t *constant) {
    if ((data == NULL && data_len != 0) || constant == NULL) return CAS_ERR_NULL;
    /* All bytes are equal when each equals its neighbour; the C library's comparison is as fast as memory. */
    *constant = data_len < 2 || memcmp(data, data + 1, data_len - 1) == 0 ? 1 : 0;
    return CAS_OK;
}
