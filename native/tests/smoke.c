/* smoke.c: the C core without Python, for sanitizers and emulators. Every buffer is a heap block of exactly its size, so
 * that one byte too far is seen. Each kernel must give the published vectors and what the portable kernel gives.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "vectors.h"

int failures = 0;

static uint64_t random_state = 88172645463325252u;

uint64_t random_word(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

uint8_t *block(size_t len) {
    uint8_t *bytes = malloc(len == 0 ? 1 : len);
    if (bytes == NULL) abort();
    return bytes;
}

uint8_t *random_block(size_t len) {
    uint8_t *bytes = block(len);
    for (size_t i = 0; i < len; i++) bytes[i] = (uint8_t)random_word();
    return bytes;
}

static int is_hex(const uint8_t *bytes, size_t len, const char *hex) {
    for (size_t i = 0; i < len; i++) {
        char two[3];
        snprintf(two, sizeof two, "%02x", bytes[i]);
        if (memcmp(two, hex + 2 * i, 2) != 0) return 0;
    }
    return 1;
}

static void test_vectors(void) {
    const uint8_t *key = (const uint8_t *)VECTOR_KEY;
    uint8_t context_key[32];
    CHECK(cas_hash(CAS_MODE_DERIVE_CONTEXT, NULL, 0, (const uint8_t *)VECTOR_CONTEXT, sizeof VECTOR_CONTEXT - 1,
                   context_key, 32) == CAS_OK);
    for (size_t v = 0; v < sizeof VECTORS / sizeof VECTORS[0]; v++) {
        const size_t len = VECTORS[v].len;
        uint8_t *data = block(len);
        uint8_t *out = block(131);
        for (size_t i = 0; i < len; i++) data[i] = (uint8_t)(i % 251);
        CHECK(cas_hash(CAS_MODE_HASH, NULL, 0, data, len, out, 131) == CAS_OK && is_hex(out, 131, VECTORS[v].hash));
        CHECK(cas_hash(CAS_MODE_KEYED, key, 32, data, len, out, 131) == CAS_OK && is_hex(out, 131, VECTORS[v].keyed));
        CHECK(cas_hash(CAS_MODE_DERIVE_MATERIAL, context_key, 32, data, len, out, 131) == CAS_OK &&
              is_hex(out, 131, VECTORS[v].derived));
        /* The batch must agree with the single hash. */
        uint64_t *end = malloc(sizeof *end);
        if (end == NULL) abort();
        *end = len;
        CHECK(cas_hash_pieces(CAS_MODE_HASH, NULL, 0, data, len, end, 1, out, 32) == CAS_OK &&
              is_hex(out, 32, VECTORS[v].hash));
        free(end);
        free(out);
        free(data);
    }
}

static void test_streaming_and_batches(void) {
    for (int round = 0; round < 40; round++) {
        const size_t len = (size_t)(random_word() % (round % 8 == 0 ? 700000 : 30000));
        uint8_t *data = random_block(len);
        uint8_t whole[32];
        uint8_t parts[32];
        CHECK(cas_hash(CAS_MODE_HASH, NULL, 0, data, len, whole, 32) == CAS_OK);
        cas_hasher hasher;
        CHECK(cas_hasher_init(&hasher, CAS_MODE_HASH, NULL, 0) == CAS_OK);
        for (size_t at = 0; at < len;) {
            size_t take = (size_t)(random_word() % (random_word() % 4 == 0 ? 300000 : 3000));
            if (take > len - at) take = len - at;
            uint8_t *piece = block(take);
            memcpy(piece, data + at, take);
            CHECK(cas_hasher_update(&hasher, piece, take) == CAS_OK);
            free(piece);
            at += take;
        }
        CHECK(cas_hasher_finish(&hasher, parts, 32) == CAS_OK && memcmp(whole, parts, 32) == 0);

        const size_t piece_len = 1 + (size_t)(random_word() % 9000);
        const size_t count = len / piece_len + (len % piece_len != 0);
        uint8_t *ids = block(32 * count);
        CHECK(cas_hash_grid(CAS_MODE_HASH, NULL, 0, data, len, piece_len, ids, 32 * count) == CAS_OK);
        for (size_t i = 0; i < count; i++) {
            const size_t take = len - i * piece_len < piece_len ? len - i * piece_len : piece_len;
            CHECK(cas_hash(CAS_MODE_HASH, NULL, 0, data + i * piece_len, take, parts, 32) == CAS_OK);
            CHECK(memcmp(parts, ids + 32 * i, 32) == 0);
        }
        int32_t equal = -1;
        CHECK(cas_equal_and_hash(CAS_MODE_HASH, NULL, 0, data, len, data, len, &equal, parts, 32) == CAS_OK);
        CHECK(equal == 1 && memcmp(whole, parts, 32) == 0);
        free(ids);
        free(data);
    }
}

