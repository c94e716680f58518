/*
 * The link: margins to scores, in float64, or in float32 exactly where the trained model computes so. The format it reads
 * and what each kind means are told in compile/links.py; compile/links_slow.py is the twin that a test holds equal.
 *
 * An opened link is never written to: any number of threads may apply it. The caller vouches for nothing:
 * coppice_link_open checks every size and index. Compile with -ffp-contract=off, or the last bit is lost.
 */
#include "links.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define ALL_COLUMNS 0xffffffffu
#define MAX_GROUPS 4096u

enum kind { IDENTITY, LOGISTIC, SOFTMAX, EXP, LOG1PEXP, SIGNED_SQUARE, HINGE, ISOLATION, KINDS };
enum method { PLATT, ISOTONIC, TEMPERATURE, METHODS };

typedef struct {
    char magic[8];
    uint32_t kind;
    uint32_t groups;      /* of one fold */
    uint32_t folds;       /* 0: not calibrated */
    uint32_t calibrators; /* of one fold */
    uint32_t single;
    uint32_t column;
    uint32_t knots;
    uint32_t unused;
    double sigmoid, divisor, offset;
} header;

typedef struct {
    uint32_t method, first, knots, single;
    double a, b; /* Platt's; or beta, and 1 where the inputs are probabilities */
} calibrator;

typedef struct {
    header head;
    uint32_t kept; /* values of a fold that are served or calibrated */
    int whole;     /* neither folds nor a column: the transformed margins are the scores */
    int plain;     /* a binary classifier's logistic and nothing else */
    const calibrator *calibrators;
    const double *x, *y;
    double data[]; /* calibrators, then knots */
} link_t;

/* ---- opening --------------------------------------------------------------------------------------------------- */

static int sound_head(const header *h) {
    if (memcmp(h->magic, "COPPLNK1", 8) || h->kind >= KINDS || !h->groups || h->groups > MAX_GROUPS) return 0;
    if (h->single > 1 || (h->column != ALL_COLUMNS && h->column >= h->groups) || h->unused) return 0;
    if (!isfinite(h->sigmoid) || !isfinite(h->offset) || !isfinite(h->divisor) || !(h->divisor > 0)) return 0;
    if (h->single && h->kind != LOGISTIC && h->kind != SOFTMAX && h->kind != EXP) return 0;
    if (h->folds > UINT32_MAX / h->groups) return 0;
    return h->folds ? h->calibrators >= 1 && h->calibrators <= MAX_GROUPS : !h->calibrators && !h->knots;
}

static int sound_calibrator(const link_t *k, const calibrator *c) {
    if (c->method >= METHODS || c->single > 1 || !isfinite(c->a) || !isfinite(c->b)) return 0;
    if (c->method == TEMPERATURE) return k->head.calibrators == 1 && (c->b == 0 || c->b == 1) && !c->knots;
    if (k->head.calibrators != k->kept) return 0;
    if (c->method == PLATT) return !c->knots;
    if (!c->knots || (uint64_t)c->first + c->knots > k->head.knots) return 0;
    for (uint32_t i = c->first; i < c->first + c->knots; i++) {
        if (!isfinite(k->x[i]) || !isfinite(k->y[i])) return 0;
        if (i > c->first && !(k->x[i - 1] < k->x[i])) return 0;
    }
    return 1;
}

static int sound_calibrators(const link_t *k) {
    const uint64_t count = (uint64_t)k->head.folds * k->head.calibrators;
    for (uint64_t i = 0; i < count; i++) {
        if (!sound_calibrator(k, k->calibrators + i)) return 0;
        if ((k->calibrators[i].method == TEMPERATURE) != (k->calibrators[0].method == TEMPERATURE)) return 0;
    }
    return 1;
}

/* Copies what it needs of `data`. NULL where it is not a sound link, or memory is out. */
EXPORT void *coppice_link_open(const unsigned char *data, size_t length) {
    header h;
    if (length < sizeof h) return NULL;
    memcpy(&h, data, sizeof h);
    if (!sound_head(&h)) return NULL;
    const size_t rest = length - sizeof h;
    const uint64_t calibrators = (uint64_t)h.folds * h.calibrators;
    if (calibrators > rest / sizeof(calibrator) || rest - calibrators * sizeof(calibrator) != 16 * (uint64_t)h.knots) return NULL;
    link_t *k = malloc(sizeof *k + rest);
    if (!k) return NULL;
    memcpy(k->data, data + sizeof h, rest);
    k->head = h;
    k->kept = h.column == ALL_COLUMNS ? h.groups : 1;
    k->whole = !h.folds && h.column == ALL_COLUMNS;
    k->plain = k->whole && h.kind == LOGISTIC && !h.single && h.groups == 1 && h.divisor == 1.0;
    k->calibrators = (const calibrator *)k->data;
    k->x = k->data + calibrators * (sizeof(calibrator) / sizeof(double));
    k->y = k->x + h.knots;
    if (sound_calibrators(k)) return k;
    free(k);
    return NULL;
}

