/* The search for codes, compiled: what search.py does, some hundred positions a call. Sums are taken in another order than there, so that
 * a choice between codes of nearly equal cost may fall otherwise; what is found costs the same.
 *
 * Matrices lie in panels of 32 outputs, which are padded: padded logits are out of reach, padded distances infinite. This file includes
 * itself once for each width of vectors: of 8 floats (AVX2), and of 16 with the instruction that multiplies pairs of int16 and sums them
 * (AVX-512 VNNI), twice the work of a fused multiply-add. There products are of integers of 12 to 15 bits.
 */
#ifndef LANES

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PANEL 32
#define BLOCK 16 /* positions whose tables of costs are made at once, to stay in the processor's cache */
#define SLOPE 0.1f
#define LEAST_POWER -126.0f

typedef struct {
    const void *weight;          /* floats (outputs / PANEL, inputs + 1, PANEL), the biases as last inputs; or, for vectors of 16, */
    const float *units, *biases; /* int16 (outputs / PANEL, (inputs + 1) / 2, PANEL, 2) in units of each output's own, and its bias */
    float limit;                 /* of the integers, so that no sum leaves 32 bits */
} matrix;

typedef struct {
    const float *codebook; /* (size, dim) */
    matrix from_sum, hidden, logits, distances; /* what the sum of earlier stages says has no weight at the first one */
} stage;

typedef struct {
    int64_t stages, size, dim, width; /* codes of a codebook, of the latents, of the context */
    int64_t pairs;                    /* whether the matrices are integers */
    const stage *stage;
} quantiser;

typedef struct {
    float cost;
    int32_t path, code;
} choice;

typedef struct {
    float *total, *cost; /* (positions * kept, dim), (positions * kept): the sum of each path's codes, and what it costs */
    int32_t *history;    /* (positions * kept, stages): its codes */
} path_arrays;

/* One piece of memory: `here` is its beginning. */
typedef struct {
    int64_t *here;             /* (count): the positions that have not ended */
    int64_t *rows, *first;     /* (BLOCK * kept), (BLOCK + 1): a block's paths that have not ended, and where each position's begin */
    float *latents, *context; /* (count, dim), (count, width): theirs */
    path_arrays now, next;
    float *from_context, *from_sum, *hidden, *sums, *residual, *table, *logits, *units; /* of a block's paths */
    choice *list;
    int16_t *pairs;
} work;

#define PRODUCT_ARGUMENTS \
    const float *x, int64_t count, int64_t inputs, const matrix *net, int64_t outputs, int16_t *pairs, float *units, float *out

static int64_t takes_pairs;

static inline int64_t whole(int64_t count) { return (count + PANEL - 1) / PANEL * PANEL; }

/* Puts a candidate into the list of the least, in order; of equals the first stays first. */
static inline void insert(choice *list, int64_t count, choice candidate) {
    int64_t at = count - 1;
    for (; at > 0 && candidate.cost < list[at - 1].cost; at--) list[at] = list[at - 1];
    list[at] = candidate;
}

