/* refusals.c: every refusal that casckpt.h promises, each with all else in order, and nothing written. Callers in
 * Python check most of this before they call, so that only C can show it.
 */
#include <string.h>

#include "check.h"

enum { LEN = 64, ID = 32, UNTOUCHED = 0xAA };
static const size_t TOO_LONG = ((size_t)1 << 26) + 1; /* nothing is read of what is refused by its length */

static uint8_t bytes[LEN];
static uint8_t others[LEN];
static uint8_t out[4096];
static int32_t flag = 7;
static size_t size = 7;

static int untouched(const void *memory, size_t len) {
    const uint8_t *const at = memory;
    for (size_t i = 0; i < len; i++) {
        if (at[i] != UNTOUCHED) return 0;
    }
    return 1;
}

static void refused_hashes(void) {
    cas_hasher hasher;
    memset(&hasher, UNTOUCHED, sizeof hasher);
    CHECK(cas_hasher_init(NULL, CAS_MODE_HASH, NULL, 0) == CAS_ERR_NULL);
    CHECK(cas_hasher_init(&hasher, CAS_MODE_KEYED, NULL, ID) == CAS_ERR_NULL);
    CHECK(cas_hasher_init(&hasher, CAS_MODE_DERIVE_MATERIAL, bytes, ID - 1) == CAS_ERR_SIZE);
    CHECK(cas_hasher_init(&hasher, CAS_MODE_HASH, bytes, 0) == CAS_ERR_PARAMETER);
    CHECK(cas_hasher_init(&hasher, CAS_MODE_DERIVE_CONTEXT, NULL, ID) == CAS_ERR_PARAMETER);
    CHECK(cas_hasher_init(&hasher, 3, NULL, 0) == CAS_ERR_PARAMETER);
    CHECK(untouched(&hasher, sizeof hasher));

    CHECK(cas_hasher_init(&hasher, CAS_MODE_HASH, NULL, 0) == CAS_OK);
    CHECK(cas_hasher_update(NULL, bytes, LEN) == CAS_ERR_NULL);
    CHECK(cas_hasher_update(&hasher, NULL, 1) == CAS_ERR_NULL);
    CHECK(cas_hasher_update(&hasher, NULL, 0) == CAS_OK && hasher.chunk_len == 0);
    CHECK(cas_hasher_finish(NULL, out, ID) == CAS_ERR_NULL);
    CHECK(cas_hasher_finish(&hasher, NULL, ID) == CAS_ERR_NULL);
    CHECK(cas_hasher_finish(&hasher, NULL, 0) == CAS_OK);

    CHECK(cas_hash(3, NULL, 0, bytes, LEN, out, ID) == CAS_ERR_PARAMETER);
    CHECK(cas_hash(CAS_MODE_KEYED, bytes, ID - 1, bytes, LEN, out, ID) == CAS_ERR_SIZE);
    CHECK(cas_hash(CAS_MODE_HASH, NULL, 0, NULL, 1, out, ID) == CAS_ERR_NULL);
    CHECK(cas_hash(CAS_MODE_HASH, NULL, 0, bytes, LEN, NULL, ID) == CAS_ERR_NULL);
    CHECK(cas_hash(CAS_MODE_HASH, NULL, 0, NULL, 0, NULL, 0) == CAS_OK);
}