EXPORT void coppice_link_close(void *link) { free(link); }

EXPORT uint32_t coppice_link_groups(const void *link) {
    const header *h = &((const link_t *)link)->head;
    return h->folds ? h->folds * h->groups : h->groups;
}

EXPORT uint32_t coppice_link_width(const void *link) { return ((const link_t *)link)->kept; }

/* ---- the kinds ------------------------------------------------------------------------------------------------- */

/* XGBoost's Sigmoid. */
static inline float logistic_single(float x) {
    const float away = -x < 88.7f ? -x : 88.7f;
    return 1.0f / (expf(away) + 1.0f + 1e-16f);
}

#define EACH(expression)                                                                                               \
    for (size_t i = 0; i < count; i++) {                                                                               \
        const double x = divisor == 1.0 ? margins[i] : margins[i] / divisor;                                           \
        values[i] = (expression);                                                                                      \
    }

static void each(const header *h, size_t count, const double *margins, double *values) {
    const double sigmoid = h->sigmoid, divisor = h->divisor, offset = h->offset;
    switch (h->single ? KINDS + h->kind : h->kind) {
    case LOGISTIC: EACH(1.0 / (1.0 + exp(-sigmoid * x))) break;
    case EXP: EACH(exp(x)) break;
    case LOG1PEXP: EACH(log1p(exp(x))) break;
    case SIGNED_SQUARE: EACH((double)((x > 0) - (x < 0)) * x * x) break;
    case HINGE: EACH(x > 0 ? 1.0 : 0.0) break;
    case ISOLATION: EACH(-pow(2.0, -x) - offset) break;
    case KINDS + LOGISTIC: EACH((double)logistic_single((float)x)) break;
    case KINDS + EXP: EACH((double)expf((float)x)) break;
    default: EACH(x)
    }
}

static void softmax(double divisor, uint32_t groups, const double *margins, double *values) {
    double largest = margins[0] / divisor, sum = 0;
    for (uint32_t j = 0; j < groups; j++) {
        values[j] = margins[j] / divisor;
        if (values[j] > largest) largest = values[j];
    }
    for (uint32_t j = 0; j < groups; j++) sum += values[j] = exp(values[j] - largest);
    for (uint32_t j = 0; j < groups; j++) values[j] /= sum;
}

/* XGBoost's Softmax: float32 but for the sum. */
static void softmax_single(uint32_t groups, const double *margins, double *values) {
    float largest = (float)margins[0];
    double sum = 0;
    for (uint32_t j = 1; j < groups; j++) largest = fmaxf((float)margins[j], largest);
    for (uint32_t j = 0; j < groups; j++) sum += values[j] = (double)expf((float)margins[j] - largest);
    for (uint32_t j = 0; j < groups; j++) values[j] = (double)((float)values[j] / (float)sum);
}

/* `values` may be `margins`. */
static void transform(const header *h, uint32_t count, const double *margins, double *values) {
    if (h->kind != SOFTMAX) {
        each(h, (size_t)count * h->groups, margins, values);
        return;
    }
    for (uint32_t r = 0; r < count; r++, margins += h->groups, values += h->groups)
        if (h->single) softmax_single(h->groups, margins, values);
        else softmax(h->divisor, h->groups, margins, values);
}

/* ---- calibration ----------------------------------------------------------------------------------------------- */

