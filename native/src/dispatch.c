/* dispatch.c: which kernel runs. The only state of the C core is one atomic word.
 *
 * Two threads that meet on first use both find the same answer, so no lock is needed.
 */
#include <stdatomic.h>

#include "internal.h"

enum { UNDECIDED = -1 };

static _Atomic int32_t active = UNDECIDED;

/* The filters of SSE4.1 and NEON are the portable loops: the baseline of x86-64 and of 64-bit Arm already vectorises
 * them (SSE2, NEON). AVX512 takes those of AVX2, which leave little to gain before memory is the limit. The entropy
 * coder needs lanes that shift and permute on their own, which AVX2 was the first to have. */
static const cas_kernel_set kernels[CAS_KERNEL_COUNT] = {
    [CAS_KERNEL_PORTABLE] = {cas_b3_many_portable, cas_b3_ragged_portable, cas_gear_scan_portable,
                             cas_mark_values_portable, cas_split_portable, cas_join_portable,
                             cas_entropy_push_groups_portable, cas_entropy_pop_groups_portable},
#if CAS_X86
    [CAS_KERNEL_SSE41] = {cas_b3_many_sse41, cas_b3_ragged_sse41, cas_gear_scan_portable,
                          cas_mark_values_portable, cas_split_portable, cas_join_portable,
                          cas_entropy_push_groups_portable, cas_entropy_pop_groups_portable},
    [CAS_KERNEL_AVX2] = {cas_b3_many_avx2, cas_b3_ragged_avx2, cas_gear_scan_avx2, cas_mark_values_avx2,
                         cas_split_avx2, cas_join_avx2, cas_entropy_push_groups_avx2,
                         cas_entropy_pop_groups_avx2},
    [CAS_KERNEL_AVX512] = {cas_b3_many_avx512, cas_b3_ragged_avx512, cas_gear_scan_avx2, cas_mark_values_avx2,
                           cas_split_avx2, cas_join_avx2, cas_entropy_push_groups_avx2,
                           cas_entropy_pop_groups_avx2},
#endif
#if CAS_ARM
    [CAS_KERNEL_NEON] = {cas_b3_many_neon, cas_b3_ragged_neon, cas_gear_scan_portable,
                         cas_mark_values_portable, cas_split_portable, cas_join_portable,
                         cas_entropy_push_groups_portable, cas_entropy_pop_groups_portable},
#endif
};

int32_t cas_kernel_available(int32_t kernel) {
    switch (kernel) {
    case CAS_KERNEL_PORTABLE:
        return 1;
#if CAS_X86
    /* The builtins also ask the operating system (XGETBV) whether it saves the wide registers. */
    case CAS_KERNEL_SSE41:
        return __builtin_cpu_supports("sse4.1") ? 1 : 0;
    case CAS_KERNEL_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") ? 1 : 0;
    case CAS_KERNEL_AVX512:
        return cas_kernel_available(CAS_KERNEL_AVX2) && __builtin_cpu_supports("avx512f") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")
                   ? 1
                   : 0;
#endif
#if CAS_ARM
    case CAS_KERNEL_NEON:
        return 1;
#endif
    default:
        return 0;
    }
}

int32_t cas_kernel_active(void) {
    int32_t kernel = atomic_load_explicit(&active, memory_order_relaxed);
    if (kernel == UNDECIDED) {
        kernel = CAS_KERNEL_COUNT - 1;
        while (!cas_kernel_available(kernel)) kernel--;
        int32_t expected = UNDECIDED;
        /* A choice made by cas_kernel_use in the meantime stays. */
        if (!atomic_compare_exchange_strong(&active, &expected, kernel)) kernel = expected;
    }
    return kernel;
}

cas_status cas_kernel_use(int32_t kernel) {
    if (!cas_kernel_available(kernel)) return CAS_ERR_KERNEL;
    atomic_store_explicit(&active, kernel, memory_order_relaxed);
    return CAS_OK;
}

const cas_kernel_set *cas_kernels(void) { return &kernels[cas_kernel_active()]; }