static void refused_batches(void) {
    CHECK(cas_hash_grid(CAS_MODE_HASH, NULL, 0, NULL, 1, 1, out, ID) == CAS_ERR_NULL);
    CHECK(cas_hash_grid(CAS_MODE_HASH, NULL, 0, bytes, LEN, 0, out, ID) == CAS_ERR_PARAMETER);
    CHECK(cas_hash_grid(CAS_MODE_HASH, NULL, 0, bytes, LEN, LEN, out, 2 * ID) == CAS_ERR_SIZE);
    CHECK(cas_hash_grid(CAS_MODE_HASH, NULL, 0, bytes, LEN, LEN, NULL, ID) == CAS_ERR_NULL);
    CHECK(cas_hash_grid(3, NULL, 0, bytes, LEN, LEN, out, ID) == CAS_ERR_PARAMETER);
    CHECK(cas_hash_grid(CAS_MODE_HASH, NULL, 0, NULL, 0, LEN, NULL, 0) == CAS_OK);

    const uint64_t ends[] = {16, LEN};
    const uint64_t falling[] = {16, 8};
    const uint64_t behind[] = {16, LEN + 1};
    const uint64_t empty[] = {0, 0};
    CHECK(cas_hash_pieces(CAS_MODE_HASH, NULL, 0, NULL, 1, ends, 2, out, 2 * ID) == CAS_ERR_NULL);
    CHECK(cas_hash_pieces(CAS_MODE_HASH, NULL, 0, bytes, LEN, NULL, 2, out, 2 * ID) == CAS_ERR_NULL);
    CHECK(cas_hash_pieces(CAS_MODE_HASH, NULL, 0, bytes, LEN, ends, 2, out, ID) == CAS_ERR_SIZE);
    CHECK(cas_hash_pieces(CAS_MODE_HASH, NULL, 0, bytes, LEN, ends, 2, NULL, 2 * ID) == CAS_ERR_NULL);
    CHECK(cas_hash_pieces(CAS_MODE_HASH, NULL, 0, bytes, LEN, falling, 2, out, 2 * ID) == CAS_ERR_SIZE);
    CHECK(cas_hash_pieces(CAS_MODE_HASH, NULL, 0, bytes, LEN, behind, 2, out, 2 * ID) == CAS_ERR_SIZE);
    CHECK(cas_hash_pieces(3, NULL, 0, bytes, LEN, ends, 2, out, 2 * ID) == CAS_ERR_PARAMETER);
    CHECK(cas_hash_pieces(CAS_MODE_HASH, NULL, 0, NULL, 0, NULL, 0, NULL, 0) == CAS_OK);
    CHECK(cas_hash_pieces(CAS_MODE_HASH, NULL, 0, bytes, LEN, NULL, 0, NULL, 0) == CAS_OK);

    const uint8_t *const inputs[] = {bytes, NULL};
    const size_t lens[] = {LEN, 0};
    const size_t missing[] = {LEN, 1};
    const size_t most = SIZE_MAX / ID;
    CHECK(cas_hash_many(CAS_MODE_HASH, NULL, 0, NULL, lens, 2, out, 2 * ID) == CAS_ERR_NULL);
    CHECK(cas_hash_many(CAS_MODE_HASH, NULL, 0, inputs, NULL, 2, out, 2 * ID) == CAS_ERR_NULL);
    CHECK(cas_hash_many(CAS_MODE_HASH, NULL, 0, inputs, missing, 2, out, 2 * ID) == CAS_ERR_NULL);
    CHECK(cas_hash_many(CAS_MODE_HASH, NULL, 0, inputs, lens, 2, NULL, 2 * ID) == CAS_ERR_NULL);
    CHECK(cas_hash_many(CAS_MODE_HASH, NULL, 0, inputs, lens, most + 1, out, 0) == CAS_ERR_SIZE);
    CHECK(cas_hash_many(3, NULL, 0, inputs, lens, 2, out, 2 * ID) == CAS_ERR_PARAMETER);
    CHECK(cas_hash_many(CAS_MODE_HASH, NULL, 0, NULL, NULL, 0, NULL, 0) == CAS_OK);

    CHECK(cas_equal_and_hash(CAS_MODE_HASH, NULL, 0, NULL, 1, bytes, LEN, &flag, out, ID) == CAS_ERR_NULL);
    CHECK(cas_equal_and_hash(CAS_MODE_HASH, NULL, 0, bytes, LEN, NULL, 1, &flag, out, ID) == CAS_ERR_NULL);
    CHECK(cas_equal_and_hash(CAS_MODE_HASH, NULL, 0, bytes, LEN, bytes, LEN, NULL, out, ID) == CAS_ERR_NULL);
    CHECK(cas_equal_and_hash(CAS_MODE_HASH, NULL, 0, bytes, LEN, bytes, LEN, &flag, NULL, ID) == CAS_ERR_NULL);
    CHECK(cas_equal_and_hash(CAS_MODE_HASH, NULL, 0, bytes, LEN, bytes, LEN, &flag, out, 31) == CAS_ERR_SIZE);
    CHECK(cas_equal_and_hash(3, NULL, 0, bytes, LEN, bytes, LEN, &flag, out, ID) == CAS_ERR_PARAMETER);
    CHECK(flag == 7 && untouched(out, sizeof out));

    /* Empty pieces of nothing are the empty input. */
    uint8_t ids[2 * ID];
    uint8_t id[ID];
    int32_t equal = 7;
    CHECK(cas_equal_and_hash(CAS_MODE_HASH, NULL, 0, NULL, 0, NULL, 0, &equal, id, ID) == CAS_OK && equal == 1);
    CHECK(cas_equal_and_hash(CAS_MODE_HASH, NULL, 0, bytes, LEN, NULL, 0, &equal, ids, ID) == CAS_OK && equal == 0);
    CHECK(cas_hash_pieces(CAS_MODE_HASH, NULL, 0, NULL, 0, empty, 2, ids, sizeof ids) == CAS_OK);
    CHECK(memcmp(ids, id, ID) == 0 && memcmp(ids + ID, id, ID) == 0);
    CHECK(cas_hash_many(CAS_MODE_HASH, NULL, 0, inputs, lens, 2, ids, sizeof ids) == CAS_OK);
    CHECK(memcmp(ids + ID, id, ID) == 0 && memcmp(ids, id, ID) != 0);
}

