/* entropy_avx2.c: whole groups of 32 symbols in four vectors of eight states. */
#include "entropy.h"

#if CAS_X86
#include <immintrin.h>

#define CAS_AVX2 __attribute__((target("avx2,popcnt")))

/* Eight lane numbers of 4 bits for each mask of eight lanes, lowest first.
 * take_order: number k is how many lanes below lane k are in the mask, so which word of the stream is lane k's. */
#define BIT(m, k) ((uint32_t)((m) >> (k)) & 1u)
#define SUM2(m) (BIT(m, 0) + BIT(m, 1))
#define SUM4(m) (SUM2(m) + BIT(m, 2) + BIT(m, 3))
#define TAKE(m)                                                                                                        \
    (BIT(m, 0) << 4 | SUM2(m) << 8 | (SUM2(m) + BIT(m, 2)) << 12 | SUM4(m) << 16 | (SUM4(m) + BIT(m, 4)) << 20 |       \
     (SUM4(m) + BIT(m, 4) + BIT(m, 5)) << 24 | (SUM4(m) + BIT(m, 4) + BIT(m, 5) + BIT(m, 6)) << 28)
#define TAKE4(m) TAKE(m), TAKE((m) + 1), TAKE((m) + 2), TAKE((m) + 3)
#define TAKE16(m) TAKE4(m), TAKE4((m) + 4), TAKE4((m) + 8), TAKE4((m) + 12)
#define TAKE64(m) TAKE16(m), TAKE16((m) + 16), TAKE16((m) + 32), TAKE16((m) + 48)
static const uint32_t take_order[256] = {TAKE64(0), TAKE64(64), TAKE64(128), TAKE64(192)};

/* give_order: the lanes in the mask, ascending, as the last of the eight; zeros before them. */
static const uint32_t give_order[256] = {
    0x00000000, 0x00000000, 0x10000000, 0x10000000, 0x20000000, 0x20000000, 0x21000000, 0x21000000,
    0x30000000, 0x30000000, 0x31000000, 0x31000000, 0x32000000, 0x32000000, 0x32100000, 0x32100000,
    0x40000000, 0x40000000, 0x41000000, 0x41000000, 0x42000000, 0x42000000, 0x42100000, 0x42100000,
    0x43000000, 0x43000000, 0x43100000, 0x43100000, 0x43200000, 0x43200000, 0x43210000, 0x43210000,
    0x50000000, 0x50000000, 0x51000000, 0x51000000, 0x52000000, 0x52000000, 0x52100000, 0x52100000,
    0x53000000, 0x53000000, 0x53100000, 0x53100000, 0x53200000, 0x53200000, 0x53210000, 0x53210000,
    0x54000000, 0x54000000, 0x54100000, 0x54100000, 0x54200000, 0x54200000, 0x54210000, 0x54210000,
    0x54300000, 0x54300000, 0x54310000, 0x54310000, 0x54320000, 0x54320000, 0x54321000, 0x54321000,
    0x60000000, 0x60000000, 0x61000000, 0x61000000, 0x62000000, 0x62000000, 0x62100000, 0x62100000,
    0x63000000, 0x63000000, 0x63100000, 0x63100000, 0x63200000, 0x63200000, 0x63210000, 0x63210000,
    0x64000000, 0x64000000, 0x64100000, 0x64100000, 0x64200000, 0x64200000, 0x64210000, 0x64210000,
    0x64300000, 0x64300000, 0x64310000, 0x64310000, 0x64320000, 0x64320000, 0x64321000, 0x64321000,
    0x65000000, 0x65000000, 0x65100000, 0x65100000, 0x65200000, 0x65200000, 0x65210000, 0x65210000,
    0x65300000, 0x65300000, 0x65310000, 0x65310000, 0x65320000, 0x65320000, 0x65321000, 0x65321000,
    0x65400000, 0x65400000, 0x65410000, 0x65410000, 0x65420000, 0x65420000, 0x65421000, 0x65421000,
    0x65430000, 0x65430000, 0x65431000, 0x65431000, 0x65432000, 0x65432000, 0x65432100, 0x65432100,
    0x70000000, 0x70000000, 0x71000000, 0x71000000, 0x72000000, 0x72000000, 0x72100000, 0x72100000,
    0x73000000, 0x73000000, 0x73100000, 0x73100000, 0x73200000, 0x73200000, 0x73210000, 0x73210000,
    0x74000000, 0x74000000, 0x74100000, 0x74100000, 0x74200000, 0x74200000, 0x74210000, 0x74210000,
    0x74300000, 0x74300000, 0x74310000, 0x74310000, 0x74320000, 0x74320000, 0x74321000, 0x74321000,
    0x75000000, 0x75000000, 0x75100000, 0x75100000, 0x75200000, 0x75200000, 0x75210000, 0x75210000,
    0x75300000, 0x75300000, 0x75310000, 0x75310000, 0x75320000, 0x75320000, 0x75321000, 0x75321000,
    0x75400000, 0x75400000, 0x75410000, 0x75410000, 0x75420000, 0x75420000, 0x75421000, 0x75421000,
    0x75430000, 0x75430000, 0x75431000, 0x75431000, 0x75432000, 0x75432000, 0x75432100, 0x75432100,
    0x76000000, 0x76000000, 0x76100000, 0x76100000, 0x76200000, 0x76200000, 0x76210000, 0x76210000,
    0x76300000, 0x76300000, 0x76310000, 0x76310000, 0x76320000, 0x76320000, 0x76321000, 0x76321000,
    0x76400000, 0x76400000, 0x76410000, 0x76410000, 0x76420000, 0x76420000, 0x76421000, 0x76421000,
    0x76430000, 0x76430000, 0x76431000, 0x76431000, 0x76432000, 0x76432000, 0x76432100, 0x76432100,
    0x76500000, 0x76500000, 0x76510000, 0x76510000, 0x76520000, 0x76520000, 0x76521000, 0x76521000,
    0x76530000, 0x76530000, 0x76531000, 0x76531000, 0x76532000, 0x76532000, 0x76532100, 0x76532100,
    0x76540000, 0x76540000, 0x76541000, 0x76541000, 0x76542000, 0x76542000, 0x76542100, 0x76542100,
    0x76543000, 0x76543000, 0x76543100, 0x76543100, 0x76543200, 0x76543200, 0x76543210, 0x76543210,
};

