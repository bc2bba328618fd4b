/* Attention within the documents of packed rows, forward and backward, on a CPU without a matrix unit.

   torch's operations see a row whole: they multiply every query of it with keys of other documents, and throw
   that away. Here each document is taken for itself, a block of QUERIES queries at a time, which meet the keys from
   the first that any of them sees to the last: little more is multiplied than is needed, and a head's document is
   work for one thread, while others do other ones. document_attention.py compiles this file and calls it.

   The formulas (Dao et al. 2022, appendix B), with scores S = q kᵀ / sqrt(d), weights P = softmax(S) and o = P v;
   backward, given do, makes P again from S and what forward kept of each query, log(sum(exp(S))):

       dv = Pᵀ do      dP = do vᵀ      dS = P · (dP - sum(do · o))      dq = dS k / sqrt(d)      dk = dSᵀ q / sqrt(d)

   All five products and forward's two are one function, C += A B, with A read in any direction. Its vectors run
   along the rows of B and C, so k and v are also kept transposed. NUMBER_BITS says how q, k, v and o come (16: bf16,
   32: fp32); all arithmetic is in fp32, on copies whose sizes are filled up with zeros to whole vectors.

   Shapes: b rows, h heads, g key/value heads, t tokens, d head size; n tokens of a document; filled up: N and D. */

#include "lanes.h"

/* Queries at a time, a multiple of STRIP. Fewer would multiply less in vain, more use what is in the cache longer. */
#define QUERIES 32
#define STRIP (2 * LANES)
#if LANES == 16 /* so many rows of C are summed side by side as there are registers for */
#define ROWS 8
static const ints32 COUNTED = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
#define ROWS 4
static const ints32 COUNTED = {0, 1, 2, 3, 4, 5, 6, 7};
#endif
#define FILLED_UP(size, unit) (((size) + (unit) - 1) / (unit) * (unit))

/* What document_attention.py fills in; the same fields in the same order stand there. */

struct heads { /* a tensor [b][heads][t][d], whose last numbers lie behind each other */
    number *numbers;
    int64_t row, head, token; /* so many numbers from one to the next */
};

struct batch {
    int64_t rows, heads, kv_heads, tokens, size; /* b, h, g, t, d */
    int64_t window;           /* so many tokens are seen, itself included; 0: all */
    const int32_t *documents; /* [b][t] */
    struct heads q, k, v, out;
    float *log_sums; /* [b][h][t] */
};

struct gradients {
    struct heads out, q, k, v;
};

struct document {
    int64_t row, begin, end;
};

/* Reading, writing, multiplying ----------------------------------------------------------------------- */

/* A document's numbers [n][d] times `factor`, as fp32 [filled][columns]. The filling is zero. */
static void fetch(const struct heads *from, int64_t row, int64_t head, int64_t begin, int64_t n, int64_t d,
                  float factor, int64_t filled, int64_t columns, float *to) {
    for (int64_t i = 0; i < n; i++, to += columns) {
        const number *one = from->numbers + row * from->row + head * from->head + (begin + i) * from->token;
        int64_t c = 0;
        for (; c + LANES <= d; c += LANES) store_32(to + c, number_lanes(one + c) * factor);
        for (; c < columns; c++) to[c] = c < d ? from_number(one[c]) * factor : 0;
    }
    memset(to, 0, (filled - n) * columns * sizeof(float));
}

static void keep(const float *from, int64_t columns, int64_t n, int64_t d, float factor, const struct heads *to,
                 int64_t row, int64_t head, int64_t begin) {
    for (int64_t i = 0; i < n; i++, from += columns) {
        number *one = to->numbers + row * to->row + head * to->head + (begin + i) * to->token;
        int64_t c = 0;
        for (; c + LANES <= d; c += LANES) store_numbers(one + c, lanes_of_32(from + c) * factor);
        for (; c < d; c++) one[c] = to_number(from[c] * factor);
    }
}

/* [N][D] -> [D][N] */
static void transpose(const float *from, int64_t rows, int64_t columns, float *to) {
    for (int64_t i = 0; i < rows; i += 16) /* by squares, of which both sides stay in the cache */
        for (int64_t c = 0; c < columns; c += 16)
            for (int64_t s = 0; s < 16; s++)
                for (int64_t r = 0; r < 16; r++) to[(c + s) * rows + i + r] = from[(i + r) * columns + c + s];
}

