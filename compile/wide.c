/*
 * A block of rows at once through trees of at most 32 leaves, for batches: the same leaves as the walk, found otherwise.
 *
 * A walk waits for memory at each step. Here nothing depends on what was read before: each tree begins with all its leaves
 * possible, one bit each from left to right, and each node that sends a row to the right strikes out the leaves to its left.
 * The lowest bit that remains is the leaf (Lucchese et al., QuickScorer, SIGIR 2015). All nodes are asked, but eight rows by
 * one instruction: of 1,500 trees of 31 leaves a row in a block of 16 takes a quarter of its walk (`python -m compile.bench`).
 *
 * A value is first replaced by its rank: how many of its column's thresholds send it right. That is the node's own
 * comparison, asked by bisection, so NaN and infinities go where the walk sends them. Leaves are added tree by tree in the
 * order of training, in the precision of the forest.
 */
#include <stdlib.h>
#include <string.h>

#include "wide.h"

#define LEAVES 32
#define CATEGORICAL 0x80000000u
#define VECTOR 8
#define VECTORS (WIDE_ROWS / VECTOR)
#define MOST 0xffffu /* columns, and thresholds of one */

typedef int32_t vector __attribute__((vector_size(4 * VECTOR), aligned(16))); /* as malloc aligns */
typedef struct { uint16_t column, rank; int32_t struck; } question; /* the leaves struck where the rank is exceeded */
typedef struct { uint32_t slot, first, count; } column;
typedef struct { double threshold; uint32_t slot, at; } split;      /* float32 is exact in float64 */

struct wide {
    uint32_t bytes_per_value, trees, columns, questions;
    uint32_t *ends;        /* of each tree's questions */
    question *asked;
    void *leaves;          /* LEAVES values a tree */
    column *column;
    void *thresholds;      /* of each column, ascending, no two equal */
    split *splits;         /* while opening: of each question */
    vector *ranks;         /* scratch: VECTORS a column */
};

/* ---- opening --------------------------------------------------------------------------------------------------- */

typedef struct { double threshold; uint32_t slot, left; } node;

static node node_at(uint32_t bytes_per_value, const void *nodes, uint32_t i) {
    if (bytes_per_value == 8) {
        const node64 *n = (const node64 *)nodes + i;
        return (node){n->threshold, n->slot, n->left};
    }
    const node32 *n = (const node32 *)nodes + i;
    return (node){(double)n->threshold, n->slot, n->left};
}

/* The subtree at `i`, whose first leaf is number `leaf` of the tree. The number of its leaves, 0 where it can't be asked. */
static uint32_t lay(wide *w, const void *nodes, uint32_t tree, uint32_t i, uint32_t leaf, uint32_t began) {
    const node n = node_at(w->bytes_per_value, nodes, i);
    if (n.left == i) {
        if (leaf >= LEAVES) return 0;
        const size_t at = (size_t)tree * LEAVES + leaf;
        if (w->bytes_per_value == 8) ((double *)w->leaves)[at] = n.threshold;
        else ((float *)w->leaves)[at] = (float)n.threshold;
        return 1;
    }
    if (n.slot & CATEGORICAL || w->questions - began >= LEAVES - 1) return 0;
    const uint32_t at = w->questions++;
    const uint32_t left = lay(w, nodes, tree, n.left, leaf, began);
    const uint32_t right = left ? lay(w, nodes, tree, n.left + 1, leaf + left, began) : 0;
    if (!right) return 0;
    w->splits[at] = (split){n.threshold, n.slot, at};
    w->asked[at].struck = (int32_t)(((1u << left) - 1) << leaf); /* left is below 32: the right has one */
    return left + right;
}

static int ascending(const void *a, const void *b) {
    const split *x = a, *y = b;
    if (x->slot != y->slot) return x->slot < y->slot ? -1 : 1;
    return (x->threshold > y->threshold) - (x->threshold < y->threshold);
}

/* Columns and ranks from the splits of all questions. 0 if all is well. */
static int number(wide *w) {
    uint32_t kept = 0;
    qsort(w->splits, w->questions, sizeof(split), ascending);
    for (uint32_t i = 0; i < w->questions; i++) {
        const split *s = &w->splits[i];
        const int opens = !i || s->slot != s[-1].slot;
        if (opens) {
            if (w->columns == MOST) return 1;
            w->column[w->columns++] = (column){s->slot, kept, 0};
        }
        column *c = &w->column[w->columns - 1];
        if (opens || s->threshold != s[-1].threshold) {
            if (c->count++ == MOST) return 1;
            if (w->bytes_per_value == 8) ((double *)w->thresholds)[kept++] = s->threshold;
            else ((float *)w->thresholds)[kept++] = (float)s->threshold;
        }
        w->asked[s->at].column = (uint16_t)(w->columns - 1);
        w->asked[s->at].rank = (uint16_t)(c->count - 1);
    }
    return 0;
}

static int build(wide *w, const void *nodes, const uint32_t *roots) {
    for (uint32_t t = 0; t < w->trees; t++) {
        if (!lay(w, nodes, t, roots[t], 0, w->questions)) return 1;
        w->ends[t] = w->questions;
    }
    if (number(w)) return 1;
    free(w->splits);
    w->splits = NULL;
    const size_t size = sizeof(vector) * VECTORS * ((size_t)w->columns + 1);
    w->ranks = malloc(size);
    if (w->ranks) memset(w->ranks, 0, size);
    return !w->ranks;
}

void coppice_wide_close(wide *w) {
    if (!w) return;
    free(w->ends);
    free(w->asked);
    free(w->leaves);
    free(w->column);
    free(w->thresholds);
    free(w->splits);
    free(w->ranks);
    free(w);
}

