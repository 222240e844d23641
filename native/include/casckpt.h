/* casckpt.h: the public face of the C core. Bytes in, bytes out.
 *
 * Contract of every function here:
 *   - works only on memory the caller hands in; allocates nothing, does no I/O, keeps no pointer after it returns;
 *   - each pointer comes with its length in bytes (or items, where the name says so); a pointer may be NULL only when
 *     its length is 0 or the comment says so;
 *   - re-entrant and thread safe as long as two threads do not write to the same memory (readers may share);
 *   - returns CAS_OK or the reason it refused; on refusal no out-parameter has been touched, but for the bytes
 *     of `out` and `scratch` of coders and decoders, where their comments say so;
 *   - all integers on the wire are little-endian.
 *
 * The block between the two `cffi` marks is read verbatim by build_cffi.py, so it holds no preprocessor lines.
 */
#ifndef CASCKPT_H
#define CASCKPT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cffi: begin */

/* Values are pinned: Python maps them to exceptions by number. */
typedef enum {
    CAS_OK = 0,
    CAS_ERR_NULL = 1,      /* a NULL pointer with a length that is not 0 */
    CAS_ERR_SIZE = 2,      /* a length that does not fit the others, or would overflow */
    CAS_ERR_PARAMETER = 3, /* a parameter outside its documented range */
    CAS_ERR_OVERLAP = 4,   /* source and destination share bytes */
    CAS_ERR_CAPACITY = 5,  /* the destination has no room for the result */
    CAS_ERR_KERNEL = 6,    /* this processor or this build has no such kernel */
    CAS_ERR_DATA = 7,      /* the source is nothing that decodes to the length asked for */
    CAS_ERR_NEWER = 8      /* the source names a layout or method that this version does not know */
} cas_status;

/* ---- kernels: which instruction set the hot loops use ------------------------------------------------------- */

typedef enum {
    CAS_KERNEL_PORTABLE = 0, /* plain C: the definition of every result */
    CAS_KERNEL_SSE41 = 1,
    CAS_KERNEL_AVX2 = 2,
    CAS_KERNEL_AVX512 = 3,
    CAS_KERNEL_NEON = 4,
    CAS_KERNEL_COUNT = 5
} cas_kernel;

/* The kernel in use; the best one this processor can run is chosen on first use. */
int32_t cas_kernel_active(void);
/* 1 when `kernel` is compiled in and this processor (and its operating system) can run it, else 0. */
int32_t cas_kernel_available(int32_t kernel);
/* Use `kernel` from now on, in all threads. CAS_ERR_KERNEL, and no change, when it is not available. */
cas_status cas_kernel_use(int32_t kernel);

/* ---- BLAKE3 ------------------------------------------------------------------------------------------------- */

/* Flags of the specification (section 2.1) that select the mode; pinned by it. */
typedef enum {
    CAS_MODE_HASH = 0,
    CAS_MODE_KEYED = 16,
    CAS_MODE_DERIVE_CONTEXT = 32,
    CAS_MODE_DERIVE_MATERIAL = 64
} cas_hash_mode;

/* A hash in progress. The caller owns the memory; fields are private. Copying the struct forks the hash. */
typedef struct {
    uint32_t key[8];
    uint32_t mode;
    uint32_t chunk_len;   /* bytes waiting in `chunk`, 0..1024 */
    uint32_t stack_count; /* subtree values waiting in `stack` */
    uint64_t chunk_index; /* whole chunks already in `stack` */
    uint8_t chunk[1024];
    uint8_t stack[1760]; /* 55 values of 32 bytes: 2^64 bytes are 2^54 chunks, plus one not yet merged */
} cas_hasher;

/* Start a hash. `key` is 32 bytes in modes KEYED and DERIVE_MATERIAL, and must be NULL in the others. */
cas_status cas_hasher_init(cas_hasher *hasher, uint32_t mode, const uint8_t *key, size_t key_len);
/* Add `data_len` bytes. Pieces of 64 KiB and more run at full speed. */
cas_status cas_hasher_update(cas_hasher *hasher, const uint8_t *data, size_t data_len);
/* Write the first `out_len` bytes of the output (any length; a shorter output is a prefix of a longer one).
 * Does not change the hasher, so more may be added afterwards. */
