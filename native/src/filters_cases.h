/* filters_cases.h: one case for each width, predictor and turn of a filter, so that the compiler makes a loop for each. */
#ifndef CAS_FILTERS_CASES_H
#define CAS_FILTERS_CASES_H

/* Inside a function with src, base, out and items; `action` is split or join. */
#define CAS_CASE(action, bits, predictor, rotate)                                                                      \
    case (bits / 8) * 8 + predictor * 2 + rotate:                                                                      \
        action##bits(predictor, rotate, src, base, out, items);                                                        \
        break;
#define CAS_CASES_OF(action, bits)                                                                                     \
    CAS_CASE(action, bits, CAS_PREDICT_NONE, 0)                                                                        \
    CAS_CASE(action, bits, CAS_PREDICT_NONE, 1)                                                                        \
    CAS_CASE(action, bits, CAS_PREDICT_SUB, 0)                                                                         \
    CAS_CASE(action, bits, CAS_PREDICT_SUB, 1)                                                                         \
    CAS_CASE(action, bits, CAS_PREDICT_XOR, 0)                                                                         \
    CAS_CASE(action, bits, CAS_PREDICT_XOR, 1)
#define CAS_CASES(action) CAS_CASES_OF(action, 16) CAS_CASES_OF(action, 32) CAS_CASES_OF(action, 64)

#endif
