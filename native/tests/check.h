/* check.h: what the test programs of the C core share. */
#ifndef CAS_TESTS_CHECK_H
#define CAS_TESTS_CHECK_H

#include <stdio.h>

#include "casckpt.h"

extern int failures;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            failures++;                                                                                                \
            printf("%s:%d: kernel %d: %s\n", __FILE__, __LINE__, (int)cas_kernel_active(), #condition);                \
        }                                                                                                              \
    } while (0)

/* The next of a fixed sequence of random words. */
uint64_t random_word(void);
/* Heap blocks of exactly `len` bytes, so that a sanitizer sees one byte too far. */
uint8_t *block(size_t len);
uint8_t *random_block(size_t len);

/* refusals.c: every refusal that casckpt.h promises. */
void test_refusals(void);
/* planes.c: entropy streams, chunks and estimates. */
void test_planes(int32_t kernel);
/* interrupted.c: the choice of a kernel, met at each of its instructions by another choice. */
void test_interrupted_choice(void);

#endif
