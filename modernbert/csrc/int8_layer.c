/* The encoder's products in int8 on processors with AVX512_VNNI, and all that is computed between
   them, in one pass for each product: modernbert/int8_native.py calls it.

   Rows are computed in chunks whose values stay in the L2 cache. All that a row meets is the same
   whichever rows are beside it, so that its bits do not depend on them.

   A row of x is rounded to int8 with a scale of its own and stored as u8, 128 more, since vpdpbusd
   multiplies u8 by s8; `offsets`, 128 times the sum of a column's weights, are subtracted again.
   Largest values are compared as integers: in them NaN is above all numbers, and is never lost.

   Shapes: `rows` tokens, `in` and `out` the width of a product. */

#include "lanes.h"

#if HAS_LANES

enum {
    CHUNK = 16 * GROUP, /* rows whose values are in cache at a time */
    LARGEST = 127       /* int8 */
};
/* Grows where a function's arguments change: modernbert/native.py compares it. */
__attribute__((visibility("default"))) const int interface_version = 1;
static const float LEAST_SCALE = 1e-12f; /* of a row whose values are all zero */

typedef struct {
    const int8_t *panels;   /* (out / COLUMNS, in / 4, COLUMNS, 4) */
    const float *scales;    /* (out) */
    const int32_t *offsets; /* (out) */
    const float *bias;      /* (out) or null */
    int64_t in, out;
} Product;

typedef struct {
    const float *weight; /* (in), or null for no norm at all */
    const float *bias;   /* (in) or null */
    float eps;
} Norm;

/* What is done with the sums of a product: queries and keys are turned by RoPE, and written head by
   head, as values are; added to a residual; or gated (values and gates alternate, 16 by 16). */
typedef enum { ROTATE, ADD, GATE } Use;

typedef struct {
    float *out;             /* ADD: (rows, out); GATE: half as wide */
    const float *residual;  /* ADD: (rows, out) */
    float *qkv[3];          /* ROTATE: (heads, tokens, head_dim) each */
    const float *cos, *sin; /* ROTATE: (tokens, head_dim / 2) */
    int64_t head_dim;       /* ROTATE */
    int64_t first, tokens;  /* ROTATE: the chunk's first row, of all */
    __m512i *largest;       /* GATE: of each row, lane by lane, as integers */
} Target;

INLINE __m512i magnitude(__m512 x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

/* Round a row to int8; return its scale. */
INLINE float quantise(const float *row, int64_t width, __m512i largest, uint8_t *values) {
    union { int32_t bits; float value; } most = {_mm512_reduce_max_epi32(largest)};
    float scale = most.value / LARGEST;
    scale = scale < LEAST_SCALE ? LEAST_SCALE : scale; /* NaN stays */
    __m512 inverse = _mm512_set1_ps(1.0f / scale);
    for (int64_t i = 0; i < width; i += LANES) {
        __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row + i), inverse));
        __m512i shifted = _mm512_add_epi32(rounded, _mm512_set1_epi32(LARGEST + 1));
        _mm_storeu_si128((__m128i *)(values + i), _mm512_cvtepi32_epi8(shifted));
    }
    return scale;
}

INLINE float quantise_row(const float *row, int64_t width, uint8_t *values) {
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < width; i += LANES)
        largest = _mm512_max_epi32(largest, magnitude(_mm512_loadu_ps(row + i)));
    return quantise(row, width, largest, values);
}

/* LayerNorm, then int8; `normed` is a buffer for a row. */
INLINE float normalise_row(const float *row, int64_t width, const Norm *norm, float *normed,
                           uint8_t *values) {
    __m512 sum = _mm512_setzero_ps(), squares = sum, zero = sum;
    for (int64_t i = 0; i < width; i += LANES)
        sum = _mm512_add_ps(sum, _mm512_loadu_ps(row + i));
    __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
    for (int64_t i = 0; i < width; i += LANES) {
        __m512 x = _mm512_sub_ps(_mm512_loadu_ps(row + i), mean);
        squares = _mm512_fmadd_ps(x, x, squares);
    }
    float variance = _mm512_reduce_add_ps(squares) / width;
    __m512 factor = _mm512_set1_ps(1.0f / sqrtf(variance + norm->eps));
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < width; i += LANES) {
        __m512 x = _mm512_sub_ps(_mm512_loadu_ps(row + i), mean);
        __m512 bias = norm->bias ? _mm512_loadu_ps(norm->bias + i) : zero;
        x = _mm512_fmadd_ps(_mm512_mul_ps(x, factor), _mm512_loadu_ps(norm->weight + i), bias);
        _mm512_storeu_ps(normed + i, x);
        largest = _mm512_max_epi32(largest, magnitude(x));
    }
    return quantise(normed, width, largest, values);
}