/* One number per lane; the permutation looks at its three lowest bits only. */
CAS_AVX2 static inline __m256i order_of(uint32_t order) {
    return _mm256_srlv_epi32(_mm256_set1_epi32((int)order), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
}

/* Two entries of 8 bytes. Loads one by one: gathers cost more than twice as much here (Zen 3). */
CAS_AVX2 static inline __m128i two(const cas_entropy_symbol *symbols, uint8_t a, uint8_t b) {
    const __m128i low = _mm_loadl_epi64((const __m128i *)(const void *)(symbols + a));
    return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(low), (const __m64 *)(const void *)(symbols + b)));
}

CAS_AVX2 static inline __m256i push8(__m256i x, const uint8_t *src, const cas_entropy_symbol *symbols, uint32_t bits,
                                     uint8_t **at) {
    const __m256i fourteen = _mm256_set1_epi32((1 << 14) - 1);
    const __m256i sides = _mm256_set_m128i(two(symbols, src[4], src[5]), two(symbols, src[0], src[1]));
    const __m256i others = _mm256_set_m128i(two(symbols, src[6], src[7]), two(symbols, src[2], src[3]));
    const __m256 left = _mm256_castsi256_ps(sides);
    const __m256 right = _mm256_castsi256_ps(others);
    const __m256i inverse = _mm256_castps_si256(_mm256_shuffle_ps(left, right, 0x88));
    const __m256i packed = _mm256_castps_si256(_mm256_shuffle_ps(left, right, 0xDD));
    const __m256i complement = _mm256_and_si256(_mm256_srli_epi32(packed, 14), fourteen);

    const __m128i room = _mm_cvtsi32_si128((int)(CAS_ENTROPY_STATE_BITS - bits));
    const __m256i due = _mm256_cmpgt_epi32(_mm256_add_epi32(_mm256_srl_epi32(x, room), complement),
                                           _mm256_set1_epi32((1 << bits) - 1));
    const unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(due));
    const __m256i words = _mm256_and_si256(_mm256_permutevar8x32_epi32(x, order_of(give_order[mask])),
                                           _mm256_set1_epi32(0xFFFF));
    _mm_storeu_si128((__m128i *)(void *)(*at - 16),
                     _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    *at -= 2 * (size_t)_mm_popcnt_u32(mask);
    x = _mm256_blendv_epi8(x, _mm256_srli_epi32(x, 16), due);

    const __m256i twice = _mm256_add_epi32(x, x);
    const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(twice, inverse), 32);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(twice, 32), _mm256_srli_epi64(inverse, 32));
    const __m256i quotient =
        _mm256_srlv_epi32(_mm256_blend_epi32(even, odd, 0xAA), _mm256_srli_epi32(packed, 28));
    return _mm256_add_epi32(_mm256_add_epi32(x, _mm256_and_si256(packed, fourteen)),
                            _mm256_mullo_epi32(quotient, complement));
}

CAS_AVX2 uint8_t *cas_entropy_push_groups_avx2(const uint8_t *src, size_t groups, const cas_entropy_symbol symbols[256],
                                               uint32_t bits, uint32_t states[32], uint8_t *floor, uint8_t *at) {
    __m256i x[4];
    memcpy(x, states, sizeof x);
    while (groups-- > 0) {
        /* 48 bytes at most are used when the last vector stores its 16. */
        if ((size_t)(at - floor) < CAS_ENTROPY_GROUP_BYTES) return NULL;
        const uint8_t *group = src + groups * CAS_ENTROPY_LANES;
        x[3] = push8(x[3], group + 24, symbols, bits, &at);
        x[2] = push8(x[2], group + 16, symbols, bits, &at);
        x[1] = push8(x[1], group + 8, symbols, bits, &at);
        x[0] = push8(x[0], group, symbols, bits, &at);
    }
    memcpy(states, x, sizeof x);
    return at;
}

