/* Attention in fp32 within each sequence of a packed batch, global or in a sliding window, on
   processors with AVX512: modernbert/native.py calls it.

   Twelve queries of a head at a time: their scores with all keys that one of them sees, softmax,
   and the weighted sum of values. They start at the first token of a sequence, so that its bits do
   not depend on what else is in the batch.

   Shapes: L tokens of a sequence, N heads, H head dim. */

#include "lanes.h"

#if HAS_LANES

enum {
    QUERIES = 2 * GROUP,  /* that read keys and values together */
    VALUES_IN_CACHE = 512 /* values that these read twice in a row */
};

typedef struct {
    const float *q, *k, *v; /* of one head, at a sequence's first token */
    int64_t row;            /* floats from a token to the next */
    float *out;             /* likewise */
    int64_t out_row;
    int64_t length, head_dim;
    int64_t left, right; /* keys seen on each side */
} Head;

typedef struct {
    float *keys;   /* (L / COLUMNS, H, COLUMNS) */
    float *scores; /* (QUERIES, L to a multiple of COLUMNS) */
    int64_t row;
} Buffers;

/* Add left (GROUP, depth) times right (depth, 32) to `sums`, or write it there. Rows past `rows`
   are read from the last one, and not stored. */
INLINE void multiply(const float *left, int64_t left_row, const float *right, int64_t right_row,
                     int64_t depth, float *sums, int64_t sums_row, int64_t rows, int adds) {
    __m512 acc[GROUP][2];
    int64_t at[GROUP];
    FOR_EACH_ROW {
        at[r] = smaller(r, rows - 1);
        acc[r][0] = adds ? _mm512_loadu_ps(sums + at[r] * sums_row) : _mm512_setzero_ps();
        acc[r][1] = adds ? _mm512_loadu_ps(sums + at[r] * sums_row + LANES) : _mm512_setzero_ps();
        at[r] *= left_row;
    }
    for (int64_t i = 0; i < depth; i++, right += right_row) {
        __m512 first = _mm512_loadu_ps(right), second = _mm512_loadu_ps(right + LANES);
        FOR_EACH_ROW {
            __m512 x = _mm512_set1_ps(left[at[r] + i]);
            acc[r][0] = _mm512_fmadd_ps(x, first, acc[r][0]);
            acc[r][1] = _mm512_fmadd_ps(x, second, acc[r][1]);
        }
    }
    FOR_EACH_ROW {
        if (r >= rows) break;
        _mm512_storeu_ps(sums + r * sums_row, acc[r][0]);
        _mm512_storeu_ps(sums + r * sums_row + LANES, acc[r][1]);
    }
}

/* Transpose 16 rows of 16 floats: exchange blocks of 8, 4, 2 and 1 between pairs of rows. */
INLINE void transpose(const float *from, int64_t from_row, int64_t rows, float *to,
                      int64_t to_row) {
    __m512 x[LANES];
    __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++)
        x[i] = i < rows ? _mm512_loadu_ps(from + i * from_row) : _mm512_setzero_ps();
    _Pragma("GCC unroll 4") for (int d = 8; d; d /= 2) {
        __m512i distance = _mm512_set1_epi32(d);
        __mmask16 upper = _mm512_test_epi32_mask(lane, distance);
        /* Of both rows, the second's lanes are numbered from 16 on. */
        __m512i low = _mm512_mask_add_epi32(lane, upper, lane, _mm512_set1_epi32(16 - d));
        __m512i high = _mm512_mask_add_epi32(_mm512_add_epi32(lane, distance), upper, lane,
                                             _mm512_set1_epi32(16));
        _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) {
            if (i & d) continue;
            __m512 a = x[i], b = x[i + d];
            x[i] = _mm512_permutex2var_ps(a, low, b);
            x[i + d] = _mm512_permutex2var_ps(a, high, b);
        }
    }
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++)
        _mm512_storeu_ps(to + i * to_row, x[i]);
}

INLINE void pack_keys(const Head *h, float *keys) {
    for (int64_t key = 0; key < h->length; key += LANES) {
        float *panel = keys + key / COLUMNS * COLUMNS * h->head_dim + key % COLUMNS;
        const float *first = h->k + key * h->row;
        for (int64_t i = 0; i < h->head_dim; i += LANES)
            transpose(first + i, h->row, h->length - key, panel + i * COLUMNS, COLUMNS);
    }
}

/* Turn the scores [first, last) of a row into weights: those of keys in [seen, end), else 0.
   Return their sum. */