cas_status cas_hasher_finish(const cas_hasher *hasher, uint8_t *out, size_t out_len);

/* init + update + finish. */
cas_status cas_hash(uint32_t mode, const uint8_t *key, size_t key_len, const uint8_t *data, size_t data_len,
                    uint8_t *out, size_t out_len);
/* 32 bytes each for every consecutive `piece_len` bytes of `data` (the last may be shorter; no data, no ids).
 * `out_len` must be exactly 32 * ceil(data_len / piece_len); `piece_len` > 0. */
cas_status cas_hash_grid(uint32_t mode, const uint8_t *key, size_t key_len, const uint8_t *data, size_t data_len,
                         size_t piece_len, uint8_t *out, size_t out_len);
/* 32 bytes each for the pieces of `data` that end at ends[0] <= ends[1] <= ... <= data_len; the first starts at 0,
 * each other where the one before ends. `out_len` must be exactly 32 * ends_count. */
cas_status cas_hash_pieces(uint32_t mode, const uint8_t *key, size_t key_len, const uint8_t *data, size_t data_len,
                           const uint64_t *ends, size_t ends_count, uint8_t *out, size_t out_len);
/* 32 bytes each for `count` separate inputs, inputs[i] being lens[i] bytes long. `out_len` must be 32 * count. */
cas_status cas_hash_many(uint32_t mode, const uint8_t *key, size_t key_len, const uint8_t *const *inputs,
                         const size_t *lens, size_t count, uint8_t *out, size_t out_len);
/* Hash `a` and compare it with `b` in one pass over memory. *equal becomes 1 or 0; `out_len` must be 32.
 * Inputs of different length are not an error: they are not equal. */
cas_status cas_equal_and_hash(uint32_t mode, const uint8_t *key, size_t key_len, const uint8_t *a, size_t a_len,
                              const uint8_t *b, size_t b_len, int32_t *equal, uint8_t *out, size_t out_len);

/* ---- content-defined chunking (Gear hash, FastCDC with normalised chunking) ----------------------------------- */

/* A chunker in progress. The caller owns the memory; fields are private. */
typedef struct {
    uint64_t gear[256];
    uint64_t min_bytes;
    uint64_t avg_bytes;
    uint64_t max_bytes;
    uint64_t hard_mask; /* tested below avg_bytes */
    uint64_t easy_mask; /* tested from avg_bytes on */
    uint64_t hash;
    uint64_t length; /* bytes of the open chunk seen so far */
    uint64_t offset; /* bytes of the stream seen so far */
} cas_chunker;

/* The 256 x u64 Gear table, as 2048 bytes little-endian: derive_key("casckpt gear v1", "").
 * `out_len` must be 2048. */
cas_status cas_gear_table(uint8_t *out, size_t out_len);
/* Start a stream. 64 <= min <= avg <= max < 2^62, avg a power of two and at least 256. */
cas_status cas_chunker_init(cas_chunker *chunker, uint64_t min_bytes, uint64_t avg_bytes, uint64_t max_bytes);
/* Add bytes; write the stream offsets at which chunks end to ends[0..*ends_count). `ends_cap` must be at least
 * data_len / min_bytes + 1. The cuts depend on the stream alone, never on how it was split into calls. */
cas_status cas_chunker_feed(cas_chunker *chunker, const uint8_t *data, size_t data_len, uint64_t *ends,
                            size_t ends_cap, size_t *ends_count);
/* End the stream: one more end in *end and 1 in *has_end when bytes are left, else 0 in *has_end. */
cas_status cas_chunker_finish(cas_chunker *chunker, uint64_t *end, int32_t *has_end);

/* ---- filters: make numbers compressible, exactly reversibly --------------------------------------------------- */

