/* A pass over a few tokens on a CPU: network.py and paged_attention.py once more, as one function.

   A step of writing has a token or two. To multiply every weight with it takes a third of a millisecond in a
   small model; to start torch's 170 operations from Python takes a whole one. Here there is nothing
   to start, and weights are read just as they lie in the model: row by row, once for all tokens of the pass.
   few_tokens.py compiles this file and calls `one_pass`. Whatever has more tokens goes through torch, whose matrix
   products are better then.

   The compiler is told two things: WEIGHT_BITS, how weights are kept (32: fp32, 16: bf16, 8: int8 with a scale
   for each output), and NUMBER_BITS, how the embedding, the norms and the cache are (32 or 16). All sums and
   all that is handed from one operation to the next is in fp32.

   Shapes: n tokens, w width, h heads, g key/value heads, d head size, m width of the MLP, v vocabulary. A row
   [n][w] is contiguous. Everything between `#pragma omp parallel` and its end is run by all threads; a loop
   behind `#pragma omp for` is shared out among them, and all wait at its end, unless it says nowait. */

#include "lanes.h"

#if WEIGHT_BITS == 8
typedef int8_t weight;
#define weight_lanes lanes_of_8
#define from_weight(w) ((float)(w))
#elif WEIGHT_BITS == 16
typedef uint16_t weight;
#define weight_lanes lanes_of_16
#define from_weight from_bf16
#else
typedef float weight;
#define weight_lanes lanes_of_32
#define from_weight(w) (w)
#endif

/* What few_tokens.py fills in; the same fields in the same order stand there. */

struct map { /* y = x Wᵀ */
    const weight *weights;  /* [outputs][inputs] */
    const uint16_t *scales; /* [outputs] in bf16, for int8; else null */
    int64_t inputs, outputs;
};

struct layer {
    struct map q, k, v, out, gate, up, down;
    const number *attention_norm, *mlp_norm; /* [w] */
    const number *q_norm, *k_norm;           /* [d] */
    number *keys, *values;                   /* [g][slots][d] */
    int64_t window;                          /* so many tokens are seen, itself included; 0: all */
};

struct network {
    int64_t depth, width, heads, kv_heads, head_size, mlp_width, vocabulary;
    int64_t slots, block_tokens; /* of the cache */
    float eps, softcap;          /* no softcap: 0 */
    const number *embedding;     /* [v][w] */
    const number *final_norm;    /* [w] */
    const float *cos, *sin;      /* [context][d], the first half of the sines negative */
    struct map head;
    const struct layer *layers;
};

struct tokens {
    int64_t count, wanted; /* n, and how many of them scores are asked for */
    const int64_t *ids, *positions, *blocks, *asked;
    int64_t blocks_each; /* blocks: [n][blocks_each], the blocks of each token's text; asked: [wanted] */
    int64_t longest;     /* the largest position, and 1 */
};

/* Matrix products -----------------------------------------------------------------------------------

   Each weight is fetched once, and multiplied with every token's number. A sum waits for the addition
   before it; so that there is always another to go on with, OUTPUTS outputs of ROWS tokens are summed side by
   side. Both are constants where this is called, and the loops over them are written out by the compiler. */

#define OUTPUTS 4
#define ROWS 4

static inline __attribute__((always_inline)) void some_outputs(
    const int outputs, const int rows, const struct map *map, int64_t first, const float *x, float *y, int add) {
    const int64_t inputs = map->inputs;
    const weight *weights = map->weights + first * inputs;
    floats sums[OUTPUTS][ROWS];
    for (int o = 0; o < outputs; o++)
        for (int r = 0; r < rows; r++) sums[o][r] = (floats){0};
    int64_t i = 0;
    for (; i + LANES <= inputs; i += LANES) {
        floats numbers[ROWS];
        for (int r = 0; r < rows; r++) numbers[r] = lanes_of_32(x + r * inputs + i);
        for (int o = 0; o < outputs; o++) {
            const weight *at = weights + o * inputs + i;
            __builtin_prefetch(at + OUTPUTS * inputs); /* of the next outputs */
            floats lanes = weight_lanes(at);
            for (int r = 0; r < rows; r++) sums[o][r] += lanes * numbers[r];
        }
    }
    for (int o = 0; o < outputs; o++) {
        float scale = map->scales ? from_bf16(map->scales[first + o]) : 1.0f;
        for (int r = 0; r < rows; r++) {
            float sum = sum_of(sums[o][r]);
            for (int64_t rest = i; rest < inputs; rest++)
                sum += from_weight(weights[o * inputs + rest]) * x[r * inputs + rest];
            float *to = y + r * map->outputs + first + o;
            *to = scale * sum + (add ? *to : 0.0f);
        }
    }
}