/* Takes the memory that a search needs, and enters its beginning: a path of no codes at each position. Returns 0 where memory is short. */
static int begin(const quantiser *net, const float *latents, const float *context, int64_t count, int64_t paths, work *w) {
    const int64_t stages = net->stages, size = whole(net->size), dim = net->dim, width = net->width, wide = whole(width);
    const int64_t rows = count * paths, block = BLOCK * paths;
    const int64_t floats = count * (dim + width) + 2 * rows * (dim + 1) + block * (2 * wide + width + 2 * dim + 2 * size + 1);
    const int64_t longest = (dim > width ? dim : width) + 1; /* room for a whole pair */
    w->here = malloc((count + block + BLOCK + 1) * sizeof *w->here + floats * sizeof(float) + block * (sizeof(choice) + longest * sizeof(int16_t)) +
                     2 * rows * stages * sizeof(int32_t));
    if (!w->here) return 0;
    w->rows = w->here + count;
    w->first = w->rows + block;
    w->latents = (float *)(w->first + BLOCK + 1);
    w->context = w->latents + count * dim;
    w->now.total = w->context + count * width;
    w->next.total = w->now.total + rows * dim;
    w->now.cost = w->next.total + rows * dim;
    w->next.cost = w->now.cost + rows;
    w->from_context = w->next.cost + rows;
    w->from_sum = w->from_context + block * wide;
    w->hidden = w->from_sum + block * wide;
    w->sums = w->hidden + block * width;
    w->residual = w->sums + block * dim;
    w->table = w->residual + block * dim;
    w->logits = w->table + block * size;
    w->units = w->logits + block * size;
    w->list = (choice *)(w->units + block);
    w->now.history = (int32_t *)(w->list + block);
    w->next.history = w->now.history + rows * stages;
    w->pairs = (int16_t *)(w->next.history + rows * stages);
    memcpy(w->latents, latents, count * dim * sizeof(float));
    memcpy(w->context, context, count * width * sizeof(float));
    memset(w->now.total, 0, count * dim * sizeof(float));
    memset(w->now.cost, 0, count * sizeof(float));
    for (int64_t i = 0; i < count; i++) w->here[i] = i;
    return 1;
}

#define LANES 8
#define ROWS 6
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_avx2
#define LOWER(x, limit) (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)(x), _mm256_set1_ps(limit), _CMP_LT_OQ))
#define MAXIMUM(a, b) (vec_avx2) _mm256_max_ps((__m256)(a), (__m256)(b))
#include "search.c"
#undef LANES
#undef ROWS
#undef TARGET
#undef NAME
#undef LOWER
#undef MAXIMUM

#define LANES 16
#define ROWS 8
#define TARGET __attribute__((target("avx512f,avx512vnni,avx2,fma")))
#define NAME(x) x##_avx512
#define LOWER(x, limit) (uint32_t)_mm512_cmp_ps_mask((__m512)(x), _mm512_set1_ps(limit), _CMP_LT_OQ)
#define MAXIMUM(a, b) (vec_avx512) _mm512_max_ps((__m512)(a), (__m512)(b))
#define MASK(count) ((count) >= LANES ? (__mmask16)0xffff : (count) > 0 ? (__mmask16)((1u << (count)) - 1) : (__mmask16)0)
#include "search.c"

/* Whether there are vectors of 16: said by vqcodec_open, once it knows the processor. */
void vqcodec_open_search(int64_t wide) { takes_pairs = wide; }

/* Whether matrices may be integers. */
__attribute__((visibility("default"))) int64_t vqcodec_search_takes_pairs(void) { return takes_pairs; }

/* Codes (stages, count), each stage's `pitch` apart, of latents (count, dim) and context (count, width): the `ranks` cheapest ones, at most
 * `paths`, each `plane` apart. 0 where memory is short. `codes` hold zeros before. */
__attribute__((visibility("default"))) int64_t vqcodec_search(const quantiser *net, const float *latents, const float *context, int64_t count,
                                                              int64_t paths, int64_t ranks, int32_t *codes, int64_t plane, int64_t pitch) {
    return (net->pairs ? search_avx512 : search_avx2)(net, latents, context, count, paths, ranks, codes, plane, pitch);
}

#else

typedef float NAME(vec) __attribute__((vector_size(4 * LANES)));
typedef int32_t NAME(ints) __attribute__((vector_size(4 * LANES)));
#define vec NAME(vec)
#define ints NAME(ints)

TARGET static inline vec NAME(load)(const float *from) {
    vec x;
    memcpy(&x, from, sizeof x);
    return x;
}

