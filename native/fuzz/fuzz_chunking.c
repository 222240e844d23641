/* Cuts keep their sizes, end at the end, and depend neither on how the stream was split, in 64 parts at most, nor on
   the kernel. */
#include <stdlib.h>
#include <string.h>

#include "casckpt.h"

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_len);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_len) {
    if (input_len < 4) return 0;
    const uint64_t min_bytes = 64 + input[0] % 193u;
    const uint64_t avg_bytes = UINT64_C(256) << (input[1] & 3);
    const uint64_t max_bytes = avg_bytes + input[2] * UINT64_C(33);
    const uint8_t *data = input + 4;
    const size_t len = input_len - 4;
    const size_t step = 1 + input[3] * (size_t)17 + len / 64;
    const size_t cap = len / min_bytes + 1;
    uint64_t *whole = malloc(cap * sizeof *whole);
    if (whole == NULL) abort();
    cas_chunker chunker;
    size_t whole_count = 0;
    if (cas_kernel_use(CAS_KERNEL_PORTABLE) != CAS_OK) abort();
    if (cas_chunker_init(&chunker, min_bytes, avg_bytes, max_bytes) != CAS_OK) abort();
    if (cas_chunker_feed(&chunker, data, len, whole, cap, &whole_count) != CAS_OK) abort();
    uint64_t start = 0;
    for (size_t i = 0; i < whole_count; i++) {
        if (whole[i] - start < min_bytes || whole[i] - start > max_bytes || whole[i] > len) abort();
        start = whole[i];
    }
    for (int32_t kernel = 0; kernel < CAS_KERNEL_COUNT; kernel++) {
        if (cas_kernel_use(kernel) != CAS_OK) continue;
        if (cas_chunker_init(&chunker, min_bytes, avg_bytes, max_bytes) != CAS_OK) abort();
        size_t seen = 0;
        for (size_t at = 0; at < len; at += step) {
            const size_t take = len - at < step ? len - at : step;
            const size_t room = take / min_bytes + 1;
            uint8_t *piece = malloc(take);
            uint64_t *ends = malloc(room * sizeof *ends);
            size_t count = 0;
            if (piece == NULL || ends == NULL) abort();
            memcpy(piece, data + at, take);
            if (cas_chunker_feed(&chunker, piece, take, ends, room, &count) != CAS_OK) abort();
            if (seen + count > whole_count || memcmp(ends, whole + seen, count * sizeof *ends) != 0) abort();
            seen += count;
            free(piece);
            free(ends);
        }
        uint64_t end = 0;
        int32_t has_end = 0;
        if (seen != whole_count || cas_chunker_finish(&chunker, &end, &has_end) != CAS_OK) abort();
        if (has_end ? end != len : (len != 0 && start != len)) abort();
    }
    free(whole);
    return 0;
}