/* y [n][outputs] = x [n][inputs] Wᵀ, added to what is there if `add`. Does not wait for the other threads. */
static void product(const struct map *map, const float *x, int64_t n, float *y, int add) {
    const int64_t whole = map->outputs / OUTPUTS, tiles = whole + map->outputs % OUTPUTS;
#pragma omp for schedule(static) nowait
    for (int64_t tile = 0; tile < tiles; tile++)
        for (int64_t row = 0; row < n; row += ROWS) {
            const float *from = x + row * map->inputs;
            float *to = y + row * map->outputs;
            const int64_t rows = n - row < ROWS ? n - row : ROWS;
            if (tile >= whole) { /* the last outputs, one by one */
                for (int64_t r = 0; r < rows; r++)
                    some_outputs(1, 1, map, whole * OUTPUTS + tile - whole, from + r * map->inputs,
                                 to + r * map->outputs, add);
                continue;
            }
            switch (rows) {
            case 1: some_outputs(OUTPUTS, 1, map, tile * OUTPUTS, from, to, add); break;
            case 2: some_outputs(OUTPUTS, 2, map, tile * OUTPUTS, from, to, add); break;
            case 3: some_outputs(OUTPUTS, 3, map, tile * OUTPUTS, from, to, add); break;
            default: some_outputs(OUTPUTS, ROWS, map, tile * OUTPUTS, from, to, add);
            }
        }
}

/* Norms and rotary positions ------------------------------------------------------------------------ */

/* y = x / rms(x) · scale, over `size` numbers; x and y may be the same. */
static void rms_norm(const float *x, const number *scale, int64_t size, float eps, float *y) {
    float squares = 0;
    for (int64_t i = 0; i < size; i++) squares += x[i] * x[i];
    const float factor = 1.0f / sqrtf(squares / size + eps);
    for (int64_t i = 0; i < size; i++) y[i] = x[i] * factor * from_number(scale[i]);
}

/* Turns the pairs (x[i], x[i + d/2]) of a head. */
static void rotate(float *x, int64_t d, const float *cos, const float *sin) {
    for (int64_t i = 0; i < d / 2; i++) {
        const float one = x[i], other = x[i + d / 2];
        x[i] = one * cos[i] + other * sin[i];
        x[i + d / 2] = other * cos[i + d / 2] + one * sin[i + d / 2];
    }
}

/* Attention ----------------------------------------------------------------------------------------- */

/* One head of one token: mixes the values of the slots it sees. `chances` is room for as many numbers. */
static void attend(const float *q, const number *keys, const number *values, const int64_t *slots, int64_t seen,
                   int64_t d, float *chances, float *mixed) {
    const float scale = 1.0f / sqrtf((float)d);
    float largest = -INFINITY, all = 0;
    for (int64_t s = 0; s < seen; s++) {
        const number *key = keys + slots[s] * d;
        floats sums = {0};
        int64_t i = 0;
        for (; i + LANES <= d; i += LANES) sums += lanes_of_32(q + i) * number_lanes(key + i);
        float score = sum_of(sums);
        for (; i < d; i++) score += q[i] * from_number(key[i]);
        chances[s] = score * scale;
        if (chances[s] > largest) largest = chances[s];
    }
    for (int64_t s = 0; s < seen; s++) all += chances[s] = expf(chances[s] - largest);
    int64_t i = 0;
    for (; i + 2 * LANES <= d; i += 2 * LANES) {
        floats one = {0}, two = {0};
        for (int64_t s = 0; s < seen; s++) {
            const number *value = values + slots[s] * d + i;
            one += chances[s] * number_lanes(value);
            two += chances[s] * number_lanes(value + LANES);
        }
        for (int lane = 0; lane < LANES; lane++) {
            mixed[i + lane] = one[lane] / all;
            mixed[i + LANES + lane] = two[lane] / all;
        }
    }
    for (; i < d; i++) {
        float sum = 0;
        for (int64_t s = 0; s < seen; s++) sum += chances[s] * from_number(values[slots[s] * d + i]);
        mixed[i] = sum / all;
    }
}

