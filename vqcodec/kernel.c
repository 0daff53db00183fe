/* The prior's wavefronts, compiled: scan.py's integers by integer arithmetic, in two calls a wavefront and one a symbol.
 *
 * An accelerator that nothing depends on: kernel.py lays out the arrays; where no compiler made this file into a
 * library, or the processor is not x86-64 with AVX2, scan.py does the work.
 *
 * Activations are bytes: those in -127..127 with 128 added ("shifted", so zero is 128), those behind a ReLU, 0..127, as they are.
 * Weights are int8, sums int32: a sum stays below 2 ** 26, as the reader of the model sees to (layers.py). Biases take 128 times the sum
 * of the weights off again. Every row of channels is padded to whole groups of 16 whose weights are zero.
 */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define LANES 16 /* outputs that are computed side by side */
#define GROUP 4  /* inputs that one instruction multiplies and sums */
#define RING 4   /* wavefronts of a layer that are kept: the farthest tap reaches back three */
#define SHIFTED 128
#define IMPOSSIBLE (-(1 << 24)) /* the logit of a code that cannot be */

#define AVX2 __attribute__((target("avx2")))
#define VNNI __attribute__((target("avx512f,avx512vnni")))
#define EXPORT __attribute__((visibility("default")))

typedef struct {
    const int8_t *weight; /* (outputs / LANES, inputs / GROUP, LANES, GROUP) */
    const int32_t *bias;  /* (outputs), the rounding half added */
    int64_t inputs, outputs, shift;
} layer;

typedef struct {
    layer hidden, logits;
    const int8_t *embed; /* (symbols, channels), or null where nothing follows at the position */
    int64_t symbols;     /* how many of the logits are real */
} head;

typedef struct {
    int64_t channels, stages, codebook_size, blocks;
    const int8_t *embed; /* (stages, codebook_size, channels) */
    layer first;
    const layer *trunk; /* spatial and mix of each block */
    const head *heads;  /* of the length, then of every stage; the length's logits have no weight in models without lengths */
} level;

typedef struct {
    int64_t height, width, longest; /* of the map; positions of its longest wavefront */
    const int8_t *context;          /* (height, width, context_channels), by these strides */
    int64_t context_row, context_column, context_channels;
    uint8_t *rings;           /* (1 + blocks, RING, height + 1, channels), shifted: inputs and trunk, a row of zeros above the map */
    uint8_t *columns;         /* (longest, 5 channels), shifted */
    uint8_t *x;               /* (longest, 2 channels), shifted: what a head sees, the trunk's output and the context */
    uint8_t *hidden;          /* (longest, outputs of the widest layer before a ReLU) */
    int32_t *sums;            /* (longest, outputs of the widest layer) */
    int64_t *here;            /* (longest): which positions of the wavefront have the symbol at hand */
    const int32_t *symbols;   /* (stages + 1, longest): of the wavefront, the lengths last */
    const double *freq_table; /* entropy.py's */
    int64_t freq_count;
} scan;