/* Eight table entries, one by one for the same reason. */
CAS_AVX2 static inline __m256i slots_at(__m256i index, const uint32_t *slots) {
    const __m128i low = _mm256_castsi256_si128(index);
    const __m128i high = _mm256_extracti128_si256(index, 1);
    const uint64_t a = (uint64_t)_mm_cvtsi128_si64(low);
    const uint64_t b = (uint64_t)_mm_extract_epi64(low, 1);
    const uint64_t c = (uint64_t)_mm_cvtsi128_si64(high);
    const uint64_t d = (uint64_t)_mm_extract_epi64(high, 1);
    return _mm256_setr_epi32((int)slots[(uint32_t)a], (int)slots[a >> 32], (int)slots[(uint32_t)b], (int)slots[b >> 32],
                             (int)slots[(uint32_t)c], (int)slots[c >> 32], (int)slots[(uint32_t)d],
                             (int)slots[d >> 32]);
}

/* `with_common` is a constant after inlining. */
CAS_AVX2 static inline __attribute__((always_inline)) __m256i
pop8(__m256i x, const cas_entropy_decoder *decoder, bool with_common, __m256i *symbols, const uint8_t **at) {
    const __m256i twelve = _mm256_set1_epi32((1 << 12) - 1);
    const __m128i bits = _mm_cvtsi32_si128(with_common ? (int)decoder->bits : CAS_ENTROPY_MIN_BITS);
    const __m256i index = _mm256_and_si256(x, with_common ? _mm256_set1_epi32((1 << decoder->bits) - 1) : twelve);
    __m256i slot;
    __m256i freq;
    __m256i offset;
    if (with_common) {
        /* All slots of the common value share slots[0], where freq and offset are 0. */
        const __m256i below = _mm256_set1_epi32((int)decoder->common_freq - 1);
        const __m256i place = _mm256_max_epi32(_mm256_sub_epi32(index, below), _mm256_setzero_si256());
        const __m256i is_common = _mm256_cmpeq_epi32(place, _mm256_setzero_si256());
        const __m256i common_freq = _mm256_set1_epi32((int)decoder->common_freq);
        slot = slots_at(place, decoder->slots);
        freq = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi32(slot, 12), twelve),
                               _mm256_and_si256(common_freq, is_common));
        offset = _mm256_or_si256(_mm256_and_si256(slot, twelve), _mm256_and_si256(index, is_common));
    } else {
        slot = slots_at(index, decoder->slots);
        freq = _mm256_and_si256(_mm256_srli_epi32(slot, 12), twelve);
        offset = _mm256_and_si256(slot, twelve);
    }
    *symbols = _mm256_srli_epi32(slot, 24);
    x = _mm256_add_epi32(_mm256_mullo_epi32(freq, _mm256_srl_epi32(x, bits)), offset);
    const __m256i due = _mm256_cmpgt_epi32(_mm256_set1_epi32(CAS_ENTROPY_LOW), x);
    const unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(due));
    const __m256i next = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)*at));
    const __m256i words = _mm256_permutevar8x32_epi32(next, order_of(take_order[mask]));
    *at += 2 * (size_t)_mm_popcnt_u32(mask);
    return _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), words), due);
}

CAS_AVX2 static inline __attribute__((always_inline)) size_t
pop_groups(const uint8_t **src, const uint8_t *end, const cas_entropy_decoder *decoder, bool with_common,
           uint32_t states[32], uint8_t *out, size_t groups) {
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const uint8_t *at = *src;
    __m256i x[4];
    __m256i s[4];
    size_t done = 0;
    memcpy(x, states, sizeof x);
    for (; done < groups && (size_t)(end - at) >= CAS_ENTROPY_GROUP_BYTES; done++) {
        for (size_t v = 0; v < 4; v++) x[v] = pop8(x[v], decoder, with_common, &s[v], &at);
        const __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(s[0], s[1]), _mm256_packus_epi32(s[2], s[3]));
        _mm256_storeu_si256((__m256i *)(void *)(out + done * CAS_ENTROPY_LANES),
                            _mm256_permutevar8x32_epi32(bytes, in_order));
    }
    memcpy(states, x, sizeof x);
    *src = at;
    return done;
}

CAS_AVX2 size_t cas_entropy_pop_groups_avx2(const uint8_t **src, const uint8_t *end,
                                            const cas_entropy_decoder *decoder, uint32_t states[32], uint8_t *out,
                                            size_t groups) {
    return decoder->common_freq == 0 ? pop_groups(src, end, decoder, false, states, out, groups)
                                     : pop_groups(src, end, decoder, true, states, out, groups);
}
#else
typedef int cas_no_entropy_avx2; /* ISO C wants a declaration in every file */
#endif
