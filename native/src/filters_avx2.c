/* filters_avx2.c: the same loops, compiled for AVX2. */
#include "internal.h"

#if CAS_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif

#define CAS_SPLIT cas_split_avx2
#define CAS_JOIN cas_join_avx2
#include "filters_loops.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int cas_no_filters_avx2; /* ISO C wants a declaration in every file */
#endif