/* The pass ------------------------------------------------------------------------------------------ */

/* Stores the tokens' keys and values, and writes scores [wanted][v] of what follows those asked for. Returns 0
   if there is no memory for what it computes on the way. */
int one_pass(const struct network *net, const struct tokens *tokens, float *scores, int64_t threads) {
    const int64_t n = tokens->count, w = net->width, d = net->head_size, h = net->heads, g = net->kv_heads;
    const int64_t m = net->mlp_width, longest = tokens->longest, size = net->block_tokens;
    float *room = malloc(n * (2 * w + 2 * (h + g) * d + 2 * m + h * longest) * sizeof(float));
    int64_t *slots = malloc(n * longest * sizeof(int64_t)); /* [n][longest], where each text's tokens are */
    if (!room || !slots) {
        free(room);
        free(slots);
        return 0;
    }
    float *x = room, *normed = x + n * w, *q = normed + n * w, *mixed = q + n * h * d, *k = mixed + n * h * d;
    float *v = k + n * g * d, *gate = v + n * g * d, *up = gate + n * m, *chances = up + n * m;

    (void)threads; /* where there is no OpenMP */
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < n; t++) {
            for (int64_t i = 0; i < w; i++) x[t * w + i] = from_number(net->embedding[tokens->ids[t] * w + i]);
            const int64_t *blocks = tokens->blocks + t * tokens->blocks_each;
            for (int64_t p = 0; p <= tokens->positions[t]; p++)
                slots[t * longest + p] = blocks[p / size] * size + p % size;
        }
        for (int64_t number_of = 0; number_of < net->depth; number_of++) {
            const struct layer *layer = net->layers + number_of;
#pragma omp for schedule(static)
            for (int64_t t = 0; t < n; t++) rms_norm(x + t * w, layer->attention_norm, w, net->eps, normed + t * w);
            product(&layer->q, normed, n, q, 0);
            product(&layer->k, normed, n, k, 0);
            product(&layer->v, normed, n, v, 0);
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t part = 0; part < n * (h + g); part++) { /* a token's head, of queries or of keys */
                const int64_t t = part / (h + g), head = part % (h + g), at = tokens->positions[t];
                float *one = head < h ? q + (t * h + head) * d : k + (t * g + head - h) * d;
                rms_norm(one, head < h ? layer->q_norm : layer->k_norm, d, net->eps, one);
                rotate(one, d, net->cos + at * d, net->sin + at * d);
                if (head < h) continue;
                const int64_t place = ((head - h) * net->slots + slots[t * longest + at]) * d;
                for (int64_t i = 0; i < d; i++) {
                    layer->keys[place + i] = to_number(one[i]);
                    layer->values[place + i] = to_number(v[(t * g + head - h) * d + i]);
                }
            }
#pragma omp for schedule(static)
            for (int64_t part = 0; part < n * h; part++) {
                const int64_t t = part / h, head = part % h, seen = tokens->positions[t] + 1;
                const int64_t first = layer->window && layer->window < seen ? seen - layer->window : 0;
                const int64_t of_group = head / (h / g) * net->slots * d;
                attend(q + part * d, layer->keys + of_group, layer->values + of_group, slots + t * longest + first,
                       seen - first, d, chances + part * longest, mixed + part * d);
            }
            product(&layer->out, mixed, n, x, 1);
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t t = 0; t < n; t++) rms_norm(x + t * w, layer->mlp_norm, w, net->eps, normed + t * w);
            product(&layer->gate, normed, n, gate, 0);
            product(&layer->up, normed, n, up, 0);
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t i = 0; i < n * m; i++) up[i] *= gate[i] / (1.0f + expf(-gate[i]));
            product(&layer->down, up, n, x, 1);
#pragma omp barrier
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens->wanted; t++)
            rms_norm(x + tokens->asked[t] * w, net->final_norm, w, net->eps, normed + t * w);
        product(&net->head, normed, tokens->wanted, scores, 0);
        if (net->softcap > 0) {
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t i = 0; i < tokens->wanted * net->vocabulary; i++)
                scores[i] = net->softcap * tanhf(scores[i] / net->softcap);
        }
    }
    free(room);
    free(slots);
    return 1;
}