#if LANES == 16
/* Rows (count, inputs) as integers (count, inputs rounded up to pairs), and the unit of each row. */
TARGET static void whole_numbers(const float *x, int64_t count, int64_t inputs, float limit, int16_t *out, float *units) {
    const int64_t pitch = inputs + (inputs & 1);
    for (int64_t i = 0; i < count; i++) {
        const float *row = x + i * inputs;
        __m512 most = _mm512_setzero_ps();
        for (int64_t k = 0; k < inputs; k += LANES) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(MASK(inputs - k), row + k)));
        const float largest = _mm512_reduce_max_ps(most);
        const __m512 scale = _mm512_set1_ps(largest > 0 ? limit / largest : 0);
        units[i] = largest / limit;
        for (int64_t k = 0; k < pitch; k += LANES) {
            const __m512 values = _mm512_maskz_loadu_ps(MASK(inputs - k), row + k);
            _mm512_mask_cvtsepi32_storeu_epi16(out + i * pitch + k, MASK(pitch - k), _mm512_cvtps_epi32(_mm512_mul_ps(values, scale)));
        }
    }
}

/* Rows of x (count, inputs) through a matrix: out (count, outputs), outputs whole panels. `pairs` (count, inputs rounded up to pairs) and
 * `units` (count) are overwritten. */
TARGET static void product_avx512(PRODUCT_ARGUMENTS) {
    const int64_t half = (inputs + 1) / 2;
    whole_numbers(x, count, inputs, net->limit, pairs, units);
    for (int64_t o = 0; o < outputs; o += PANEL) {
        const int16_t *weight = (const int16_t *)net->weight + o * 2 * half;
        for (int64_t i = 0; i < count; i += ROWS) {
            const int16_t *row[ROWS]; /* behind the last row, the last one again, whose sums are not stored */
            __m512i acc[ROWS][2];
            for (int p = 0; p < ROWS; p++) {
                row[p] = pairs + (i + p < count ? i + p : count - 1) * 2 * half;
                for (int v = 0; v < 2; v++) acc[p][v] = _mm512_setzero_si512();
            }
            for (int64_t k = 0; k < half; k++)
                for (int v = 0; v < 2; v++) {
                    const __m512i w = _mm512_loadu_si512(weight + 2 * (k * PANEL + v * LANES));
                    for (int p = 0; p < ROWS; p++) {
                        int32_t pair;
                        memcpy(&pair, row[p] + 2 * k, sizeof pair);
                        acc[p][v] = _mm512_dpwssd_epi32(acc[p][v], _mm512_set1_epi32(pair), w);
                    }
                }
            for (int p = 0; p < ROWS && i + p < count; p++)
                for (int v = 0; v < 2; v++) _mm512_storeu_si512(out + (i + p) * outputs + o + v * LANES, acc[p][v]);
        }
    }
    for (int64_t i = 0; i < count; i++)
        for (int64_t o = 0; o < outputs; o += LANES) {
            float *at = out + i * outputs + o; /* apart from the sums, or the compiler keeps these in memory */
            const vec sums = (vec)_mm512_cvtepi32_ps(_mm512_loadu_si512(at));
            _mm512_storeu_ps(at, (__m512)(sums * (units[i] * load_avx512(net->units + o)) + load_avx512(net->biases + o)));
        }
}
#else
/* The same in floats. */
TARGET static void product_avx2(PRODUCT_ARGUMENTS) {
    (void)pairs, (void)units;
    for (int64_t o = 0; o < outputs; o += 2 * LANES) {
        const float *weight = (const float *)net->weight + o / PANEL * (inputs + 1) * PANEL + o % PANEL;
        for (int64_t i = 0; i < count; i += ROWS) {
            const float *row[ROWS]; /* behind the last row, the last one again, whose sums are not stored */
            vec acc[ROWS][2];
            for (int p = 0; p < ROWS; p++) {
                row[p] = x + (i + p < count ? i + p : count - 1) * inputs;
                for (int v = 0; v < 2; v++) acc[p][v] = load_avx2(weight + inputs * PANEL + v * LANES);
            }
            for (int64_t k = 0; k < inputs; k++) {
                vec first = load_avx2(weight + k * PANEL), second = load_avx2(weight + k * PANEL + LANES);
                for (int p = 0; p < ROWS; p++) {
                    acc[p][0] += row[p][k] * first;
                    acc[p][1] += row[p][k] * second;
                }
            }
            for (int p = 0; p < ROWS && i + p < count; p++) memcpy(out + (i + p) * outputs + o, acc[p], sizeof acc[p]);
        }
    }
}
#endif