static void refused_chunkers(void) {
    static const uint64_t WRONG[][3] = {
        {63, 256, 1024}, {64, 128, 1024},  {64, 384, 1024}, {512, 256, 1024},
        {64, 256, 255},  {64, 256, (uint64_t)1 << 62},
    };
    cas_chunker chunker;
    uint64_t ends[4];
    memset(&chunker, UNTOUCHED, sizeof chunker);
    CHECK(cas_gear_table(NULL, 2048) == CAS_ERR_NULL && cas_gear_table(out, 2047) == CAS_ERR_SIZE);
    CHECK(cas_chunker_init(NULL, 64, 256, 1024) == CAS_ERR_NULL);
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        CHECK(cas_chunker_init(&chunker, WRONG[i][0], WRONG[i][1], WRONG[i][2]) == CAS_ERR_PARAMETER);
    }
    CHECK(untouched(&chunker, sizeof chunker));
    CHECK(cas_chunker_init(&chunker, 64, 256, 1024) == CAS_OK);
    CHECK(cas_chunker_feed(NULL, bytes, LEN, ends, 4, &size) == CAS_ERR_NULL);
    CHECK(cas_chunker_feed(&chunker, NULL, 1, ends, 4, &size) == CAS_ERR_NULL);
    CHECK(cas_chunker_feed(&chunker, bytes, LEN, NULL, 4, &size) == CAS_ERR_NULL);
    CHECK(cas_chunker_feed(&chunker, bytes, LEN, ends, 4, NULL) == CAS_ERR_NULL);
    CHECK(cas_chunker_feed(&chunker, bytes, LEN, ends, 1, &size) == CAS_ERR_CAPACITY);
    chunker.offset = UINT64_MAX - LEN + 1; /* where no stream gets to */
    CHECK(cas_chunker_feed(&chunker, bytes, LEN, ends, 4, &size) == CAS_ERR_SIZE && size == 7);
    chunker.offset = 0;
    CHECK(cas_chunker_feed(&chunker, NULL, 0, ends, 4, &size) == CAS_OK && size == 0);
    CHECK(cas_chunker_finish(NULL, ends, &flag) == CAS_ERR_NULL);
    CHECK(cas_chunker_finish(&chunker, NULL, &flag) == CAS_ERR_NULL);
    CHECK(cas_chunker_finish(&chunker, ends, NULL) == CAS_ERR_NULL && flag == 7);
    size = 7;
}