/* C [m][n] += A [m][k] B [k][n]. A's numbers are `a_row` and `a_column` apart; m is a multiple of ROWS, n of STRIP. */
static void add_product(int64_t m, int64_t k, int64_t n, const float *a, int64_t a_row, int64_t a_column,
                        const float *b, int64_t b_row, float *c, int64_t c_row) {
    for (int64_t strip = 0; strip < n; strip += STRIP)
        for (int64_t i = 0; i < m; i += ROWS) {
            const float *numbers = a + i * a_row;
            float *at = c + i * c_row + strip;
            floats left[ROWS], right[ROWS];
            for (int r = 0; r < ROWS; r++) {
                left[r] = lanes_of_32(at + r * c_row);
                right[r] = lanes_of_32(at + r * c_row + LANES);
            }
            for (int64_t j = 0; j < k; j++) {
                const floats one = lanes_of_32(b + j * b_row + strip), two = lanes_of_32(b + j * b_row + strip + LANES);
                for (int r = 0; r < ROWS; r++) {
                    const float factor = numbers[r * a_row + j * a_column];
                    left[r] += factor * one;
                    right[r] += factor * two;
                }
            }
            for (int r = 0; r < ROWS; r++) {
                store_32(at + r * c_row, left[r]);
                store_32(at + r * c_row + LANES, right[r]);
            }
        }
}

/* Weights --------------------------------------------------------------------------------------------- */

/* Where a block of queries from `begin` on has its first key: of the document, in whole strips. */
static int64_t first_key(int64_t begin, int64_t window) {
    return window && begin >= window ? (begin - window + 1) / STRIP * STRIP : 0;
}

/* Which of the keys from `j` on query i sees: all bits of their lanes are set. */
static inline ints32 seen(int64_t j, int64_t i, int64_t window) {
    const ints32 keys = COUNTED + (int32_t)j;
    const int32_t from = window && i >= window ? i - window + 1 : 0;
    return (keys >= from) & (keys <= (int32_t)i);
}

/* The largest score of a query. A NaN is passed over here, and stays in the weights. */
static float largest_of(const float *scores, int64_t first, int64_t last, int64_t i, int64_t window) {
    floats largest = (floats){0} - INFINITY;
    for (int64_t j = first; j < last; j += LANES) {
        const floats these = where(seen(j, i, window), lanes_of_32(scores + j - first), (floats){0} - INFINITY);
        largest = where(these > largest, these, largest);
    }
    float found = largest[0];
    for (int lane = 1; lane < LANES; lane++) found = largest[lane] > found ? largest[lane] : found;
    return found;
}

/* Scores become exp(score - less), or 0 where the query doesn't see the key. Returns their sum. */
static float weigh(float *scores, int64_t first, int64_t last, int64_t i, int64_t window, float less) {
    floats sums = {0};
    for (int64_t j = first; j < last; j += LANES) {
        float *at = scores + j - first;
        const floats weights = where(seen(j, i, window), exp_of(lanes_of_32(at) - less), (floats){0});
        store_32(at, weights);
        sums += weights;
    }
    return sum_of(sums);
}

/* One head of one document ------------------------------------------------------------------------------ */

/* How many fp32 numbers it needs room for; backward needs the more. */
static int64_t room_for(int64_t n, int64_t d) {
    const int64_t N = FILLED_UP(n, QUERIES), D = FILLED_UP(d, STRIP);
    return 5 * N * D + 2 * QUERIES * N + 4 * QUERIES * D;
}

static void forward(const struct batch *all, struct document here, int64_t head, float *room) {
    const int64_t d = all->size, n = here.end - here.begin, N = FILLED_UP(n, QUERIES), D = FILLED_UP(d, STRIP);
    const int64_t of_group = head / (all->heads / all->kv_heads);
    float *v = room, *k = v + N * D, *keys = k + N * D, *q = keys + N * D, *out = q + QUERIES * D;
    float *weights = out + QUERIES * D;

    fetch(&all->k, here.row, of_group, here.begin, n, d, 1, N, D, k);
    fetch(&all->v, here.row, of_group, here.begin, n, d, 1, N, D, v);
    transpose(k, N, D, keys);
    for (int64_t begin = 0; begin < n; begin += QUERIES) {
        const int64_t count = n - begin < QUERIES ? n - begin : QUERIES;
        const int64_t first = first_key(begin, all->window), last = begin + QUERIES, met = last - first;
        fetch(&all->q, here.row, head, here.begin + begin, count, d, 1 / sqrtf((float)d), QUERIES, D, q);
        memset(weights, 0, QUERIES * met * sizeof(float));
        memset(out, 0, QUERIES * D * sizeof(float));
        add_product(QUERIES, d, met, q, D, 1, keys + first, N, weights, met);
        for (int64_t i = 0; i < count; i++) {
            float *mine = weights + i * met;
            const int64_t at = begin + i;
            const float largest = largest_of(mine, first, last, at, all->window);
            const float sum = weigh(mine, first, last, at, all->window, largest);
            for (int64_t j = 0; j < met; j += LANES) store_32(mine + j, lanes_of_32(mine + j) / sum);
            all->log_sums[(here.row * all->heads + head) * all->tokens + here.begin + at] = largest + logf(sum);
        }
        add_product(QUERIES, met, D, weights, met, 1, v + first * D, D, out, D);
        keep(out, D, count, d, 1, &all->out, here.row, head, here.begin + begin);
    }
}