static inline int32_t bounded(int32_t x, int32_t low, int32_t high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

/* Products of rows of bytes, `stride` apart, with a layer's weights: sums (count, outputs). P rows and V vectors of outputs at a time. */
#define PRODUCT_ARGUMENTS const uint8_t *x, int64_t stride, int64_t count, const layer *net, int32_t *sums

static inline int32_t group_of(const uint8_t *x) {
    int32_t group;
    memcpy(&group, x, GROUP);
    return group;
}

#define ROWS(P)                                                                                                                        \
    const uint8_t *row[P]; /* behind the last row, the last one again, whose sums are not stored */                                     \
    for (int p = 0; p < P; p++) row[p] = x + (i + p < count ? i + p : count - 1) * stride

#define VNNI_BLOCK(P, V)                                                                                                               \
    do {                                                                                                                               \
        ROWS(P);                                                                                                                       \
        __m512i acc[P][V];                                                                                                             \
        for (int p = 0; p < P; p++)                                                                                                    \
            for (int v = 0; v < V; v++) acc[p][v] = _mm512_setzero_si512();                                                            \
        for (int64_t k = 0; k < net->inputs; k += GROUP)                                                                               \
            for (int v = 0; v < V; v++) {                                                                                              \
                __m512i w = _mm512_loadu_si512(weight + v * panel + k * LANES);                                                        \
                for (int p = 0; p < P; p++) acc[p][v] = _mm512_dpbusd_epi32(acc[p][v], _mm512_set1_epi32(group_of(row[p] + k)), w);    \
            }                                                                                                                          \
        for (int p = 0; p < P && i + p < count; p++)                                                                                   \
            for (int v = 0; v < V; v++) _mm512_storeu_si512(sums + (i + p) * net->outputs + o + v * LANES, acc[p][v]);                 \
    } while (0)

VNNI static void product_vnni(PRODUCT_ARGUMENTS) {
    const int64_t panel = net->inputs * LANES; /* bytes of the weights of 16 outputs */
    int64_t o = 0;
    for (; o + 2 * LANES <= net->outputs; o += 2 * LANES) {
        const int8_t *weight = net->weight + o * net->inputs;
        int64_t i = 0;
        for (; i + 4 < count; i += 8) VNNI_BLOCK(8, 2);
        for (; i < count; i += 4) VNNI_BLOCK(4, 2);
    }
    for (; o < net->outputs; o += LANES) {
        const int8_t *weight = net->weight + o * net->inputs;
        for (int64_t i = 0; i < count; i += 4) VNNI_BLOCK(4, 1);
    }
}

AVX2 static void product_avx2(PRODUCT_ARGUMENTS) {
    enum { P = 2, PARTS = 4 }; /* a vector holds two partial sums of each of four outputs */
    for (int64_t o = 0; o < net->outputs; o += LANES)
        for (int64_t i = 0; i < count; i += P) {
            ROWS(P);
            __m256i acc[P][PARTS];
            for (int p = 0; p < P; p++)
                for (int part = 0; part < PARTS; part++) acc[p][part] = _mm256_setzero_si256();
            const __m128i *weight = (const __m128i *)(net->weight + o * net->inputs);
            for (int64_t k = 0; k < net->inputs; k += GROUP, weight += PARTS) {
                __m256i inputs[P];
                for (int p = 0; p < P; p++) inputs[p] = _mm256_cvtepu8_epi16(_mm_set1_epi32(group_of(row[p] + k)));
                for (int part = 0; part < PARTS; part++) {
                    __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128(weight + part));
                    for (int p = 0; p < P; p++) acc[p][part] = _mm256_add_epi32(acc[p][part], _mm256_madd_epi16(inputs[p], w));
                }
            }
            for (int p = 0; p < P && i + p < count; p++)
                for (int part = 0; part < PARTS; part++) {
                    int32_t halves[8];
                    _mm256_storeu_si256((__m256i *)halves, acc[p][part]);
                    for (int j = 0; j < 4; j++) sums[(i + p) * net->outputs + o + 4 * part + j] = halves[2 * j] + halves[2 * j + 1];
                }
        }
}

typedef void product(PRODUCT_ARGUMENTS);
static product *multiply;
void vqcodec_open_search(int64_t wide); /* search.c */

/* What `features` allows: 2 for AVX-512 VNNI, 1 for AVX2, 0 for neither. Returns the checksum of the source that this library was made
 * from, or 0 where the processor cannot run it: kernel.py asks before anything else. */
