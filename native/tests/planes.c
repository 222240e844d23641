/* planes.c: entropy streams, chunks and estimates without Python. What a kernel writes is what the portable one writes,
 * and what either reads; damaged payloads are refused or read alike, inside their memory.
 */
#include <stdlib.h>
#include <string.h>

#include "check.h"

typedef enum { NOISE, SKEWED, SPARSE, RUNS, REPEATS, TWO_VALUES, ONE_VALUE, HIDDEN, KINDS } kind;

/* Where casckpt.h's coder looks at a long plane: 1 KiB in each 4 KiB. HIDDEN is dull there and noise elsewhere. */
static void hide(uint8_t *data, size_t len) {
    const size_t windows = len / 4096;
    if (windows == 0) return;
    const size_t part = len / windows;
    for (size_t w = 0; w < windows; w++) {
        uint8_t *const at = data + w * part + w * w * 2741 % (part - 1024 + 1);
        for (size_t i = 0; i < 1024; i++) at[i] = (uint8_t)(i % 64 == 0);
    }
}

static uint8_t *data_of(kind which, size_t len) {
    uint8_t *const data = random_block(len);
    for (size_t i = 0; i < len; i++) {
        const uint64_t word = random_word();
        if (which == SKEWED) data[i] = (uint8_t)__builtin_ctzll(word | 1u << 20);
        if (which == SPARSE) data[i] = word % 50 == 0 ? data[i] : 3;
        if (which == RUNS) data[i] = (uint8_t)(i / 100 * 37);
        if (which == REPEATS && i >= 40) data[i] = data[i - 40];
        if (which == TWO_VALUES) data[i] = word % 2 ? 200 : 7;
        if (which == ONE_VALUE) data[i] = 9;
    }
    if (which == HIDDEN) hide(data, len);
    return data;
}

static void use(int32_t kernel) { CHECK(cas_kernel_use(kernel) == CAS_OK); }

static void streams(int32_t kernel, const uint8_t *data, size_t len) {
    const size_t cap = 705 + 2 * len;
    uint8_t *const stream = block(cap);
    uint8_t *const portable = block(cap);
    uint8_t *const back = block(len);
    size_t stream_len = 0;
    size_t portable_len = 0;
    use(CAS_KERNEL_PORTABLE);
    CHECK(cas_entropy_encode(data, len, portable, cap, &portable_len) == CAS_OK);
    use(kernel);
    CHECK(cas_entropy_encode(data, len, stream, cap, &stream_len) == CAS_OK);
    CHECK(stream_len == portable_len && memcmp(stream, portable, stream_len) == 0);
    uint8_t *const exact = block(stream_len);
    memcpy(exact, stream, stream_len);
    CHECK(cas_entropy_decode(exact, stream_len, back, len) == CAS_OK && memcmp(back, data, len) == 0);
    if (len > 0) {
        /* Every room up to enough is too little or enough; what has been written is then the stream. */
        for (size_t room = 705; room < 705 + stream_len; room += 1 + room / 8) {
            uint8_t *const narrow = block(room);
            const cas_status status = cas_entropy_encode(data, len, narrow, room, &portable_len);
            CHECK(status == CAS_ERR_CAPACITY || (status == CAS_OK && memcmp(narrow, stream, stream_len) == 0));
            free(narrow);
        }
        for (size_t cut = 0; cut < stream_len; cut += 1 + cut / 16) {
            uint8_t *const part = block(cut);
            memcpy(part, stream, cut);
            CHECK(cas_entropy_decode(part, cut, back, len) == CAS_ERR_DATA);
            free(part);
        }
        CHECK(cas_entropy_decode(exact, stream_len, back, len - 1) == CAS_ERR_DATA);
    }
    free(stream);
    free(portable);
    free(exact);
    free(back);
}