/* All heads of a group of queries, as they add to the same dk and dv. */
static void backward(const struct batch *all, const struct gradients *to, struct document here, int64_t group,
                     float *room) {
    const int64_t d = all->size, n = here.end - here.begin, N = FILLED_UP(n, QUERIES), D = FILLED_UP(d, STRIP);
    const int64_t heads = all->heads / all->kv_heads;
    float *k = room, *keys = k + N * D, *values = keys + N * D, *dk = values + N * D, *dv = dk + N * D;
    float *q = dv + N * D, *out = q + QUERIES * D, *d_out = out + QUERIES * D, *dq = d_out + QUERIES * D;
    float *weights = dq + QUERIES * D, *changes = weights + QUERIES * N;
    const float scale = 1 / sqrtf((float)d);

    fetch(&all->v, here.row, group, here.begin, n, d, 1, N, D, k);
    transpose(k, N, D, values);
    fetch(&all->k, here.row, group, here.begin, n, d, 1, N, D, k);
    transpose(k, N, D, keys);
    memset(dk, 0, N * D * sizeof(float));
    memset(dv, 0, N * D * sizeof(float));
    for (int64_t head = group * heads; head < (group + 1) * heads; head++)
        for (int64_t begin = 0; begin < n; begin += QUERIES) {
            const int64_t count = n - begin < QUERIES ? n - begin : QUERIES, at = here.begin + begin;
            const int64_t first = first_key(begin, all->window), last = begin + QUERIES, met = last - first;
            const float *log_sums = all->log_sums + (here.row * all->heads + head) * all->tokens + at;
            fetch(&all->q, here.row, head, at, count, d, scale, QUERIES, D, q);
            fetch(&all->out, here.row, head, at, count, d, 1, QUERIES, D, out);
            fetch(&to->out, here.row, head, at, count, d, 1, QUERIES, D, d_out);
            memset(weights, 0, QUERIES * met * sizeof(float));
            memset(changes, 0, QUERIES * met * sizeof(float));
            memset(dq, 0, QUERIES * D * sizeof(float));
            add_product(QUERIES, d, met, q, D, 1, keys + first, N, weights, met);
            add_product(QUERIES, d, met, d_out, D, 1, values + first, N, changes, met);
            for (int64_t i = 0; i < QUERIES; i++) {
                float *mine = weights + i * met, *change = changes + i * met;
                if (i >= count) { /* no query, only filling */
                    memset(mine, 0, met * sizeof(float));
                    memset(change, 0, met * sizeof(float));
                    continue;
                }
                weigh(mine, first, last, begin + i, all->window, log_sums[i]);
                floats along = {0};
                for (int64_t c = 0; c < D; c += LANES)
                    along += lanes_of_32(out + i * D + c) * lanes_of_32(d_out + i * D + c);
                const float mean = sum_of(along);
                for (int64_t j = 0; j < met; j += LANES)
                    store_32(change + j, lanes_of_32(mine + j) * (lanes_of_32(change + j) - mean));
            }
            add_product(met, QUERIES, D, weights, 1, met, d_out, D, dv + first * D, D);
            add_product(met, QUERIES, D, changes, 1, met, q, D, dk + first * D, D);
            add_product(QUERIES, met, D, changes, met, 1, k + first * D, D, dq, D);
            keep(dq, D, count, d, scale, &to->q, here.row, head, at);
        }
    keep(dk, D, n, d, 1, &to->k, here.row, group, here.begin);
    keep(dv, D, n, d, 1, &to->v, here.row, group, here.begin);
}

/* All of a batch ---------------------------------------------------------------------------------------- */

/* Forward, or with `to` backward. Returns 0 if there is no memory for what it computes on the way. */
int attend(const struct batch *all, const struct gradients *to, int64_t threads) {
    struct document *documents = malloc(all->rows * all->tokens * sizeof(struct document));
    int64_t count = 0, longest = 0;
    int enough = documents != NULL;

    for (int64_t row = 0; enough && row < all->rows; row++)
        for (int64_t begin = 0, end; begin < all->tokens; begin = end) {
            const int32_t *numbers = all->documents + row * all->tokens;
            for (end = begin + 1; end < all->tokens && numbers[end] == numbers[begin];) end++;
            documents[count++] = (struct document){row, begin, end};
            if (end - begin > longest) longest = end - begin;
        }
    const int64_t each = to ? all->kv_heads : all->heads;
    (void)threads; /* where there is no OpenMP */
#pragma omp parallel num_threads(threads)
    {
        float *room = enough ? malloc(room_for(longest, all->size) * sizeof(float)) : NULL;
        if (!room) enough = 0; /* all threads that say so say the same */
#pragma omp barrier
        if (enough) {
#pragma omp for schedule(dynamic)
            for (int64_t part = 0; part < count * each; part++) {
                if (to)
                    backward(all, to, documents[part / each], part % each, room);
                else
                    forward(all, documents[part / each], part % each, room);
            }
        }
        free(room);
    }
    free(documents);
    return enough;
}