typedef enum {
    CAS_PREDICT_NONE = 0, /* z = x */
    CAS_PREDICT_SUB = 1,  /* z = zigzag(x - base), wrap-around */
    CAS_PREDICT_XOR = 2   /* z = x ^ base */
} cas_predictor;

/* Read `len` bytes of little-endian items of `width` (2, 4 or 8) bytes, rotate each left by one bit if `rotate`
 * (also those of `base`), predict, and write the items' bytes as `width` planes of floor(len / width) bytes, most
 * significant plane first. The len % width bytes at the end are copied as they are after the planes.
 * `base_len` must be `len`, or 0 for CAS_PREDICT_NONE. `out_len` must be `len`. `out` overlaps nothing. */
cas_status cas_planes_split(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *src, size_t len,
                            const uint8_t *base, size_t base_len, uint8_t *out, size_t out_len);
/* The inverse: planes back to items, with the same `base`. */
cas_status cas_planes_join(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *planes, size_t len,
                           const uint8_t *base, size_t base_len, uint8_t *out, size_t out_len);

/* The same with each plane where it is: planes[0..width) of `plane_len` == floor(out_len / width) bytes each, most
 * significant first, and `tail_len` == out_len % width bytes for the end. No input overlaps `out`. */
cas_status cas_planes_join_from(int32_t predictor, uint32_t width, int32_t rotate, const uint8_t *const *planes,
                                size_t plane_len, const uint8_t *tail, size_t tail_len, const uint8_t *base,
                                size_t base_len, uint8_t *out, size_t out_len);

/* Count each byte value. `counts_count` must be 256; counts are overwritten. */
cas_status cas_histogram(const uint8_t *data, size_t data_len, uint64_t *counts, size_t counts_count);
/* Order-0 entropy in bits per byte, 0.0 for no data. */
cas_status cas_entropy(const uint8_t *data, size_t data_len, double *bits);
/* *constant = 1 when all bytes are equal (also for 0 or 1 bytes), else 0. */
cas_status cas_is_constant(const uint8_t *data, size_t data_len, int32_t *constant);
/* memcpy with both lengths checked; the point is that the caller's lock is not held meanwhile. */
cas_status cas_copy(uint8_t *dst, size_t dst_len, const uint8_t *src, size_t src_len);

/* *equal = 1 when both have the same length and bytes, else 0. */
cas_status cas_equal(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len, int32_t *equal);

/* ---- entropy coder: order-0, for planes ------------------------------------------------------------------------ */

/* Write the stream of src_len <= 2^26 bytes to `out` and its length to *out_len; 0 for no bytes. CAS_ERR_CAPACITY when
 * it does not fit; out_cap of 705 bytes more than the stream always suffices, 705 + 2 * src_len for any source. `out`
 * may have been written to even so. */
cas_status cas_entropy_encode(const uint8_t *src, size_t src_len, uint8_t *out, size_t out_cap, size_t *out_len);
/* Read a stream of exactly src_len bytes that stands for exactly out_len <= 2^26. Total: any other bytes are
 * CAS_ERR_DATA; nothing outside is read or written, and the time is bounded by out_len. `out` is undefined then. */
cas_status cas_entropy_decode(const uint8_t *src, size_t src_len, uint8_t *out, size_t out_len);

/* ---- whole chunks: payloads of the encoding `planes` (docs/format.md, section 6) --------------------------------- */

typedef enum {
    CAS_METHOD_RAW = 0,
    CAS_METHOD_CONSTANT = 1, /* one byte, the value of all */
    CAS_METHOD_ZSTD = 2,     /* not done here */
    CAS_METHOD_ENTROPY = 3
} cas_method;

/* One plane of a payload. */
typedef struct {
    uint32_t method;
    uint32_t structured; /* encoding: 1 when samples repeat more than a coder that sees single bytes can use, or when
                          * the plane was left for that, else 0 */
    uint32_t bits_q16;   /* encoding: order-0 entropy of samples, in bits per byte times 2^16 */
    uint32_t len;        /* bytes of the body, at `offset` in the payload */
    uint64_t offset;
} cas_plane;