/* Half of the bytes are one value, and rounding leaves it 4,095 of 8,192 slots and one slot to nobody. */
static void rounding(int32_t kernel) {
    static const size_t COUNTS[] = {9477, 3025, 1732, 887, 3830, 1, 1, 1};
    uint8_t *const data = block(18954);
    size_t at = 0;
    for (size_t value = 0; value < sizeof COUNTS / sizeof COUNTS[0]; value++) {
        memset(data + at, (int)value, COUNTS[value]);
        at += COUNTS[value];
    }
    streams(kernel, data, at);
    free(data);
}

/* Heads that say more than a decoder has room for, or less than all. */
static void wrong_heads(void) {
    uint8_t stream[1 + 512 + 128];
    uint8_t back[100];
    memset(stream, 0, sizeof stream);
    for (size_t i = 513; i < sizeof stream; i += 4) stream[i + 1] = 0x80; /* states of 2^15 */
    for (uint8_t bits = 11; bits <= 15; bits++) {
        /* 256 frequencies of 2^bits / 256: only 12 bits have room for them without a common value. */
        uint8_t flat[1 + 512 + 128];
        const uint32_t freq = (1u << bits) / 256;
        size_t at = 0;
        flat[at++] = bits;
        for (size_t s = 0; s < 256; s++) {
            if (freq >= 128) flat[at++] = (uint8_t)(128 | freq >> 8);
            flat[at++] = (uint8_t)freq;
        }
        memcpy(flat + at, stream + 513, 128);
        CHECK(cas_entropy_decode(flat, at + 128, back, 0) == CAS_ERR_DATA);
        CHECK(cas_entropy_decode(flat, at + 128, back, 100) == CAS_ERR_DATA);
    }
    const uint8_t all_one[] = {12, 128 | 16, 0, 0, 254};   /* 4,096 of 4,096 to one value */
    const uint8_t short_form[] = {12, 128, 127, 0, 254};   /* 127 in the long form */
    const uint8_t too_many[] = {12, 1, 0, 255};            /* 257 values */
    const uint8_t cut_pair[] = {12, 0};
    const uint8_t cut[] = {12, 1, 1};
    CHECK(cas_entropy_decode(all_one, sizeof all_one, back, 100) == CAS_ERR_DATA);
    CHECK(cas_entropy_decode(short_form, sizeof short_form, back, 100) == CAS_ERR_DATA);
    CHECK(cas_entropy_decode(too_many, sizeof too_many, back, 100) == CAS_ERR_DATA);
    CHECK(cas_entropy_decode(cut_pair, sizeof cut_pair, back, 100) == CAS_ERR_DATA);
    CHECK(cas_entropy_decode(cut, sizeof cut, back, 100) == CAS_ERR_DATA);
    CHECK(cas_entropy_decode(NULL, 0, back, 100) == CAS_ERR_DATA);
}

static cas_status decoded(const uint8_t *payload, size_t payload_len, const uint8_t *base, size_t len, uint8_t *out) {
    uint8_t *const src = block(payload_len);
    uint8_t *const scratch = block(len);
    const uint8_t *given[8];
    memcpy(src, payload, payload_len);
    for (size_t p = 0; p < 8; p++) given[p] = base;
    const cas_status status = cas_chunk_decode(src, payload_len, base, len, given, 8, scratch, len, out, len);
    free(src);
    free(scratch);
    return status;
}

