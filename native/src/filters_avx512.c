/* filters_avx512.c: the same loops, compiled for AVX512. */
#include "internal.h"

#if CAS_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512bw")
#endif

#define CAS_SPLIT cas_split_avx512
#define CAS_JOIN cas_join_avx512
#include "filters_loops.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int cas_no_filters_avx512; /* ISO C wants a declaration in every file */
#endif
