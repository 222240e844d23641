/* filters_portable.c: the plane filters for the baseline instruction set; the definition of their results. */
#include "internal.h"

#define CAS_SPLIT cas_split_portable
#define CAS_JOIN cas_join_portable
#include "filters_loops.h"
