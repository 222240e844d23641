/* blake3_neon.c: four lanes on 64-bit Arm, where NEON is always there. The code is in blake3_lanes.h. */
#include "internal.h"

#if CAS_ARM
#include <arm_neon.h>

#define CAS_LANES 4
#define CAS_PAIRS 0
#define CAS_MANY cas_b3_many_neon
#define CAS_RAGGED cas_b3_ragged_neon

typedef uint32x4_t lanes_t;

static inline lanes_t splat(uint32_t word) { return vdupq_n_u32(word); }
static inline void split_counters(const uint64_t *counters, lanes_t *low, lanes_t *high) {
    const uint32x4_t a = vreinterpretq_u32_u64(vld1q_u64(counters));
    const uint32x4_t b = vreinterpretq_u32_u64(vld1q_u64(counters + 2));
    *low = vuzp1q_u32(a, b);
    *high = vuzp2q_u32(a, b);
}
static inline lanes_t gather4(const uint8_t *const *p, size_t at) {
    return vreinterpretq_u32_u8(vld1q_u8(p[0] + at));
}
static inline void scatter4(lanes_t v, uint8_t *const *p, size_t at) { vst1q_u8(p[0] + at, vreinterpretq_u8_u32(v)); }
static inline void transpose4(lanes_t *r) {
    const uint32x4x2_t even = vtrnq_u32(r[0], r[1]);
    const uint32x4x2_t odd = vtrnq_u32(r[2], r[3]);
    r[0] = vcombine_u32(vget_low_u32(even.val[0]), vget_low_u32(odd.val[0]));
    r[1] = vcombine_u32(vget_low_u32(even.val[1]), vget_low_u32(odd.val[1]));
    r[2] = vcombine_u32(vget_high_u32(even.val[0]), vget_high_u32(odd.val[0]));
    r[3] = vcombine_u32(vget_high_u32(even.val[1]), vget_high_u32(odd.val[1]));
}
static inline lanes_t ror16(lanes_t v) { return vreinterpretq_u32_u16(vrev32q_u16(vreinterpretq_u16_u32(v))); }
static inline lanes_t ror12(lanes_t v) { return vsriq_n_u32(vshlq_n_u32(v, 20), v, 12); }
static inline lanes_t ror8(lanes_t v) { return vsriq_n_u32(vshlq_n_u32(v, 24), v, 8); }
static inline lanes_t ror7(lanes_t v) { return vsriq_n_u32(vshlq_n_u32(v, 25), v, 7); }

#include "blake3_lanes.h"

#else
typedef int cas_no_neon; /* ISO C wants a declaration in every file */
#endif
