/* prefix_set.c: an open-addressing set of 64-bit id prefixes in the caller's memory, for gc mark.
 *
 * Ids are BLAKE3 outputs, so their first 8 bytes are as good a hash as any and serve as the slot number as they are;
 * linear probing at 3/4 load then costs 2.5 probes for a hit. 0 marks an empty slot, and prefix 0 itself lives in the
 * word behind the slots. Two ids that share a prefix (chance n^2 / 2^65) count as one.
 */
#include "internal.h"

/* Slots are random, so every one is a cache miss: fetch this many ids ahead. */
enum { ID_LEN = 32, AHEAD = 16 };

static bool valid_slots(size_t count) { return count >= 16 && (count & (count - 1)) == 0; }

static cas_status check_ids(const uint8_t *ids, size_t ids_len) {
    if (ids == NULL && ids_len != 0) return CAS_ERR_NULL;
    return ids_len % ID_LEN == 0 ? CAS_OK : CAS_ERR_SIZE;
}

/* The slot that holds `prefix`, or the empty one where it belongs. `prefix` is not 0. */
static size_t find_slot(const uint64_t *table, size_t slots_count, uint64_t prefix) {
    size_t slot = (size_t)prefix & (slots_count - 1);
    while (table[slot] != 0 && table[slot] != prefix) slot = (slot + 1) & (slots_count - 1);
    return slot;
}

static void prefetch(const uint64_t *table, size_t slots_count, const uint8_t *ids, size_t count, size_t at) {
    if (at + AHEAD < count) {
        __builtin_prefetch(&table[(size_t)cas_load64(ids + (at + AHEAD) * ID_LEN) & (slots_count - 1)]);
    }
}

cas_status cas_prefix_add(uint64_t *table, size_t slots_count, uint64_t *used, const uint8_t *ids, size_t ids_len,
                          uint64_t *added) {
    if (table == NULL || used == NULL || added == NULL) return CAS_ERR_NULL;
    if (!valid_slots(slots_count)) return CAS_ERR_PARAMETER;
    const cas_status status = check_ids(ids, ids_len);
    if (status != CAS_OK) return status;
    const size_t count = ids_len / ID_LEN;
    const size_t limit = slots_count - slots_count / 4;
    if (*used > limit || count > limit - *used) return CAS_ERR_CAPACITY;
    uint64_t slots_taken = 0;
    uint64_t zero_added = 0;
    for (size_t i = 0; i < count; i++) {
        prefetch(table, slots_count, ids, count, i);
        const uint64_t prefix = cas_load64(ids + i * ID_LEN);
        if (prefix == 0) {
            zero_added |= table[slots_count] == 0;
            table[slots_count] = 1;
            continue;
        }
        const size_t slot = find_slot(table, slots_count, prefix);
        slots_taken += table[slot] == 0;
        table[slot] = prefix;
    }
    *used += slots_taken;
    *added = slots_taken + zero_added;
    return CAS_OK;
}

cas_status cas_prefix_contains(const uint64_t *table, size_t slots_count, const uint8_t *ids, size_t ids_len,
                               uint8_t *out, size_t out_len) {
    if (table == NULL || (out == NULL && out_len != 0)) return CAS_ERR_NULL;
    if (!valid_slots(slots_count)) return CAS_ERR_PARAMETER;
    const cas_status status = check_ids(ids, ids_len);
    if (status != CAS_OK) return status;
    const size_t count = ids_len / ID_LEN;
    if (out_len != count) return CAS_ERR_SIZE;
    for (size_t i = 0; i < count; i++) {
        prefetch(table, slots_count, ids, count, i);
        const uint64_t prefix = cas_load64(ids + i * ID_LEN);
        const uint64_t held = prefix == 0 ? table[slots_count] : table[find_slot(table, slots_count, prefix)];
        out[i] = held != 0;
    }
    return CAS_OK;
}

cas_status cas_prefix_rehash(const uint64_t *from, size_t from_slots_count, uint64_t *to, size_t to_slots_count) {
    if (from == NULL || to == NULL) return CAS_ERR_NULL;
    if (!valid_slots(from_slots_count) || !valid_slots(to_slots_count)) return CAS_ERR_PARAMETER;
    if (to_slots_count <= from_slots_count) return CAS_ERR_CAPACITY;
    for (size_t i = 0; i < from_slots_count; i++) {
        if (from[i] != 0) to[find_slot(to, to_slots_count, from[i])] = from[i];
    }
    to[to_slots_count] = from[from_slots_count];
    return CAS_OK;
}