/* Rotate, predict and split `src` as cas_planes_split does, into `scratch` of exactly src_len; code each plane as
 * constant, entropy stream or raw; write the payload to `out`. A stream is kept only when it takes at most
 * keep_q16 / 2^16 of the plane, and tried only for planes p with bit p of `coded` set. A plane whose samples have less
 * than leave_q16 / 2^16 bits per byte is left raw: a coder that skips runs is several times as fast there.
 * planes[0..width) describe what was written; `planes_count` must be 8. `out_cap` must be at least src_len + 2048. No
 * two ranges overlap, but src and base may. */
cas_status cas_chunk_encode(int32_t predictor, uint32_t width, const uint8_t *src, size_t src_len, const uint8_t *base,
                            size_t base_len, uint32_t coded, uint32_t keep_q16, uint32_t leave_q16, uint8_t *scratch,
                            size_t scratch_len, uint8_t *out, size_t out_cap, cas_plane *planes, size_t planes_count,
                            size_t *out_len);
/* Estimate from 16 windows of 4 KiB the order-0 bits per byte, times 2^16, of the planes of `src` as it is and of its
 * difference to `base`, averaged over the planes. `base_len` must be src_len, `scratch_len` at least 3 * 65536. */
cas_status cas_delta_estimate(uint32_t width, const uint8_t *src, size_t src_len, const uint8_t *base, size_t base_len,
                              uint8_t *scratch, size_t scratch_len, uint32_t *plain_q16, uint32_t *delta_q16);
/* Take a payload for a chunk of chunk_len bytes apart: its predictor, width, planes[0..width) and where the tail
 * begins. Total: CAS_ERR_DATA or CAS_ERR_NEWER for what is no payload. `planes_count` must be 8. */
cas_status cas_chunk_parse(const uint8_t *src, size_t src_len, size_t chunk_len, int32_t *predictor, uint32_t *width,
                           cas_plane *planes, size_t planes_count, size_t *tail_offset);
/* Decode a payload to exactly out_len bytes. given[p] is plane p, out_len / width bytes, where its method is zstd;
 * `given_count` must be 8, the others are not looked at. `base_len` must be out_len if the payload has a predictor,
 * else it may be anything. Total: CAS_ERR_DATA or CAS_ERR_NEWER, `out` and `scratch` undefined, for what does not
 * decode; CAS_ERR_SIZE when the base is missing, CAS_ERR_NULL when a given plane is. `scratch_len` must be out_len. */
cas_status cas_chunk_decode(const uint8_t *src, size_t src_len, const uint8_t *base, size_t base_len,
                            const uint8_t *const *given, size_t given_count, uint8_t *scratch, size_t scratch_len,
                            uint8_t *out, size_t out_len);

/* ---- set of 64-bit id prefixes (gc mark) ---------------------------------------------------------------------- */

/* The table is slots_count + 1 words of the caller's, all 0 at first; slots_count is a power of two >= 16. The word
 * behind the slots says whether prefix 0 is in. `used` counts the slots taken (prefix 0 not among them).
 * Ids are 32 bytes; the first 8, little-endian, are the prefix. */

/* Add `ids`; *used is raised by the slots newly taken, *added becomes the number of prefixes that were new.
 * CAS_ERR_CAPACITY, nothing added, when *used + number of ids would pass 3/4 of slots_count. */
cas_status cas_prefix_add(uint64_t *table, size_t slots_count, uint64_t *used, const uint8_t *ids, size_t ids_len,
                          uint64_t *added);
/* out[i] = 1 when the prefix of id i is in, else 0. `out_len` must be ids_len / 32. */
cas_status cas_prefix_contains(const uint64_t *table, size_t slots_count, const uint8_t *ids, size_t ids_len,
                               uint8_t *out, size_t out_len);
/* Move all prefixes of `from` into the empty, larger table `to`. */
cas_status cas_prefix_rehash(const uint64_t *from, size_t from_slots_count, uint64_t *to, size_t to_slots_count);

/* cffi: end */

#ifdef __cplusplus
}
#endif

#endif
