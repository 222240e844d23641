/* Any bytes as the head of an entropy stream: reads stay inside, and so do the frequencies. */
#include "__fc_builtin.h"
#include "entropy.h"

enum { LEN_MAX = 64 };

static uint8_t stream[LEN_MAX];

int main(void) {
    cas_entropy_model model;
    Frama_C_make_unknown((char *)stream, sizeof stream);
    const size_t len = (size_t)Frama_C_interval(0, LEN_MAX);
    //@ split len;
    const size_t used = cas_entropy_get_head(stream, len, &model);
    //@ check used <= len;
    return 0;
}