static void test_filters(int32_t kernel) {
    for (size_t len = 0; len < 700; len += len < 80 ? 1 : 37) {
        uint8_t *src = random_block(len);
        uint8_t *base = random_block(len);
        uint8_t *out = block(len);
        uint8_t *portable = block(len);
        uint8_t *back = block(len);
        for (int32_t predictor = 0; predictor < 3; predictor++) {
            const size_t base_len = predictor == CAS_PREDICT_NONE ? 0 : len;
            for (uint32_t width = 2; width <= 8; width *= 2) {
                for (int32_t rotate = 0; rotate < 2; rotate++) {
                    CHECK(cas_planes_split(predictor, width, rotate, src, len, base, base_len, out, len) == CAS_OK);
                    CHECK(cas_kernel_use(CAS_KERNEL_PORTABLE) == CAS_OK);
                    CHECK(cas_planes_split(predictor, width, rotate, src, len, base, base_len, portable, len) ==
                          CAS_OK);
                    CHECK(cas_kernel_use(kernel) == CAS_OK);
                    CHECK(memcmp(out, portable, len) == 0);
                    CHECK(cas_planes_join(predictor, width, rotate, out, len, base, base_len, back, len) == CAS_OK);
                    CHECK(memcmp(src, back, len) == 0);
                }
            }
        }
        free(src);
        free(base);
        free(out);
        free(portable);
        free(back);
    }
}

static void test_chunking(int32_t kernel) {
    static const uint64_t SIZES[][3] = {
        {64, 256, 1024}, {64, 1024, 8192}, {2048, 2048, 65536}, {64, 16384, 65536}, {2048, 8192, 32768}};
    for (size_t n = 0; n < sizeof SIZES / sizeof SIZES[0]; n++) {
        const uint64_t *const size = SIZES[n];
        const size_t len = 200000 + (size_t)(random_word() % 1000);
        uint8_t *data = random_block(len);
        uint64_t *whole = malloc((len / 64 + 1) * sizeof *whole);
        uint64_t *parts = malloc((len / 64 + 1) * sizeof *parts);
        cas_chunker chunker;
        size_t whole_count = 0;
        size_t parts_count = 0;
        if (whole == NULL || parts == NULL) abort();
        CHECK(cas_kernel_use(CAS_KERNEL_PORTABLE) == CAS_OK);
        CHECK(cas_chunker_init(&chunker, size[0], size[1], size[2]) == CAS_OK);
        CHECK(cas_chunker_feed(&chunker, data, len, whole, len / 64 + 1, &whole_count) == CAS_OK);
        CHECK(cas_kernel_use(kernel) == CAS_OK);
        for (size_t most = 500; most <= 500000; most *= 10) {
            parts_count = 0;
            CHECK(cas_chunker_init(&chunker, size[0], size[1], size[2]) == CAS_OK);
            for (size_t at = 0; at < len;) {
                size_t take = most > len ? len : (size_t)(random_word() % most);
                if (take > len - at) take = len - at;
                uint8_t *piece = block(take);
                memcpy(piece, data + at, take);
                size_t count = 0;
                CHECK(cas_chunker_feed(&chunker, piece, take, parts + parts_count, take / 64 + 1, &count) == CAS_OK);
                parts_count += count;
                free(piece);
                at += take;
            }
            CHECK(whole_count == parts_count && memcmp(whole, parts, whole_count * sizeof *whole) == 0);
        }
        free(whole);
        free(parts);
        free(data);
    }
}

static void test_statistics_and_set(void) {
    for (size_t len = 0; len < 100; len++) {
        uint8_t *data = random_block(len);
        uint64_t counts[256];
        uint64_t sum = 0;
        double bits = -1.0;
        int32_t constant = -1;
        CHECK(cas_histogram(data, len, counts, 256) == CAS_OK);
        for (size_t i = 0; i < 256; i++) sum += counts[i];
        CHECK(sum == len);
        CHECK(cas_entropy(data, len, &bits) == CAS_OK && bits >= 0.0 && bits <= 8.0);
        CHECK(cas_is_constant(data, len, &constant) == CAS_OK && (constant == 1) == (len < 2));
        free(data);
    }
    const size_t count = 1000;
    uint8_t *ids = random_block(32 * count);
    uint8_t *found = block(count);
    uint64_t *table = calloc(2048 + 1, sizeof *table);
    uint64_t *larger = calloc(4096 + 1, sizeof *larger);
    uint64_t used = 0;
    uint64_t added = 0;
    if (table == NULL || larger == NULL) abort();
    memset(ids, 0, 32);
    CHECK(cas_prefix_add(table, 2048, &used, ids, 32 * count, &added) == CAS_OK && added == count);
    CHECK(cas_prefix_rehash(table, 2048, larger, 4096) == CAS_OK);
    CHECK(cas_prefix_contains(larger, 4096, ids, 32 * count, found, count) == CAS_OK);
    for (size_t i = 0; i < count; i++) CHECK(found[i] == 1);
    CHECK(cas_prefix_add(table, 2048, &used, ids, 32 * count, &added) == CAS_ERR_CAPACITY);
    free(ids);
    free(found);
    free(table);
    free(larger);
}

/* With an argument: only what tells processors apart, for emulators that are slow. */
int main(int argc, char **argv) {
    (void)argv;
    test_interrupted_choice(); /* before anything has chosen */
    test_refusals();
    for (int32_t kernel = 0; kernel < CAS_KERNEL_COUNT; kernel++) {
        if (!cas_kernel_available(kernel)) {
            printf("kernel %d: not run, this processor or build has none\n", (int)kernel);
            continue;
        }
        CHECK(cas_kernel_use(kernel) == CAS_OK);
        test_vectors();
        test_streaming_and_batches();
        test_filters(kernel);
        test_chunking(kernel);
        test_statistics_and_set();
        if (argc < 2) test_planes(kernel);
        printf("kernel %d: done\n", (int)kernel);
    }
    printf(failures == 0 ? "all good\n" : "%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