/* x * Phi(x), Phi from erf by Abramowitz and Stegun 7.1.26: within 1.5e-7. */
INLINE __m512 gelu(__m512 x) {
    const float factors[] = {1.061405429f, -1.453152027f, 1.421413741f, -0.284496736f,
                             0.254829592f};
    __m512 t = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    __m512 d = _mm512_fmadd_ps(t, _mm512_set1_ps(0.3275911f), _mm512_set1_ps(1.0f));
    __m512 k = _mm512_rcp14_ps(d); /* then one step of Newton's */
    k = _mm512_mul_ps(k, _mm512_fnmadd_ps(d, k, _mm512_set1_ps(2.0f)));
    __m512 series = _mm512_set1_ps(factors[0]);
    for (int i = 1; i < 5; i++) series = _mm512_fmadd_ps(series, k, _mm512_set1_ps(factors[i]));
    __m512 power = _mm512_mul_ps(_mm512_mul_ps(t, t), _mm512_set1_ps(-LOG2_E));
    __m512 tail = _mm512_mul_ps(_mm512_mul_ps(series, k), power_of_two(power));
    tail = _mm512_mul_ps(tail, _mm512_set1_ps(0.5f));
    __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
    __m512 phi = _mm512_mask_sub_ps(tail, positive, _mm512_set1_ps(1.0f), tail);
    return _mm512_mul_ps(x, phi);
}

/* Turn the pairs (2i, 2i + 1) of 16 columns by their angles. */
INLINE __m512 rotate(__m512 x, const float *cos, const float *sin) {
    __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    __m512 cosines = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(cos)));
    __m512 sines = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(sin)));
    __m512 swapped = _mm512_permute_ps(x, 0xb1);
    return _mm512_fmaddsub_ps(x, cosines, _mm512_mul_ps(swapped, sines));
}

/* Write 16 columns of queries, keys or values, from `column` on. */
INLINE void write_head(__m512 y, int64_t row, int64_t column, int64_t out, const Target *t) {
    int64_t third = out / 3, part = column / third, within = column % third;
    int64_t head = within / t->head_dim, i = within % t->head_dim, token = t->first + row;
    if (part < 2) {
        int64_t angle = (token * t->head_dim + i) / 2;
        y = rotate(y, t->cos + angle, t->sin + angle);
    }
    _mm512_storeu_ps(t->qkv[part] + (head * t->tokens + token) * t->head_dim + i, y);
}

INLINE __m512 dequantise(__m512i sums, float scale, const Product *w, int64_t column) {
    sums = _mm512_sub_epi32(sums, _mm512_loadu_si512(w->offsets + column));
    __m512 scales = _mm512_mul_ps(_mm512_loadu_ps(w->scales + column), _mm512_set1_ps(scale));
    __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scales);
    return w->bias ? _mm512_add_ps(y, _mm512_loadu_ps(w->bias + column)) : y;
}

/* Multiply a chunk of rows: `values` has whole groups, of which `rows` rows count. */
INLINE void multiply(const uint8_t *values, const float *scales, int64_t rows, const Product *w,
                     const Target *target, Use how) {
    int64_t panel_bytes = w->in * COLUMNS;
    for (int64_t column = 0; column < w->out; column += COLUMNS) {
        const int8_t *panel = w->panels + column * w->in;
        for (int64_t first = 0; first < rows; first += GROUP) {
            /* Weights come from beyond L2, while the panel before them is multiplied. */
            int64_t share = panel_bytes / (CHUNK / GROUP);
            const int8_t *ahead = panel + panel_bytes + first / GROUP * share;
            for (int64_t i = 0; i < share; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
            __m512i sums[GROUP][2];
            FOR_EACH_ROW sums[r][0] = sums[r][1] = _mm512_setzero_si512();
            const uint8_t *group = values + first * w->in;
            const int8_t *weights = panel;
            for (int64_t k = 0; k < w->in; k += 4, weights += 4 * COLUMNS) {
                __m512i left = _mm512_loadu_si512(weights);
                __m512i right = _mm512_loadu_si512(weights + 2 * COLUMNS);
                FOR_EACH_ROW {
                    int32_t four;
                    memcpy(&four, group + r * w->in + k, sizeof four);
                    __m512i x = _mm512_set1_epi32(four);
                    /* Of the intrinsic GCC 12 copies each sum: half the speed. */
                    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums[r][0]) : "v"(x), "v"(left));
                    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums[r][1]) : "v"(x), "v"(right));
                }
            }
            FOR_EACH_ROW {
                int64_t row = first + r;
                if (row >= rows) break;
                __m512 y = dequantise(sums[r][0], scales[row], w, column);
                __m512 z = dequantise(sums[r][1], scales[row], w, column + LANES);
                if (how == ROTATE) {
                    write_head(y, row, column, w->out, target);
                    write_head(z, row, column + LANES, w->out, target);
                } else if (how == GATE) {
                    y = _mm512_mul_ps(gelu(y), z);
                    _mm512_storeu_ps(target->out + row * w->out / 2 + column / 2, y);
                    __m512i *largest = target->largest + row;
                    *largest = _mm512_max_epi32(*largest, magnitude(y));
                } else {
                    int64_t at = row * w->out + column;
                    const float *residual = target->residual + at;
                    _mm512_storeu_ps(target->out + at, _mm512_add_ps(y, _mm512_loadu_ps(residual)));
                    z = _mm512_add_ps(z, _mm512_loadu_ps(residual + LANES));
                    _mm512_storeu_ps(target->out + at + LANES, z);
                }
            }
        }
    }
}