static void refused_filters(void) {
    const uint8_t *planes[8] = {bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes};
    const uint8_t *const gap[8] = {bytes, NULL};
    const uint8_t *const shared[8] = {bytes, out + LEN - 1};
    CHECK(cas_planes_split(0, 3, 0, bytes, LEN, NULL, 0, out, LEN) == CAS_ERR_PARAMETER);
    CHECK(cas_planes_split(5, 4, 0, bytes, LEN, NULL, 0, out, LEN) == CAS_ERR_PARAMETER);
    CHECK(cas_planes_split(1, 4, 0, bytes, LEN, NULL, 0, out, LEN) == CAS_ERR_SIZE);
    CHECK(cas_planes_split(0, 4, 0, bytes, LEN, bytes, LEN, out, LEN) == CAS_ERR_SIZE);
    CHECK(cas_planes_split(0, 4, 0, bytes, LEN - 1, NULL, 0, out, LEN) == CAS_ERR_SIZE);
    CHECK(cas_planes_split(0, 4, 0, bytes, LEN, NULL, 0, NULL, LEN) == CAS_ERR_NULL);
    CHECK(cas_planes_split(1, 4, 0, bytes, LEN, NULL, LEN, out, LEN) == CAS_ERR_NULL);
    CHECK(cas_planes_split(0, 4, 0, NULL, LEN, NULL, 0, out, LEN) == CAS_ERR_NULL);
    CHECK(cas_planes_split(0, 4, 0, bytes, 32, NULL, 0, bytes + 16, 32) == CAS_ERR_OVERLAP);
    CHECK(cas_planes_split(1, 4, 0, bytes, 32, others, 32, others + 16, 32) == CAS_ERR_OVERLAP);
    CHECK(cas_planes_join(0, 3, 0, bytes, LEN, NULL, 0, out, LEN) == CAS_ERR_PARAMETER);
    CHECK(cas_planes_join(0, 4, 0, NULL, LEN, NULL, 0, out, LEN) == CAS_ERR_NULL);
    CHECK(cas_planes_join_from(0, 3, 0, planes, 16, NULL, 0, NULL, 0, out, LEN) == CAS_ERR_PARAMETER);
    CHECK(cas_planes_join_from(0, 2, 0, planes, 31, NULL, 0, NULL, 0, out, LEN) == CAS_ERR_SIZE);
    CHECK(cas_planes_join_from(0, 2, 0, planes, 32, bytes, 1, NULL, 0, out, LEN) == CAS_ERR_SIZE);
    CHECK(cas_planes_join_from(0, 2, 0, NULL, 32, NULL, 0, NULL, 0, out, LEN) == CAS_ERR_NULL);
    CHECK(cas_planes_join_from(0, 2, 0, planes, 31, NULL, 1, NULL, 0, out, LEN - 1) == CAS_ERR_NULL);
    CHECK(cas_planes_join_from(0, 2, 0, gap, 32, NULL, 0, NULL, 0, out, LEN) == CAS_ERR_NULL);
    CHECK(cas_planes_join_from(0, 2, 0, shared, 32, NULL, 0, NULL, 0, out, LEN) == CAS_ERR_OVERLAP);
    CHECK(cas_planes_join_from(0, 2, 0, planes, 31, out + 9, 1, NULL, 0, out, LEN - 1) == CAS_ERR_OVERLAP);
    CHECK(cas_planes_join_from(0, 2, 0, planes, 0, NULL, 0, NULL, 0, NULL, 0) == CAS_OK);

    CHECK(cas_copy(out, LEN, bytes, LEN - 1) == CAS_ERR_SIZE);
    CHECK(cas_copy(NULL, LEN, bytes, LEN) == CAS_ERR_NULL && cas_copy(out, LEN, NULL, LEN) == CAS_ERR_NULL);
    CHECK(cas_copy(bytes + 8, 16, bytes, 16) == CAS_ERR_OVERLAP);
    CHECK(cas_copy(NULL, 0, NULL, 0) == CAS_OK);
    CHECK(cas_equal(NULL, 1, bytes, 1, &flag) == CAS_ERR_NULL && cas_equal(bytes, 1, NULL, 1, &flag) == CAS_ERR_NULL);
    CHECK(cas_equal(bytes, 1, bytes, 1, NULL) == CAS_ERR_NULL && flag == 7);
    CHECK(cas_equal(NULL, 0, NULL, 0, &flag) == CAS_OK && flag == 1);
    CHECK(cas_equal(bytes, 1, NULL, 0, &flag) == CAS_OK && flag == 0);
    flag = 7;
}

