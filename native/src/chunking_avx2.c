/* chunking_avx2.c: the scan for a cut in four places at once.
 *
 * Outline: after 64 bytes the hash does not know where it started, so a stretch of bytes can be scanned in four lanes,
 * the last three started 64 bytes early. One byte of each lane is a step: four loads from the table, two additions and
 * the least that each lane has had in this stripe, which is all a test of top bits needs. The first lane that has had
 * a small enough hash holds the cut; the portable scan finds the byte in its stripe.
 */
#include "internal.h"

#if CAS_X86
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif

/* Bytes not in cache are fetched this far ahead of the first lane: the processor sees four streams too short to follow.
 * Over 32 MiB with chunks of 8 KiB this is worth a quarter; 6 to 32 KiB ahead made no difference. */
enum { LANES = 4, STRIPE = 32, WARM = 64, LANE_LEAST = 128, LINE = 64, AHEAD = 8192 };

static inline __m128i load_pair(const uint64_t *low, const uint64_t *high) {
    const __m128i first = _mm_loadl_epi64((const __m128i *)(const void *)low);
    return _mm_castpd_si128(_mm_loadh_pd(_mm_castsi128_pd(first), (const double *)(const void *)high));
}

typedef struct {
    __m256i h;
    __m256i least; /* of each upper half: the least there was */
} lane_state;

static inline __attribute__((always_inline)) lane_state step(const uint64_t gear[256], size_t a, size_t b, size_t c,
                                                             size_t d, lane_state s) {
    const __m256i words = _mm256_set_m128i(load_pair(gear + c, gear + d), load_pair(gear + a, gear + b));
    s.h = _mm256_add_epi64(_mm256_add_epi64(s.h, s.h), words);
    s.least = _mm256_min_epu32(s.least, s.h);
    return s;
}

/* Take in eight bytes of each lane. Two lanes load byte by byte and two take words apart, which keeps load ports and
 * arithmetic units equally busy: on Zen 3, 0.70 cycles a byte against 0.87 and 0.80 of four alike. */
static inline __attribute__((always_inline)) lane_state eight_steps(const uint64_t gear[256], const uint8_t *a,
                                                                    const uint8_t *b, const uint8_t *c,
                                                                    const uint8_t *d, lane_state s) {
    uint64_t from_c = cas_load64(c);
    uint64_t from_d = cas_load64(d);
    for (size_t i = 0; i < 8; i += 2) {
        s = step(gear, a[i], b[i], from_c & 255, from_d & 255, s);
        s = step(gear, a[i + 1], b[i + 1], from_c >> 8 & 255, from_d >> 8 & 255, s);
        from_c >>= 16;
        from_d >>= 16;
    }
    return s;
}

/* By number: the line may lie behind the input, where no pointer may point; fetching it has no effect then. */
static inline void prefetch(const uint8_t *data, size_t at) {
    _mm_prefetch((const char *)((uintptr_t)data + at), _MM_HINT_T1);
}

/* Scan LANES * lane bytes; whether a cut is in them. `lane` is a multiple of STRIPE and at least WARM. */
static bool scan_lanes(const uint64_t gear[256], const uint8_t *data, size_t lane, uint64_t mask, uint64_t *hash,
                       size_t *read) {
    const __m256i greatest = _mm256_set1_epi64x((long long)~mask); /* a hash not above it cuts */
    const uint8_t *const a = data;
    const uint8_t *const b = a + lane;
    const uint8_t *const c = b + lane;
    const uint8_t *const d = c + lane;
    lane_state s = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (size_t early = WARM; early > 0; early -= 8) {
        s = eight_steps(gear, b - early, b - early, c - early, d - early, s); /* the first lane has its hash */
    }
    s.h = _mm256_blend_epi32(s.h, _mm256_set1_epi64x((long long)*hash), 3);
    uint32_t cut = 0;
    size_t stripes[LANES] = {0};
    uint64_t hashes[LANES];
    for (size_t at = 0; at < lane && (cut & 1) == 0; at += STRIPE) {
        const __m256i before = s.h;
        s.least = _mm256_set1_epi64x(-1);
        for (size_t i = 0; i < LANES * STRIPE; i += LINE) prefetch(data, AHEAD + LANES * at + i);
        for (size_t i = at; i < at + STRIPE; i += 8) s = eight_steps(gear, a + i, b + i, c + i, d + i, s);
        const __m256i small = _mm256_cmpeq_epi32(_mm256_min_epu32(s.least, greatest), s.least);
        const uint32_t cuts = (uint32_t)_mm256_movemask_pd(_mm256_castsi256_pd(small));
        if ((cuts & ~cut) != 0) {
            uint64_t now[LANES];
            _mm256_storeu_si256((__m256i *)(void *)now, before);
            for (size_t k = 0; k < LANES; k++) {
                if ((cuts & ~cut) >> k & 1) {
                    stripes[k] = at;
                    hashes[k] = now[k];
                }
            }
            cut |= cuts;
        }
    }
    if (cut == 0) {
        *hash = (uint64_t)_mm256_extract_epi64(s.h, LANES - 1);
        *read = LANES * lane;
        return false;
    }
    const size_t first = (size_t)__builtin_ctz(cut);
    const size_t from = first * lane + stripes[first];
    bool found = false;
    *read = from + cas_gear_scan_portable(gear, data + from, STRIPE, mask, &hashes[first], &found);
    return found;
}

size_t cas_gear_scan_avx2(const uint64_t gear[256], const uint8_t *data, size_t len, uint64_t mask, uint64_t *hash,
                          bool *found) {
    /* What is behind the cut is read in vain, and each turn starts with 64 steps: the square root balances them. */
    const size_t lane_most = (size_t)8 << (__builtin_popcountll(mask) / 2);
    size_t at = 0;
    *found = false;
    while ((uint32_t)mask == 0 && len - at >= LANES * LANE_LEAST && lane_most >= LANE_LEAST) {
        const size_t quarter = (len - at) / LANES / STRIPE * STRIPE;
        size_t read = 0;
        *found = scan_lanes(gear, data + at, quarter < lane_most ? quarter : lane_most, mask, hash, &read);
        at += read;
        if (*found) return at;
    }
    return at + cas_gear_scan_portable(gear, data + at, len - at, mask, hash, found);
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int cas_no_chunking_avx2; /* ISO C wants a declaration in every file */
#endif
