/* Any ids, any table, and sizes that may be wrong: the set stays inside its slots. */
#include "__fc_builtin.h"
#include "internal.h"

enum { SLOTS_MAX = 32, IDS_MAX = 4 };

static uint64_t table[SLOTS_MAX + 1];
static uint64_t larger[2 * SLOTS_MAX + 1];
static uint8_t ids[32 * IDS_MAX];
static uint8_t found[IDS_MAX];

int main(void) {
    for (int i = 0; i <= SLOTS_MAX; i++) table[i] = Frama_C_unsigned_long_interval(0, UINT64_MAX);
    Frama_C_make_unknown((char *)ids, sizeof ids);
    uint64_t used = Frama_C_unsigned_long_interval(0, UINT64_MAX);
    uint64_t added = 0;
    const size_t slots = (size_t)Frama_C_interval(0, SLOTS_MAX);
    const size_t more = (size_t)Frama_C_interval(0, 2 * SLOTS_MAX);
    const size_t len = (size_t)Frama_C_interval(0, sizeof ids);
    const size_t out_len = (size_t)Frama_C_interval(0, IDS_MAX);
    (void)cas_prefix_add(table, slots, &used, ids, len, &added);
    (void)cas_prefix_contains(table, slots, ids, len, found, out_len);
    (void)cas_prefix_rehash(table, slots, larger, more);
    return 0;
}