static void refused_statistics(void) {
    uint64_t counts[256];
    double bits = 7.0;
    memset(counts, UNTOUCHED, sizeof counts);
    CHECK(cas_histogram(NULL, 1, counts, 256) == CAS_ERR_NULL);
    CHECK(cas_histogram(bytes, LEN, NULL, 256) == CAS_ERR_NULL);
    CHECK(cas_histogram(bytes, LEN, counts, 255) == CAS_ERR_SIZE && untouched(counts, sizeof counts));
    CHECK(cas_histogram(NULL, 0, counts, 256) == CAS_OK && counts[0] == 0);
    CHECK(cas_entropy(bytes, LEN, NULL) == CAS_ERR_NULL);
    CHECK(cas_entropy(NULL, 1, &bits) == CAS_ERR_NULL && bits == 7.0);
    CHECK(cas_is_constant(NULL, 1, &flag) == CAS_ERR_NULL && cas_is_constant(bytes, LEN, NULL) == CAS_ERR_NULL);
    CHECK(flag == 7 && cas_is_constant(NULL, 0, &flag) == CAS_OK && flag == 1);
    flag = 7;
}

static void refused_streams(void) {
    CHECK(cas_entropy_encode(NULL, 1, out, sizeof out, &size) == CAS_ERR_NULL);
    CHECK(cas_entropy_encode(bytes, LEN, NULL, 1, &size) == CAS_ERR_NULL);
    CHECK(cas_entropy_encode(bytes, LEN, out, sizeof out, NULL) == CAS_ERR_NULL);
    CHECK(cas_entropy_encode(bytes, TOO_LONG, out, sizeof out, &size) == CAS_ERR_SIZE);
    CHECK(cas_entropy_encode(out + 64, LEN, out, sizeof out, &size) == CAS_ERR_OVERLAP);
    CHECK(cas_entropy_encode(bytes, LEN, out, 704, &size) == CAS_ERR_CAPACITY);
    CHECK(cas_entropy_encode(bytes, LEN, NULL, 0, &size) == CAS_ERR_CAPACITY);
    CHECK(size == 7);
    CHECK(cas_entropy_encode(NULL, 0, NULL, 0, &size) == CAS_OK && size == 0);
    size = 7;
    CHECK(cas_entropy_decode(NULL, 1, out, LEN) == CAS_ERR_NULL);
    CHECK(cas_entropy_decode(bytes, LEN, NULL, 1) == CAS_ERR_NULL);
    CHECK(cas_entropy_decode(bytes, LEN, out, TOO_LONG) == CAS_ERR_SIZE);
    CHECK(cas_entropy_decode(out + 64, LEN, out, LEN + 1) == CAS_ERR_OVERLAP);
    CHECK(cas_entropy_decode(bytes, LEN, NULL, 0) == CAS_ERR_DATA);
    CHECK(cas_entropy_decode(NULL, 0, NULL, 0) == CAS_OK);
}

