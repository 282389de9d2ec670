/* What the sources of the library share: sixteen floats at a time. */

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_LANES 1

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define INLINE VNNI static inline __attribute__((always_inline))
#define EXPORT VNNI __attribute__((visibility("default")))
#define FOR_EACH_ROW _Pragma("GCC unroll 12") for (int r = 0; r < GROUP; r++)

enum {
    LANES = 16,          /* floats in a register */
    GROUP = 12,          /* rows of a product whose sums are in registers at a time, */
    COLUMNS = 2 * LANES  /* and columns: 24 registers of 32 */
};
static const float LOG2_E = 1.44269504f;

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* 2^x for x <= 0, by a whole power and a Taylor series, to within 2e-7; of NaN NaN. */
INLINE __m512 power_of_two(__m512 x) {
    const float taylor[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                            2.4022651e-1f, 6.9314718e-1f, 1.0f}; /* ln(2)^k / k! */
    x = _mm512_max_ps(_mm512_set1_ps(-150.0f), x);
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(x, whole), series = _mm512_set1_ps(taylor[0]);
    for (int k = 1; k < 7; k++)
        series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(taylor[k]));
    return _mm512_scalef_ps(series, whole);
}

#else
#define HAS_LANES 0
#endif