/* log2 of the sum of 2^logits (count), whole vectors */
TARGET static float NAME(log_sum)(const float *logits, int64_t count) {
    vec most = NAME(load)(logits), sums = {0};
    for (int64_t k = LANES; k < count; k += LANES) most = MAXIMUM(most, NAME(load)(logits + k));
    float largest = most[0], sum = 0;
    for (int lane = 1; lane < LANES; lane++) largest = most[lane] > largest ? most[lane] : largest;
    vec least = {0};
    least += LEAST_POWER;
    for (int64_t k = 0; k < count; k += LANES) {
        vec x = MAXIMUM(NAME(load)(logits + k) - largest, least);
        vec shifted = x + 12582912.0f; /* 3 * 2^22: the last bits are x rounded to an integer */
        vec f = x - (shifted - 12582912.0f);
        vec power = (vec)(((ints)shifted << 23) + 0x3f800000); /* 2^integer */
        /* 2^f on -0.5..0.5 by its Taylor series in ln 2, up to 2e-6 */
        sums += power * (1 + f * (0.693147181f + f * (0.240226507f + f * (0.0555041087f + f * (0.00961812911f + f * 0.00133335581f)))));
    }
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    return largest + log2f(sum);
}

/* Puts what is less in `rows` rows of costs, those of the paths from `paths` on less `begin`, into the list of the `wanted` least. */
TARGET static void NAME(least)(const float *table, const int64_t *paths, int64_t begin, int64_t rows, int64_t size, choice *list, int64_t wanted) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t k = 0; k < size; k += LANES) {
            const float *costs = table + row * size + k;
            uint32_t lower = LOWER(NAME(load)(costs), list[wanted - 1].cost);
            for (; lower; lower &= lower - 1) {
                int lane = __builtin_ctz(lower);
                if (costs[lane] < list[wanted - 1].cost) insert(list, wanted, (choice){costs[lane], (int32_t)(paths[row] - begin), (int32_t)k + lane});
            }
        }
}

/* What every code costs after every path of some positions, from `start` on, that has not ended: work->table (paths, size). */
TARGET static void NAME(cost_table)(const quantiser *net, int64_t s, const work *w, int64_t start, int64_t positions, int64_t kept) {
    const stage *now = net->stage + s;
    const int64_t size = whole(net->size), dim = net->dim, width = net->width, wide = whole(width);
    int64_t rows = 0;
    for (int64_t i = 0; i < positions; i++) {
        w->first[i] = rows;
        for (int64_t path = (start + i) * kept; path < (start + i + 1) * kept; path++)
            if (!s || w->now.history[path * net->stages + s - 1]) w->rows[rows++] = path;
    }
    w->first[positions] = rows;
    for (int64_t row = 0; row < rows; row++) memcpy(w->sums + row * dim, w->now.total + w->rows[row] * dim, dim * sizeof(float));
    NAME(product)(w->context + start * width, positions, width, &now->hidden, wide, w->pairs, w->units, w->from_context);
    if (s) NAME(product)(w->sums, rows, dim, &now->from_sum, wide, w->pairs, w->units, w->from_sum);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t position = w->rows[row] / kept;
        const float *first = w->from_context + (position - start) * wide, *second = w->from_sum + row * wide, *sum = w->sums + row * dim;
        for (int64_t c = 0; c < width; c++) {
            float x = s ? first[c] + second[c] : first[c];
            w->hidden[row * width + c] = x > SLOPE * x ? x : SLOPE * x;
        }
        for (int64_t d = 0; d < dim; d++) w->residual[row * dim + d] = w->latents[position * dim + d] - sum[d];
    }
    NAME(product)(w->hidden, rows, width, &now->logits, size, w->pairs, w->units, w->logits);
    NAME(product)(w->residual, rows, dim, &now->distances, size, w->pairs, w->units, w->table);
    for (int64_t row = 0; row < rows; row++) {
        float own = w->now.cost[w->rows[row]] + NAME(log_sum)(w->logits + row * size, size);
        for (int64_t k = 0; k < size; k++) w->table[row * size + k] += own - w->logits[row * size + k];
    }
}