static void refused_chunks(void) {
    enum { CAP = LEN + 2048 };
    uint8_t scratch[LEN];
    cas_plane planes[8];
    memset(planes, UNTOUCHED, sizeof planes);
#define ENCODE(predictor, src, src_len, base, base_len, keep, scratch, to, cap, infos, count, len)                     \
    cas_chunk_encode(predictor, 4, src, src_len, base, base_len, 255, keep, 0, scratch, LEN, to, cap, infos, count, len)
    CHECK(ENCODE(0, bytes, LEN, NULL, 0, 0, scratch, NULL, CAP, planes, 8, &size) == CAS_ERR_NULL);
    CHECK(ENCODE(0, bytes, LEN, NULL, 0, 0, scratch, out, CAP, NULL, 8, &size) == CAS_ERR_NULL);
    CHECK(ENCODE(0, bytes, LEN, NULL, 0, 0, scratch, out, CAP, planes, 8, NULL) == CAS_ERR_NULL);
    CHECK(ENCODE(0, bytes, TOO_LONG, NULL, 0, 0, scratch, out, CAP, planes, 8, &size) == CAS_ERR_SIZE);
    CHECK(ENCODE(0, bytes, LEN, NULL, 0, 0, scratch, out, CAP, planes, 7, &size) == CAS_ERR_SIZE);
    CHECK(ENCODE(0, bytes, LEN, NULL, 0, 0, scratch, out, CAP - 1, planes, 8, &size) == CAS_ERR_CAPACITY);
    CHECK(ENCODE(0, bytes, LEN, NULL, 0, 65537, scratch, out, CAP, planes, 8, &size) == CAS_ERR_PARAMETER);
    CHECK(ENCODE(0, bytes, LEN, NULL, 0, 0, out + LEN, out, CAP, planes, 8, &size) == CAS_ERR_OVERLAP);
    CHECK(ENCODE(0, out + LEN, LEN, NULL, 0, 0, scratch, out, CAP, planes, 8, &size) == CAS_ERR_OVERLAP);
    CHECK(ENCODE(1, bytes, LEN, out + LEN, LEN, 0, scratch, out, CAP, planes, 8, &size) == CAS_ERR_OVERLAP);
    CHECK(ENCODE(5, bytes, LEN, NULL, 0, 0, scratch, out, CAP, planes, 8, &size) == CAS_ERR_PARAMETER);
#undef ENCODE
    CHECK(size == 7 && untouched(planes, sizeof planes));

    int32_t predictor = 7;
    uint32_t width = 7;
    const uint8_t payload[] = {0, 0x82, CAS_METHOD_CONSTANT, 1, 0, 0, 0, 5, CAS_METHOD_RAW, 2, 0, 0, 0, 1, 2};
    const size_t len = sizeof payload;
    CHECK(cas_chunk_parse(NULL, len, 4, &predictor, &width, planes, 8, &size) == CAS_ERR_NULL);
    CHECK(cas_chunk_parse(payload, len, 4, NULL, &width, planes, 8, &size) == CAS_ERR_NULL);
    CHECK(cas_chunk_parse(payload, len, 4, &predictor, NULL, planes, 8, &size) == CAS_ERR_NULL);
    CHECK(cas_chunk_parse(payload, len, 4, &predictor, &width, NULL, 8, &size) == CAS_ERR_NULL);
    CHECK(cas_chunk_parse(payload, len, 4, &predictor, &width, planes, 8, NULL) == CAS_ERR_NULL);
    CHECK(cas_chunk_parse(payload, len, 4, &predictor, &width, planes, 7, &size) == CAS_ERR_SIZE);
    CHECK(cas_chunk_parse(NULL, 0, 4, &predictor, &width, planes, 8, &size) == CAS_ERR_DATA);
    CHECK(predictor == 7 && width == 7 && size == 7 && untouched(planes, sizeof planes));
    CHECK(cas_chunk_parse(payload, len, 4, &predictor, &width, planes, 8, &size) == CAS_OK);
    CHECK(predictor == 0 && width == 2 && size == len && planes[0].len == 1 && planes[1].offset == 13);
    size = 7;

    uint8_t back[4];
    const uint8_t *const given[8] = {NULL};
    CHECK(cas_chunk_decode(payload, len, NULL, 0, NULL, 8, scratch, 4, back, 4) == CAS_ERR_NULL);
    CHECK(cas_chunk_decode(payload, len, NULL, 0, given, 8, NULL, 4, back, 4) == CAS_ERR_NULL);
    CHECK(cas_chunk_decode(payload, len, NULL, 0, given, 8, scratch, 4, NULL, 4) == CAS_ERR_NULL);
    CHECK(cas_chunk_decode(payload, len, NULL, 0, given, 7, scratch, 4, back, 4) == CAS_ERR_SIZE);
    CHECK(cas_chunk_decode(payload, len, NULL, 0, given, 8, scratch, 3, back, 4) == CAS_ERR_SIZE);
    CHECK(cas_chunk_decode(payload, len, NULL, 0, given, 8, scratch, TOO_LONG, back, TOO_LONG) == CAS_ERR_SIZE);
    CHECK(cas_chunk_decode(payload, len, NULL, 0, given, 8, back, 4, back, 4) == CAS_ERR_OVERLAP);
    CHECK(cas_chunk_decode(scratch, len, NULL, 0, given, 8, scratch + 1, 4, back, 4) == CAS_ERR_OVERLAP);
    CHECK(cas_chunk_decode(payload, len, scratch, 4, given, 8, scratch, 4, back, 4) == CAS_ERR_OVERLAP);
    CHECK(cas_chunk_decode(payload, len, NULL, 0, given, 8, NULL, 0, NULL, 0) == CAS_ERR_DATA);
    CHECK(cas_chunk_decode(payload, len, NULL, 0, given, 8, scratch, 0, NULL, 0) == CAS_ERR_DATA);
    CHECK(cas_chunk_decode(payload, len, NULL, 0, given, 8, scratch, 4, back, 4) == CAS_OK);
    /* Items 0x0501 and 0x0502, turned back by a bit. */
    CHECK(memcmp(back, "\x80\x82\x81\x02", 4) == 0);
}