wide *coppice_wide_open(uint32_t bytes_per_value, const void *nodes, const uint32_t *roots, uint32_t trees) {
    wide *w = calloc(1, sizeof *w);
    if (!w) return NULL;
    const size_t most = (size_t)trees * (LEAVES - 1) + 1;
    w->bytes_per_value = bytes_per_value;
    w->trees = trees;
    w->ends = malloc(sizeof(uint32_t) * ((size_t)trees + 1));
    w->asked = malloc(sizeof(question) * most);
    w->leaves = malloc((size_t)bytes_per_value * LEAVES * ((size_t)trees + 1));
    w->column = malloc(sizeof(column) * (MOST + 1));
    w->thresholds = malloc((size_t)bytes_per_value * most);
    w->splits = malloc(sizeof(split) * most);
    if (!w->ends || !w->asked || !w->leaves || !w->column || !w->thresholds || !w->splits || build(w, nodes, roots)) {
        coppice_wide_close(w);
        return NULL;
    }
    return w;
}

/* ---- asking ---------------------------------------------------------------------------------------------------- */

#define DEFINE_ASKING(value_t, suffix, LESS)                                                                           \
    static inline int32_t rank_##suffix(const value_t *thresholds, uint32_t count, value_t x) {                        \
        uint32_t at = 0;                                                                                               \
        for (; count > 1; count -= count / 2) at += !(x LESS thresholds[at + count / 2 - 1]) ? count / 2 : 0;          \
        return (int32_t)(at + (uint32_t) !(x LESS thresholds[at]));                                                    \
    }                                                                                                                  \
                                                                                                                       \
    static void rank_all_##suffix(wide *w, const value_t *rows, size_t row_values, uint32_t count) {                   \
        int32_t *ranks = (int32_t *)w->ranks;                                                                          \
        for (uint32_t c = 0; c < w->columns; c++) {                                                                    \
            const column *of = &w->column[c];                                                                          \
            const value_t *thresholds = (const value_t *)w->thresholds + of->first;                                    \
            for (uint32_t r = 0; r < count; r++)                                                                       \
                ranks[c * WIDE_ROWS + r] = rank_##suffix(thresholds, of->count, rows[r * row_values + of->slot]);      \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    static inline __attribute__((always_inline)) void add_##suffix(const wide *w, uint32_t count, value_t *sums) {     \
        const vector *ranks = w->ranks;                                                                                \
        const question *q = w->asked;                                                                                  \
        const value_t *leaves = w->leaves;                                                                             \
        for (uint32_t t = 0; t < w->trees; t++, leaves += LEAVES) {                                                    \
            union { vector of[VECTORS]; uint32_t row[WIDE_ROWS]; } left;                                               \
            vector a = (vector){0} - 1, b = a;                                                                         \
            if (count > VECTOR)                                                                                        \
                for (const question *end = w->asked + w->ends[t]; q < end; q++) {                                      \
                    const vector *rank = ranks + VECTORS * q->column;                                                  \
                    a &= ~((rank[0] > (int32_t)q->rank) & q->struck);                                                  \
                    b &= ~((rank[1] > (int32_t)q->rank) & q->struck);                                                  \
                }                                                                                                      \
            else                                                                                                       \
                for (const question *end = w->asked + w->ends[t]; q < end; q++)                                        \
                    a &= ~((ranks[VECTORS * q->column] > (int32_t)q->rank) & q->struck);                               \
            left.of[0] = a;                                                                                            \
            left.of[1] = b;                                                                                            \
            for (uint32_t r = 0; r < VECTOR; r++) sums[r] += leaves[__builtin_ctz(left.row[r])];                       \
            if (count > VECTOR)                                                                                        \
                for (uint32_t r = VECTOR; r < WIDE_ROWS; r++) sums[r] += leaves[__builtin_ctz(left.row[r])];           \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    WITH_AVX2(static void add_avx2_##suffix(const wide *w, uint32_t count, value_t *sums) {                            \
        add_##suffix(w, count, sums);                                                                                  \
    })                                                                                                                 \
                                                                                                                       \
    static void score_##suffix(wide *w, const value_t *rows, size_t row_values, uint32_t count, double base,           \
                               double *margins) {                                                                      \
        value_t sums[WIDE_ROWS];                                                                                       \
        for (uint32_t r = 0; r < WIDE_ROWS; r++) sums[r] = (value_t)base;                                              \
        rank_all_##suffix(w, rows, row_values, count);                                                                 \
        if (HAS_AVX2) ADD_AVX2(suffix)(w, count, sums);                                                                \
        else add_##suffix(w, count, sums);                                                                             \
        for (uint32_t r = 0; r < count; r++) margins[r] = (double)sums[r];                                             \
    }

#if defined(__x86_64__)
#define WITH_AVX2(function) __attribute__((target("avx2"))) function
#define HAS_AVX2 __builtin_cpu_supports("avx2")
#define ADD_AVX2(suffix) add_avx2_##suffix
#else
#define WITH_AVX2(function)
#define HAS_AVX2 0
#define ADD_AVX2(suffix) add_##suffix
#endif

DEFINE_ASKING(float, f32, <)
DEFINE_ASKING(double, f64, <=)

void coppice_wide_score(wide *w, const void *rows, size_t row_values, uint32_t count, double base, double *margins) {
    if (w->bytes_per_value == 8) score_f64(w, rows, row_values, count, base, margins);
    else score_f32(w, rows, row_values, count, base, margins);
}
