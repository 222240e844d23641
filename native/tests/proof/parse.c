/* Any bytes as a payload of a chunk of any length: reads stay inside, and what is said of it too. */
#include "__fc_builtin.h"
#include "internal.h"

enum { LEN_MAX = 48 };

static uint8_t payload[LEN_MAX];

int main(void) {
    int32_t predictor = 0;
    uint32_t width = 0;
    cas_plane planes[8];
    size_t tail = 0;
    Frama_C_make_unknown((char *)payload, sizeof payload);
    const size_t len = (size_t)Frama_C_interval(0, LEN_MAX);
    //@ split len;
    const size_t chunk_len = Frama_C_unsigned_long_interval(0, UINT64_MAX);
    if (cas_chunk_parse(payload, len, chunk_len, &predictor, &width, planes, 8, &tail) == CAS_OK) {
        //@ check tail <= len;
    }
    return 0;
}