static void refused_estimates(void) {
    static uint8_t samples[3 * 65536];
    uint32_t plain = 7;
    uint32_t delta = 7;
#define ESTIMATE(width, src, len, base, base_len, scratch, scratch_len, plain, delta)                                  \
    cas_delta_estimate(width, src, len, base, base_len, scratch, scratch_len, plain, delta)
    const size_t room = sizeof samples;
    CHECK(ESTIMATE(3, bytes, LEN, others, LEN, samples, room, &plain, &delta) == CAS_ERR_PARAMETER);
    CHECK(ESTIMATE(4, bytes, LEN, others, LEN - 1, samples, room, &plain, &delta) == CAS_ERR_SIZE);
    CHECK(ESTIMATE(4, bytes, TOO_LONG, others, TOO_LONG, samples, room, &plain, &delta) == CAS_ERR_SIZE);
    CHECK(ESTIMATE(4, bytes, LEN, others, LEN, samples, room - 1, &plain, &delta) == CAS_ERR_SIZE);
    CHECK(ESTIMATE(4, NULL, LEN, others, LEN, samples, room, &plain, &delta) == CAS_ERR_NULL);
    CHECK(ESTIMATE(4, bytes, LEN, NULL, LEN, samples, room, &plain, &delta) == CAS_ERR_NULL);
    CHECK(ESTIMATE(4, bytes, LEN, others, LEN, NULL, room, &plain, &delta) == CAS_ERR_NULL);
    CHECK(ESTIMATE(4, bytes, LEN, others, LEN, samples, room, NULL, &delta) == CAS_ERR_NULL);
    CHECK(ESTIMATE(4, bytes, LEN, others, LEN, samples, room, &plain, NULL) == CAS_ERR_NULL);
    CHECK(ESTIMATE(4, samples + 9, LEN, others, LEN, samples, room, &plain, &delta) == CAS_ERR_OVERLAP);
    CHECK(ESTIMATE(4, bytes, LEN, samples + 9, LEN, samples, room, &plain, &delta) == CAS_ERR_OVERLAP);
    CHECK(plain == 7 && delta == 7);
    CHECK(ESTIMATE(8, NULL, 0, NULL, 0, samples, room, &plain, &delta) == CAS_OK && plain == 0 && delta == 0);
#undef ESTIMATE
}