static void chunk(int32_t kernel, int32_t predictor, uint32_t width, kind which, size_t len, uint32_t coded,
                  uint32_t keep_q16) {
    static const uint32_t LEFT[] = {0, 1 << 14, 1 << 16, 8 << 16};
    const uint32_t leave_q16 = LEFT[random_word() % 4];
    uint8_t *const src = block(len);
    uint8_t *const base = random_block(len);
    for (uint32_t p = 0; p < width; p++) { /* each plane of another kind */
        uint8_t *const plane = data_of(p == 0 ? which : (kind)(random_word() % KINDS), len / width);
        for (size_t i = 0; i < len / width; i++) src[i * width + width - 1 - p] = plane[i];
        free(plane);
    }
    for (size_t i = len - len % width; i < len; i++) src[i] = (uint8_t)random_word();
    if (predictor == CAS_PREDICT_XOR) {
        for (size_t i = 0; i < len; i++) src[i] ^= base[i];
    }
    const size_t base_len = predictor == CAS_PREDICT_NONE ? 0 : len;
    uint8_t *const scratch = block(len);
    uint8_t *const out = block(len + 2048);
    uint8_t *const portable = block(len + 2048);
    uint8_t *const back = block(len);
    uint8_t *const also = block(len);
    cas_plane planes[8];
    size_t out_len = 0;
    size_t portable_len = 0;
    use(CAS_KERNEL_PORTABLE);
    CHECK(cas_chunk_encode(predictor, width, src, len, base, base_len, coded, keep_q16, leave_q16, scratch, len,
                           portable, len + 2048, planes, 8, &portable_len) == CAS_OK);
    use(kernel);
    CHECK(cas_chunk_encode(predictor, width, src, len, base, base_len, coded, keep_q16, leave_q16, scratch, len, out,
                           len + 2048, planes, 8, &out_len) == CAS_OK);
    CHECK(out_len == portable_len && memcmp(out, portable, out_len) == 0);
    CHECK(decoded(out, out_len, base, len, back) == CAS_OK && memcmp(back, src, len) == 0);
    for (uint32_t p = 0; p < width; p++) {
        CHECK(planes[p].method != CAS_METHOD_ENTROPY ||
              (planes[p].len <= (uint64_t)(len / width) * keep_q16 >> 16 && (coded >> p & 1) != 0 &&
               planes[p].bits_q16 >= leave_q16));
    }
    for (int round = 0; round < 40; round++) {
        const size_t where = (size_t)random_word() % (round % 2 ? 2 + 5 * (size_t)width : out_len) % out_len;
        const uint8_t was = out[where];
        out[where] ^= (uint8_t)(1u << random_word() % 8);
        const size_t cut = round % 4 == 0 ? (size_t)random_word() % (out_len + 1) : out_len;
        memset(back, 0, len);
        memset(also, 0, len);
        const cas_status status = decoded(out, cut, base, len, back);
        use(CAS_KERNEL_PORTABLE);
        CHECK(decoded(out, cut, base, len, also) == status);
        use(kernel);
        CHECK(status == CAS_ERR_DATA || status == CAS_ERR_NEWER ||
              (status == CAS_OK && memcmp(back, also, len) == 0));
        out[where] = was;
    }
    free(src);
    free(base);
    free(scratch);
    free(out);
    free(portable);
    free(back);
    free(also);
}