/* First of the n ascending knots that is not below `at`; n if none is. */
static uint32_t first_not_below(const double *x, uint32_t n, double at) {
    uint32_t low = 0, high = n;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (x[middle] < at) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* np.interp's arithmetic in float64, scipy's interp1d in float32: each is what scikit-learn uses for its dtype. */
static double interpolate(const double *x, const double *y, uint32_t n, int single, double at) {
    if (n == 1 || isnan(at)) return n == 1 ? y[0] : at;
    if (single) at = (double)(float)at;
    at = at < x[0] ? x[0] : at > x[n - 1] ? x[n - 1] : at;
    uint32_t j = first_not_below(x, n, at);
    if (!single && x[j] == at) return y[j];
    if (j == 0) j = 1;
    if (single) {
        const float slope = ((float)y[j] - (float)y[j - 1]) / ((float)x[j] - (float)x[j - 1]);
        return (double)(slope * ((float)at - (float)x[j - 1]) + (float)y[j - 1]);
    }
    const double slope = (y[j] - y[j - 1]) / (x[j] - x[j - 1]);
    return slope * (at - x[j - 1]) + y[j - 1];
}

static void temperature(const calibrator *c, uint32_t kept, const double *inputs, double *values) {
    for (uint32_t j = 0; j < kept; j++) values[j] = c->a * (c->b == 0 ? inputs[j] : log(inputs[j] + 1e-12));
    softmax(1.0, kept, values, values);
}

static void temperature_single(const calibrator *c, uint32_t kept, const double *inputs, double *values) {
    const float beta = (float)c->a;
    float largest = -INFINITY, sum = 0;
    for (uint32_t j = 0; j < kept; j++) {
        const float logit = c->b == 0 ? (float)inputs[j] : logf((float)inputs[j] + 1e-12f);
        values[j] = (double)(beta * logit);
        largest = fmaxf(largest, (float)values[j]);
    }
    for (uint32_t j = 0; j < kept; j++) {
        const float power = expf((float)values[j] - largest);
        sum += power;
        values[j] = (double)power;
    }
    for (uint32_t j = 0; j < kept; j++) values[j] = (double)((float)values[j] / sum);
}

/* A binary classifier's one input stands for both classes; the second's probability is answered in values[0]. */
static void temperature_binary(const calibrator *c, double input, double *values) {
    double both[2] = {-input, input};
    if (c->b != 0) both[0] = c->single ? (double)(1.0f - (float)input) : 1.0 - input;
    if (c->single) temperature_single(c, 2, both, both);
    else temperature(c, 2, both, both);
    values[0] = both[1];
}

/* np.sum of a row, in its order: eight sums side by side from eight numbers on. */
static double sum_of(const double *a, uint32_t n) {
    double sum = 0, s[8];
    if (n < 8) {
        for (uint32_t i = 0; i < n; i++) sum += a[i];
        return sum;
    }
    if (n > 128) {
        const uint32_t half = n / 2 - n / 2 % 8;
        return sum_of(a, half) + sum_of(a + half, n - half);
    }
    memcpy(s, a, sizeof s);
    uint32_t i = 8;
    for (; i < n - n % 8; i += 8)
        for (uint32_t j = 0; j < 8; j++) s[j] += a[i + j];
    sum = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
    for (; i < n; i++) sum += a[i];
    return sum;
}

static void one_by_one(const link_t *k, const calibrator *c, const double *inputs, double *values) {
    for (uint32_t j = 0; j < k->kept; j++, c++) {
        if (c->method == PLATT) values[j] = 1.0 / (1.0 + exp(c->a * inputs[j] + c->b));
        else values[j] = interpolate(k->x + c->first, k->y + c->first, c->knots, (int)c->single, inputs[j]);
    }
    if (k->kept == 1) return;
    const double sum = sum_of(values, k->kept);
    for (uint32_t j = 0; j < k->kept; j++) values[j] = sum != 0 ? values[j] / sum : 1.0 / k->kept;
}

static void calibrate(const link_t *k, const calibrator *c, const double *inputs, double *values) {
    if (c->method != TEMPERATURE) one_by_one(k, c, inputs, values);
    else if (k->kept == 1) temperature_binary(c, inputs[0], values);
    else if (c->single) temperature_single(c, k->kept, inputs, values);
    else temperature(c, k->kept, inputs, values);
    for (uint32_t j = 0; j < k->kept; j++)
        if (values[j] > 1.0 && values[j] <= 1.0 + 1e-5) values[j] = 1.0;
}

static void apply_row(const link_t *k, const double *margins, double *scores) {
    const header *h = &k->head;
    double inputs[MAX_GROUPS], values[MAX_GROUPS];
    const double *kept = h->column == ALL_COLUMNS ? inputs : inputs + h->column;
    if (!h->folds) {
        transform(h, 1, margins, inputs);
        memcpy(scores, kept, sizeof(double) * k->kept);
        return;
    }
    for (uint32_t j = 0; j < k->kept; j++) scores[j] = 0;
    for (uint32_t fold = 0; fold < h->folds; fold++) {
        transform(h, 1, margins + (size_t)fold * h->groups, inputs);
        calibrate(k, k->calibrators + (size_t)fold * h->calibrators, kept, values);
        for (uint32_t j = 0; j < k->kept; j++) scores[j] += values[j];
    }
    for (uint32_t j = 0; j < k->kept; j++) scores[j] /= h->folds;
}

/* margins: count * groups; scores: count * width. They may be the same memory where there are neither folds nor a column. */
EXPORT void coppice_link_apply(const void *link, uint32_t count, const double *margins, double *scores) {
    const link_t *k = link;
    if (k->plain) {
        const double sigmoid = k->head.sigmoid;
        for (uint32_t r = 0; r < count; r++) scores[r] = 1.0 / (1.0 + exp(-sigmoid * margins[r]));
    } else if (k->whole) transform(&k->head, count, margins, scores);
    else
        for (uint32_t r = 0; r < count; r++)
            apply_row(k, margins + (size_t)r * coppice_link_groups(link), scores + (size_t)r * k->kept);
}