static void refused_sets(void) {
    uint64_t table[17] = {0};
    uint64_t larger[33] = {0};
    uint64_t used = 0;
    uint64_t added = 7;
    uint8_t found[2];
    memset(found, UNTOUCHED, sizeof found);
    CHECK(cas_prefix_add(NULL, 16, &used, bytes, 2 * ID, &added) == CAS_ERR_NULL);
    CHECK(cas_prefix_add(table, 16, NULL, bytes, 2 * ID, &added) == CAS_ERR_NULL);
    CHECK(cas_prefix_add(table, 16, &used, bytes, 2 * ID, NULL) == CAS_ERR_NULL);
    CHECK(cas_prefix_add(table, 16, &used, NULL, ID, &added) == CAS_ERR_NULL);
    CHECK(cas_prefix_add(table, 8, &used, bytes, 2 * ID, &added) == CAS_ERR_PARAMETER);
    CHECK(cas_prefix_add(table, 17, &used, bytes, 2 * ID, &added) == CAS_ERR_PARAMETER);
    CHECK(cas_prefix_add(table, 16, &used, bytes, ID + 1, &added) == CAS_ERR_SIZE);
    used = 13;
    CHECK(cas_prefix_add(table, 16, &used, NULL, 0, &added) == CAS_ERR_CAPACITY && used == 13);
    used = 11;
    CHECK(cas_prefix_add(table, 16, &used, bytes, 2 * ID, &added) == CAS_ERR_CAPACITY && used == 11);
    for (size_t i = 0; i < 17; i++) CHECK(table[i] == 0);
    CHECK(added == 7);
    CHECK(cas_prefix_add(table, 16, &used, NULL, 0, &added) == CAS_OK && added == 0);
    CHECK(cas_prefix_contains(NULL, 16, bytes, 2 * ID, found, 2) == CAS_ERR_NULL);
    CHECK(cas_prefix_contains(table, 16, bytes, 2 * ID, NULL, 2) == CAS_ERR_NULL);
    CHECK(cas_prefix_contains(table, 16, NULL, ID, found, 1) == CAS_ERR_NULL);
    CHECK(cas_prefix_contains(table, 24, bytes, 2 * ID, found, 2) == CAS_ERR_PARAMETER);
    CHECK(cas_prefix_contains(table, 16, bytes, 2 * ID - 1, found, 2) == CAS_ERR_SIZE);
    CHECK(cas_prefix_contains(table, 16, bytes, 2 * ID, found, 1) == CAS_ERR_SIZE);
    CHECK(cas_prefix_contains(table, 16, NULL, 0, NULL, 0) == CAS_OK && untouched(found, sizeof found));
    CHECK(cas_prefix_rehash(NULL, 16, larger, 32) == CAS_ERR_NULL);
    CHECK(cas_prefix_rehash(table, 16, NULL, 32) == CAS_ERR_NULL);
    CHECK(cas_prefix_rehash(table, 15, larger, 32) == CAS_ERR_PARAMETER);
    CHECK(cas_prefix_rehash(table, 16, larger, 33) == CAS_ERR_PARAMETER);
    CHECK(cas_prefix_rehash(table, 16, larger, 16) == CAS_ERR_CAPACITY);
}

void test_refusals(void) {
    memset(out, UNTOUCHED, sizeof out);
    refused_hashes();
    CHECK(untouched(out, sizeof out));
    refused_batches();
    refused_chunkers();
    refused_filters();
    refused_statistics();
    refused_streams();
    refused_chunks();
    refused_estimates();
    refused_sets();
    CHECK(cas_kernel_use(99) == CAS_ERR_KERNEL && cas_kernel_use(-1) == CAS_ERR_KERNEL);
    CHECK(untouched(out, sizeof out));
}