EXPORT uint32_t vqcodec_open(int64_t features) {
    __builtin_cpu_init();
    int wide = features >= 2 && __builtin_cpu_supports("avx512vnni");
    if (!wide && !(features >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return 0;
    multiply = wide ? product_vnni : product_avx2;
    vqcodec_open_search(wide);
    return SOURCE_CRC;
}

static inline int64_t first_row(const scan *s, int64_t t) { return t < s->width ? 0 : (t - s->width + 2) / 2; }
static inline int64_t last_row(const scan *s, int64_t t) { return t / 2 < s->height - 1 ? t / 2 : s->height - 1; }

/* hidden = relu(x weight + bias) for rows of x */
AVX2 static void relu(const scan *s, PRODUCT_ARGUMENTS) {
    multiply(x, stride, count, net, sums);
    int64_t outputs = net->outputs;
    int32_t shift = (int32_t)net->shift;
    for (int64_t i = 0; i < count; i++)
        for (int64_t o = 0; o < outputs; o++)
            s->hidden[i * outputs + o] = (uint8_t)bounded((sums[i * outputs + o] + net->bias[o]) >> shift, 0, 127);
}

/* x = clamp(keep x + (inputs weight + bias)), in place, for the first half of x's rows */
AVX2 static void update(const scan *s, const uint8_t *inputs, int64_t stride, int64_t count, const layer *net, int32_t keep) {
    multiply(inputs, stride, count, net, s->sums);
    int64_t outputs = net->outputs;
    int32_t shift = (int32_t)net->shift;
    for (int64_t i = 0; i < count; i++) {
        uint8_t *x = s->x + i * 2 * outputs;
        const int32_t *sums = s->sums + i * outputs;
        for (int64_t o = 0; o < outputs; o++)
            x[o] = (uint8_t)(bounded(keep * (x[o] - SHIFTED) + ((sums[o] + net->bias[o]) >> shift), -127, 127) + SHIFTED);
    }
}

/* One layer's activations at (-1,-1) (-1,0) (-1,1) (0,-1), and `current` at (0,0), of a wavefront's rows: (count, 5 channels) */
static void gather(const level *net, const scan *s, const uint8_t *ring, int64_t t, const uint8_t *current) {
    int64_t channels = net->channels, rows = s->height + 1, first = first_row(s, t), count = last_row(s, t) + 1 - first;
    const uint8_t *taps[4];
    for (int tap = 0; tap < 3; tap++) taps[tap] = ring + ((t + RING - 3 + tap) % RING * rows + first) * channels;
    taps[3] = ring + ((t + RING - 1) % RING * rows + first + 1) * channels;
    for (int64_t i = 0; i < count; i++) {
        uint8_t *out = s->columns + i * 5 * channels;
        for (int tap = 0; tap < 4; tap++, out += channels) memcpy(out, taps[tap] + i * channels, channels);
        memcpy(out, current + i * 2 * channels, channels);
    }
}

/* Where wavefront t is stored, over the one of four steps before. Rows that have ended since become zero, as all outside of the map is. */
static uint8_t *slot(const level *net, const scan *s, uint8_t *ring, int64_t t) {
    int64_t channels = net->channels, first = first_row(s, t);
    uint8_t *held = ring + t % RING * (s->height + 1) * channels;
    for (int64_t row = first > 1 ? first - 1 : 1; row <= first; row++) memset(held + row * channels, SHIFTED, channels);
    return held + (first + 1) * channels;
}

/* Wavefront t through the first layer and the trunk, into s->x. */
EXPORT AVX2 void vqcodec_trunk(const level *net, const scan *s, int64_t t) {
    int64_t channels = net->channels, first = first_row(s, t), count = last_row(s, t) + 1 - first;
    int64_t ring_size = RING * (s->height + 1) * channels;
    for (int64_t i = 0; i < count; i++) {
        const int8_t *context = s->context + (first + i) * s->context_row + (t - 2 * (first + i)) * s->context_column;
        uint8_t *around = s->x + (2 * i + 1) * channels;
        for (int64_t c = 0; c < s->context_channels; c++) around[c] = (uint8_t)(context[c] + SHIFTED);
        s->here[i] = i;
    }
    gather(net, s, s->rings, t, s->x + channels);
    update(s, s->columns, 5 * channels, count, &net->first, 0);
    for (int64_t block = 0; block < net->blocks; block++) {
        uint8_t *ring = s->rings + (block + 1) * ring_size;
        gather(net, s, ring, t, s->x);
        uint8_t *held = slot(net, s, ring, t);
        for (int64_t i = 0; i < count; i++) memcpy(held + i * channels, s->x + i * 2 * channels, channels);
        relu(s, s->columns, 5 * channels, count, &net->trunk[2 * block], s->sums);
        update(s, s->hidden, channels, count, &net->trunk[2 * block + 1], 1);
    }
}

/* The frequencies of symbol `index` (0 the length, then the stages) for those of `count` positions that have it: freqs (n, symbols).
 *
 * Returns n, the `count` of the next symbol. What s->symbols hold of the symbol before enters first. */
EXPORT AVX2 int64_t vqcodec_freqs(const level *net, const scan *s, int64_t index, int64_t count, double *freqs) {
    const head *now = &net->heads[index], *before = index ? now - 1 : 0;
    int64_t channels = net->channels, pitch = 2 * channels, stages = net->stages, stage = index - 1, kept = 0;
    const int32_t *lengths = net->heads[0].logits.weight ? s->symbols + stages * s->longest : 0;
    const int32_t *known = index < 2 ? lengths : s->symbols + (index - 2) * s->longest;
    for (int64_t i = 0; i < count; i++) {
        int64_t position = s->here[i];
        if (index && lengths && lengths[position] <= stage) continue;
        uint8_t *x = s->x + kept * pitch;
        if (kept < i) memcpy(x, s->x + i * pitch, pitch);
        if (index && known && before->embed) {
            const int8_t *row = before->embed + known[position] * channels;
            for (int64_t c = 0; c < channels; c++) x[c] = (uint8_t)(bounded(x[c] - SHIFTED + row[c], -127, 127) + SHIFTED);
        }
        s->here[kept++] = position;
    }
    if (!kept) return 0;
    int64_t outputs = now->logits.outputs, symbols = now->symbols, last = s->freq_count - 1;
    int32_t shift = (int32_t)now->logits.shift;
    relu(s, s->x, pitch, kept, &now->hidden, s->sums);
    multiply(s->hidden, now->hidden.outputs, kept, &now->logits, s->sums);
    for (int64_t i = 0; i < kept; i++) {
        int32_t *logits = s->sums + i * outputs, largest = INT32_MIN;
        for (int64_t k = 0; k < symbols; k++) logits[k] = (logits[k] + now->logits.bias[k]) >> shift;
        if (index && lengths && lengths[s->here[i]] == stage + 1) logits[0] = IMPOSSIBLE; /* a last code that were 0 would not be the last */
        for (int64_t k = 0; k < symbols; k++) largest = logits[k] > largest ? logits[k] : largest;
        for (int64_t k = 0; k < symbols; k++) freqs[i * symbols + k] = s->freq_table[bounded(largest - logits[k], 0, (int32_t)last)];
    }
    return kept;
}

/* Stores the sum of the embeddings of wavefront t's codes, all of which are known now. */
EXPORT AVX2 void vqcodec_enter(const level *net, const scan *s, int64_t t) {
    int64_t channels = net->channels, first = first_row(s, t), count = last_row(s, t) + 1 - first;
    uint8_t *out = slot(net, s, s->rings, t);
    for (int64_t i = 0; i < count; i++, out += channels) {
        memset(s->sums, 0, channels * sizeof(int32_t));
        for (int64_t stage = 0; stage < net->stages; stage++) {
            const int8_t *row = net->embed + (stage * net->codebook_size + s->symbols[stage * s->longest + i]) * channels;
            for (int64_t c = 0; c < channels; c++) s->sums[c] += row[c];
        }
        for (int64_t c = 0; c < channels; c++) out[c] = (uint8_t)(bounded(s->sums[c], -127, 127) + SHIFTED);
    }
}