INLINE float weigh(float *scores, int64_t first, int64_t last, int64_t seen, int64_t end,
                   float factor) {
    __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    __m512i low = _mm512_set1_epi32(seen), high = _mm512_set1_epi32(end);
    for (int64_t i = first; i < last; i += LANES) {
        __m512i key = _mm512_add_epi32(lane, _mm512_set1_epi32(i));
        __mmask16 visible = _mm512_cmpge_epi32_mask(key, low) & _mm512_cmplt_epi32_mask(key, high);
        __m512 x = _mm512_loadu_ps(scores + i);
        most = _mm512_mask_max_ps(most, visible, most, x);
    }
    __m512 factors = _mm512_set1_ps(factor);
    __m512 largest = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(most)), factors);
    for (int64_t i = first; i < last; i += LANES) {
        __m512i key = _mm512_add_epi32(lane, _mm512_set1_epi32(i));
        __mmask16 visible = _mm512_cmpge_epi32_mask(key, low) & _mm512_cmplt_epi32_mask(key, high);
        __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + i), factors, largest);
        x = _mm512_maskz_mov_ps(visible, power_of_two(x));
        sum = _mm512_add_ps(sum, x);
        _mm512_storeu_ps(scores + i, x);
    }
    return _mm512_reduce_add_ps(sum);
}

/* Attention of the queries [query, query + count), at most QUERIES. */
INLINE void attend(const Head *h, const Buffers *b, int64_t query, int64_t count) {
    int64_t first = larger(0, query - h->left) / COLUMNS * COLUMNS;
    int64_t last = smaller(h->length, query + count + h->right);
    const float *q = h->q + query * h->row;
    float *out = h->out + query * h->out_row;
    for (int64_t key = first; key < last; key += COLUMNS)
        for (int64_t r = 0; r < count; r += GROUP)
            multiply(q + r * h->row, h->row, b->keys + key * h->head_dim, COLUMNS, h->head_dim,
                     b->scores + r * b->row + key, b->row, count - r, 0);
    float sums[QUERIES];
    float factor = LOG2_E / sqrtf(h->head_dim);
    for (int64_t r = 0; r < count; r++) {
        int64_t seen = larger(0, query + r - h->left);
        int64_t end = smaller(h->length, query + r + h->right + 1);
        sums[r] = weigh(b->scores + r * b->row, first, last, seen, end, factor);
    }
    for (int64_t key = first; key < last; key += VALUES_IN_CACHE)
        for (int64_t i = 0; i < h->head_dim; i += COLUMNS)
            for (int64_t r = 0; r < count; r += GROUP)
                multiply(b->scores + r * b->row + key, b->row, h->v + key * h->row + i, h->row,
                         smaller(last - key, VALUES_IN_CACHE), out + r * h->out_row + i, h->out_row,
                         count - r, key > first);
    for (int64_t r = 0; r < count; r++) {
        __m512 inverse = _mm512_set1_ps(1.0f / sums[r]);
        for (int64_t i = 0; i < h->head_dim; i += LANES) {
            float *at = out + r * h->out_row + i;
            _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), inverse));
        }
    }
}

/* Queries, keys and values are `row` floats apart from a token to the next, and `head` from a head
   to the next; outputs `out_row` and head_dim. The heads [first_head, last_head) are computed,
   `left` and `right` are the keys seen on each side. 0, or 1 where there is no memory. */
EXPORT int attention(const float *q, const float *k, const float *v, int64_t row, int64_t head,
                     float *out, int64_t out_row, const int64_t *lengths, int64_t sequences,
                     int64_t longest, int64_t first_head, int64_t last_head, int64_t head_dim,
                     int64_t left, int64_t right) {
    int64_t padded = (larger(longest, 1) + COLUMNS - 1) / COLUMNS * COLUMNS;
    Buffers b = {.row = padded + LANES}; /* rows apart by a power of two share places in a cache */
    b.keys = aligned_alloc(64, padded * head_dim * sizeof(float));
    b.scores = aligned_alloc(64, QUERIES * b.row * sizeof(float));
    int failed = !b.keys || !b.scores;
    for (int64_t n = first_head; n < last_head && !failed; n++) {
        for (int64_t s = 0, start = 0; s < sequences; start += lengths[s++]) {
            int64_t at = start * row + n * head;
            Head h = {q + at, k + at, v + at, row, out + start * out_row + n * head_dim, out_row,
                      lengths[s], head_dim, left, right};
            pack_keys(&h, b.keys);
            for (int64_t query = 0; query < h.length; query += QUERIES)
                attend(&h, &b, query, smaller(QUERIES, h.length - query));
        }
    }
    free(b.keys);
    free(b.scores);
    return failed;
}

#endif