/* Goes on with the `following` cheapest paths of each of these positions. Those of positions that do not end become work->next's, from
 * position `longer` on, and what is known of such a position moves to the front, too. Returns how many positions go on by now. */
TARGET static int64_t NAME(go_on)(const quantiser *net, int64_t s, const work *w, int64_t start, int64_t positions, int64_t kept,
                                  int64_t following, int64_t longer, int64_t ranks, int32_t *codes, int64_t plane, int64_t pitch) {
    const int64_t size = whole(net->size), dim = net->dim, width = net->width, stages = net->stages;
    for (int64_t i = 0; i < positions; i++) {
        const int64_t position = start + i;
        for (int64_t n = 0; n < following; n++) w->list[n] = (choice){INFINITY, 0, 0};
        for (int64_t n = 0; s && n < kept; n++) /* those that have ended stay as they are */
            if (!w->now.history[(position * kept + n) * stages + s - 1] && w->now.cost[position * kept + n] < w->list[following - 1].cost)
                insert(w->list, following, (choice){w->now.cost[position * kept + n], (int32_t)n, 0});
        const int64_t first = w->first[i];
        NAME(least)(w->table + first * size, w->rows + first, position * kept, w->first[i + 1] - first, size, w->list, following);
        int32_t any = 0;
        for (int64_t n = 0; n < following; n++) any |= w->list[n].code;
        for (int64_t rank = 0; rank < ranks; rank++) {
            int64_t found = rank < following ? rank : following - 1;
            while (found && w->list[found].cost == INFINITY) found--; /* there are fewer */
            const choice *ended = w->list + found;
            const int32_t *earlier = w->now.history + (position * kept + ended->path) * stages;
            int32_t *to = codes + rank * plane + w->here[position];
            for (int64_t before = 0; before < s; before++) to[before * pitch] = earlier[before];
            to[s * pitch] = ended->code;
        }
        if (!any) continue;
        for (int64_t n = 0; n < following; n++) {
            const choice *chosen_path = w->list + n;
            const int64_t from = position * kept + chosen_path->path, to = longer * following + n;
            const float *code = net->stage[s].codebook + chosen_path->code * dim;
            for (int64_t d = 0; d < dim; d++) w->next.total[to * dim + d] = w->now.total[from * dim + d] + code[d];
            memcpy(w->next.history + to * stages, w->now.history + from * stages, s * sizeof(int32_t));
            w->next.history[to * stages + s] = chosen_path->code;
            w->next.cost[to] = chosen_path->cost;
        }
        memmove(w->latents + longer * dim, w->latents + position * dim, dim * sizeof(float));
        memmove(w->context + longer * width, w->context + position * width, width * sizeof(float));
        w->here[longer++] = w->here[position];
    }
    return longer;
}

TARGET static int64_t NAME(search)(const quantiser *net, const float *latents, const float *context, int64_t count, int64_t paths,
                                   int64_t ranks, int32_t *codes, int64_t plane, int64_t pitch) {
    work w;
    if (!begin(net, latents, context, count, paths, &w)) return 0;
    int64_t kept = 1;
    for (int64_t s = 0; s < net->stages && count; s++) {
        const int64_t candidates = kept * net->size, wanted = s == net->stages - 1 ? ranks : paths;
        const int64_t following = wanted < candidates ? wanted : candidates;
        int64_t longer = 0;
        for (int64_t start = 0; start < count; start += BLOCK) {
            const int64_t positions = count - start < BLOCK ? count - start : BLOCK;
            NAME(cost_table)(net, s, &w, start, positions, kept);
            longer = NAME(go_on)(net, s, &w, start, positions, kept, following, longer, ranks, codes, plane, pitch);
        }
        const path_arrays swapped = w.now;
        w.now = w.next, w.next = swapped, kept = following, count = longer;
    }
    free(w.here);
    return 1;
}

#undef vec
#undef ints
#endif