/* What a payload may not be, byte by byte. */
static void wrong_payloads(void) {
    static const struct {
        cas_status status;
        uint8_t len;
        uint8_t bytes[15];
    } CASES[] = {
        {CAS_ERR_DATA, 1, {0}},
        {CAS_ERR_NEWER, 15, {3, 0x82, 1, 1, 0, 0, 0, 5, 0, 2, 0, 0, 0, 1, 2}},    /* predictor 3 */
        {CAS_ERR_NEWER, 15, {0, 0x02, 1, 1, 0, 0, 0, 5, 0, 2, 0, 0, 0, 1, 2}},    /* not rotated */
        {CAS_ERR_NEWER, 15, {0, 0x83, 1, 1, 0, 0, 0, 5, 0, 2, 0, 0, 0, 1, 2}},    /* width 3 */
        {CAS_ERR_NEWER, 15, {0, 0x82, 4, 1, 0, 0, 0, 5, 0, 2, 0, 0, 0, 1, 2}},    /* method 4 */
        {CAS_ERR_DATA, 15, {0, 0x82, 1, 2, 0, 0, 0, 5, 5, 0, 2, 0, 0, 0, 1}},     /* two bytes of a constant */
        {CAS_ERR_DATA, 14, {0, 0x82, 1, 1, 0, 0, 0, 5, 0, 1, 0, 0, 0, 1}},        /* a raw plane too short */
        {CAS_ERR_DATA, 14, {0, 0x82, 1, 1, 0, 0, 0, 5, 0, 2, 0, 0, 0, 1}},        /* a body behind the end */
        {CAS_ERR_DATA, 12, {0, 0x82, 1, 1, 0, 0, 0, 5, 0, 2, 0, 0}},              /* half a head */
        {CAS_ERR_DATA, 15, {0, 0x82, 1, 1, 0, 0, 0, 5, 1, 1, 0, 0, 0, 1, 2}},     /* a byte too many */
        {CAS_ERR_NULL, 14, {0, 0x82, 1, 1, 0, 0, 0, 5, 2, 1, 0, 0, 0, 1}},        /* a zstd plane not given */
        {CAS_ERR_SIZE, 15, {1, 0x82, 1, 1, 0, 0, 0, 5, 0, 2, 0, 0, 0, 1, 2}},     /* a base that is missing */
    };
    uint8_t out[4];
    uint8_t scratch[4];
    const uint8_t *const given[8] = {NULL};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        uint8_t *const src = block(CASES[i].len);
        memcpy(src, CASES[i].bytes, CASES[i].len);
        CHECK(cas_chunk_decode(src, CASES[i].len, NULL, 0, given, 8, scratch, 4, out, 4) == CASES[i].status);
        free(src);
    }
    /* Planes of no items, and a tail of one byte. */
    const uint8_t empty[] = {0, 0x82, 1, 1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 77};
    CHECK(cas_chunk_decode(empty, sizeof empty, NULL, 0, given, 8, scratch, 1, out, 1) == CAS_OK && out[0] == 77);
}

static void estimates(int32_t kernel) {
    static uint8_t samples[3 * 65536];
    for (uint32_t width = 2; width <= 8; width *= 2) {
        for (size_t len = 0; len < 300000; len += 1 + len * 3) {
            uint8_t *const base = data_of(SKEWED, len);
            uint8_t *const src = block(len);
            uint32_t found[2][2] = {{7, 7}, {7, 7}};
            memcpy(src, base, len);
            use(CAS_KERNEL_PORTABLE);
            CHECK(cas_delta_estimate(width, src, len, base, len, samples, sizeof samples, &found[0][0],
                                     &found[0][1]) == CAS_OK);
            use(kernel);
            CHECK(cas_delta_estimate(width, src, len, base, len, samples, sizeof samples, &found[1][0],
                                     &found[1][1]) == CAS_OK);
            CHECK(found[0][0] == found[1][0] && found[0][1] == found[1][1] && found[0][1] == 0);
            free(base);
            free(src);
        }
    }
}

void test_planes(int32_t kernel) {
    wrong_heads();
    wrong_payloads();
    estimates(kernel);
    rounding(kernel);
    for (int which = 0; which < KINDS; which++) {
        for (size_t len = 0; len < 100000; len += len < 40 ? 1 : len * 2 + 7) {
            uint8_t *const data = data_of((kind)which, len);
            streams(kernel, data, len);
            free(data);
        }
        for (uint32_t width = 2; width <= 8; width *= 2) {
            for (int32_t predictor = 0; predictor < 3; predictor++) {
                for (size_t items = 0; items < 12000; items += 1 + items * 7) {
                    chunk(kernel, predictor, width, (kind)which, items * width + (size_t)random_word() % width, 255,
                          1 << 16);
                }
            }
        }
        chunk(kernel, CAS_PREDICT_XOR, 2, (kind)which, 2 * 70001, 255, 1 << 16);
        chunk(kernel, CAS_PREDICT_XOR, 2, (kind)which, 2 * 65536, 255, 1 << 16); /* the longest that is not sampled */
        chunk(kernel, CAS_PREDICT_NONE, 2, (kind)which, 2 * 70001, 255, 1 << 15);
        chunk(kernel, CAS_PREDICT_NONE, 4, (kind)which, 4 * 3000, 5, 1 << 15);
        chunk(kernel, CAS_PREDICT_NONE, 4, (kind)which, 4 * 3000, 255, 1 << 13);
    }
}