typedef struct {
    uint8_t *values;  /* (CHUNK, widest input of a product) */
    float *hidden;    /* (CHUNK, widest) */
    float scales[CHUNK];
    __m512i largest[CHUNK];
} Buffers;

/* Return null where there is no memory. */
static Buffers *allocate(int64_t widest) {
    Buffers *b = aligned_alloc(64, sizeof(Buffers));
    int64_t floats = CHUNK * widest;
    float *hidden = aligned_alloc(64, floats * (sizeof(float) + 1));
    if (!b || !hidden) {
        free(b);
        free(hidden);
        return 0;
    }
    b->hidden = hidden;
    b->values = (uint8_t *)(hidden + floats);
    return b;
}

static void release(Buffers *b) {
    free(b->hidden);
    free(b);
}

/* Queries, keys and values, (heads, tokens, head_dim) each, of the rows [start, stop) of x (tokens,
   in). 0, or 1 where there is no memory. */
EXPORT int project_qkv(const float *x, int64_t start, int64_t stop, int64_t tokens,
                       const Norm *norm, const Product *w, const float *cos, const float *sin,
                       int64_t head_dim, float *q, float *k, float *v) {
    int64_t width = w->in;
    Buffers *b = allocate(width);
    if (!b) return 1;
    Target target = {.qkv = {q, k, v}, .cos = cos, .sin = sin, .head_dim = head_dim,
                     .tokens = tokens};
    for (target.first = start; target.first < stop; target.first += CHUNK) {
        int64_t count = smaller(CHUNK, stop - target.first);
        for (int64_t r = 0; r < count; r++) {
            const float *row = x + (target.first + r) * width;
            uint8_t *values = b->values + r * width;
            b->scales[r] = norm->weight ? normalise_row(row, width, norm, b->hidden, values)
                                        : quantise_row(row, width, values);
        }
        multiply(b->values, b->scales, count, w, &target, ROTATE);
    }
    release(b);
    return 0;
}

/* x + attended Wo, and the MLP added to that, for the rows [start, stop). 0, or 1 where there is no
   memory. */
EXPORT int project_output(const float *x, const float *attended, int64_t start, int64_t stop,
                          const Product *wo, const Norm *norm, const Product *mlp_wi,
                          const Product *mlp_wo, float *out) {
    int64_t width = wo->out, hidden = mlp_wo->in;
    Buffers *b = allocate(larger(hidden, width));
    if (!b) return 1;
    for (; start < stop; start += CHUNK) {
        int64_t count = smaller(CHUNK, stop - start);
        for (int64_t r = 0; r < count; r++) {
            const float *row = attended + (start + r) * wo->in;
            b->scales[r] = quantise_row(row, wo->in, b->values + r * wo->in);
        }
        float *y = out + start * width;
        Target sum = {.out = y, .residual = x + start * width};
        multiply(b->values, b->scales, count, wo, &sum, ADD);
        for (int64_t r = 0; r < count; r++) {
            uint8_t *values = b->values + r * width;
            b->scales[r] = normalise_row(y + r * width, width, norm, b->hidden, values);
            b->largest[r] = _mm512_setzero_si512();
        }
        Target gated = {.out = b->hidden, .largest = b->largest};
        multiply(b->values, b->scales, count, mlp_wi, &gated, GATE);
        for (int64_t r = 0; r < count; r++) {
            const float *row = b->hidden + r * hidden;
            b->scales[r] = quantise(row, hidden, b->largest[r], b->values + r * hidden);
        }
        Target total = {.out = y, .residual = y};
        multiply(b->values, b->scales, count, mlp_wo, &total, ADD);
    }
    release(b);
    return 0;
}

#endif
