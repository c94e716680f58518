/*
 * The scoring kernel: walks a flat forest (format: compile/flat.py) row by row, in the native library's own arithmetic.
 *
 * A walk is a chain of dependent loads, so eight trees are walked at once: while one waits for memory, seven go on.
 * A leaf points to itself through a slot of the row that holds -infinity, so a group of trees takes the same number of
 * steps in each and there is no branch to mispredict. What a missing value does is decided by which copy of the row a
 * node reads (NaN kept, NaN as -infinity, NaN as zero, ...), not by a test.
 *
 * Leaves are collected and then added in the order of training, each output from its base on: in float32 for XGBoost, in
 * float64 for the others. Compile with -ffp-contract=off and without -ffast-math, or the last bit is lost.
 *
 * The caller vouches for nothing: coppice_open checks every index, and the walk trusts only what was checked.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "links.h"
#include "program.h"
#include "wide.h"

#define EXPORT __attribute__((visibility("default")))
#define LANES 8
#define ROW_BLOCK WIDE_ROWS
#define WIDE_FROM 3 /* rows: fewer are walked sooner than a block of eight is asked */
#define COPIES 5
#define CATEGORICAL 0x80000000u
#define ABI 2

enum { KEPT, NAN_LOW, NAN_ZERO, ZERO_NAN, ZERO_LOW };                              /* copies of a row */
enum { SNAP = 1, ROUND = 2, INT_CATEGORIES = 4, EXACT_CATEGORIES = 8, RULES = 15 }; /* what is done to an input */

typedef struct { uint32_t first_word, words, nan_right, member_right; } category_set;

typedef struct {
    char magic[8];
    uint32_t bytes_per_value; /* 4: xgboost, 8: the others */
    uint32_t width;
    uint32_t copies;          /* mask of the copies of the row that are made; KEPT always */
    uint32_t rules;
    uint32_t trees;           /* a multiple of LANES; the last ones may be padding that adds nothing */
    uint32_t real_trees;
    uint32_t nodes;
    uint32_t sets;
    uint32_t words;
    uint32_t outputs;
    uint32_t leaf_width;      /* 0: a leaf is one value */
    uint32_t vectors;
} header;

typedef struct {
    header head;
    const double *base;
    const uint32_t *roots;    /* of the trees in walking order */
    const uint32_t *place;    /* walking order -> training order */
    const uint32_t *output;   /* training order -> first output */
    const void *nodes;
    const void *vectors;
    const category_set *sets;
    const uint32_t *words;
    uint32_t *depths;         /* of each group of LANES trees: counted here, never read from the file */
    unsigned char *mixed;     /* for each group: whether a tree of it splits by category */
    uint32_t row_copies;
    size_t row_values;        /* row_copies * width + 1 */
    void *row;                /* scratch: ROW_BLOCK rows of row_values */
    void *leaves;             /* scratch: ROW_BLOCK rows of trees values */
    void *sums;               /* scratch: outputs values */
    wide *wide;               /* the same trees for blocks of rows; NULL where they are not of its kind */
} forest;

EXPORT int coppice_kernel_abi(void) { return ABI; }

/* ---- opening --------------------------------------------------------------------------------------------------- */

static uint32_t slot_of(const forest *f, uint32_t node) {
    return f->head.bytes_per_value == 4 ? ((const node32 *)f->nodes)[node].slot : ((const node64 *)f->nodes)[node].slot;
}

static uint32_t left_of(const forest *f, uint32_t node) {
    return f->head.bytes_per_value == 4 ? ((const node32 *)f->nodes)[node].left : ((const node64 *)f->nodes)[node].left;
}

static double threshold_of(const forest *f, uint32_t node) {
    return f->head.bytes_per_value == 4 ? (double)((const node32 *)f->nodes)[node].threshold
                                        : ((const node64 *)f->nodes)[node].threshold;
}

static double vector_value(const forest *f, size_t i) {
    return f->head.bytes_per_value == 4 ? (double)((const float *)f->vectors)[i] : ((const double *)f->vectors)[i];
}

static int numbers_one_of(double number, uint32_t count) { return number >= 0 && number < count && number == floor(number); }

/* Children come after their parent, so one pass finds cycles, strays and each node's depth. 0 if all is well. */
static int check_nodes(const forest *f, uint32_t *depth_below, unsigned char *mixed_below) {
    const uint32_t last_slot = f->row_copies * f->head.width;
    for (uint32_t i = f->head.nodes; i-- > 0;) {
        const uint32_t slot = slot_of(f, i), left = left_of(f, i);
        const double threshold = threshold_of(f, i);
        if (left == i) {
            if (slot != last_slot || !isfinite(threshold)) return 1;
            if (f->head.leaf_width && !numbers_one_of(threshold, f->head.vectors) && threshold != 0) return 1;
            depth_below[i] = mixed_below[i] = 0;
            continue;
        }
        if (left <= i || left >= f->head.nodes - 1) return 1;
        mixed_below[i] = mixed_below[left] | mixed_below[left + 1];
        if (slot & CATEGORICAL) {
            if ((slot & ~CATEGORICAL) >= f->head.width || !numbers_one_of(threshold, f->head.sets)) return 1;
            mixed_below[i] = 1;
        } else if (slot >= last_slot || isnan(threshold)) return 1;
        const uint32_t a = depth_below[left], b = depth_below[left + 1];
        depth_below[i] = 1 + (a > b ? a : b);
    }
    return 0;
}

static int check_trees(forest *f, const uint32_t *depth_below, const unsigned char *mixed_below, unsigned char *seen) {
    const uint32_t span = f->head.leaf_width ? f->head.leaf_width : 1;
    for (uint32_t t = 0; t < f->head.trees; t++) {
        if (f->roots[t] >= f->head.nodes || f->place[t] >= f->head.trees || seen[f->place[t]]++) return 1;
        if ((uint64_t)f->output[t] + span > f->head.outputs) return 1;
        uint32_t *depth = &f->depths[t / LANES];
        if (depth_below[f->roots[t]] > *depth) *depth = depth_below[f->roots[t]];
        f->mixed[t / LANES] |= mixed_below[f->roots[t]];
    }
    uint64_t steps = 0; /* trees that share a chain of nodes would cost more than the file's size lets expect */
    for (uint32_t g = 0; g < f->head.trees / LANES; g++) steps += f->depths[g];
    if (steps > f->head.nodes) return 1;
    for (uint32_t s = 0; s < f->head.sets; s++)
        if ((uint64_t)f->sets[s].first_word + f->sets[s].words > f->head.words || f->sets[s].nan_right > 1 ||
            f->sets[s].member_right > 1) return 1;
    for (uint32_t k = 0; k < f->head.outputs; k++)
        if (!isfinite(f->base[k])) return 1;
    for (size_t i = 0; i < (size_t)f->head.vectors * f->head.leaf_width; i++)
        if (!isfinite(vector_value(f, i))) return 1;
    return 0;
}

static int check(forest *f) {
    uint32_t *depth_below = malloc(sizeof(uint32_t) * (size_t)f->head.nodes);
    unsigned char *mixed_below = malloc(f->head.nodes), *seen = calloc((size_t)f->head.trees + 1, 1);
    const int bad = !depth_below || !mixed_below || !seen || check_nodes(f, depth_below, mixed_below) ||
                    check_trees(f, depth_below, mixed_below, seen);
    free(seen);
    free(mixed_below);
    free(depth_below);
    return bad;
}

EXPORT void coppice_close(forest *f) {
    if (!f) return;
    free(f->depths);
    free(f->mixed);
    free(f->row);
    free(f->leaves);
    free(f->sums);
    coppice_wide_close(f->wide);
    free(f);
}

static int sound(const header *h) {
    if (memcmp(h->magic, "COPPFLT2", 8) || (h->bytes_per_value != 4 && h->bytes_per_value != 8)) return 0;
    if (!(h->copies & 1) || h->copies >> COPIES || h->rules & ~(uint32_t)RULES) return 0;
    if (!h->width || h->width > 1u << 20 || !h->outputs || h->outputs > 1u << 16) return 0;
    if (h->leaf_width > h->outputs || (h->leaf_width && !h->vectors) || h->vectors > 1u << 30) return 0;
    return h->nodes && !(h->trees % LANES) && h->real_trees <= h->trees;
}

/* None is no error: rows are then walked one by one. */
static wide *open_wide(const forest *f) {
    if (f->head.outputs > 1 || f->head.leaf_width) return NULL;
    uint32_t *roots = malloc(sizeof(uint32_t) * ((size_t)f->head.trees + 1));
    if (!roots) return NULL;
    for (uint32_t t = 0; t < f->head.trees; t++) roots[f->place[t]] = f->roots[t];
    wide *opened = coppice_wide_open(f->head.bytes_per_value, f->nodes, roots, f->head.real_trees);
    free(roots);
    return opened;
}

/* `data` stays the caller's and must outlive the handle. NULL where it is not a sound flat forest, or memory is out. */
EXPORT forest *coppice_open(const unsigned char *data, size_t length) {
    header h;
    if (length < sizeof h) return NULL;
    memcpy(&h, data, sizeof h);
    if (!sound(&h)) return NULL;
    const size_t node_size = h.bytes_per_value == 4 ? sizeof(node32) : sizeof(node64);
    const uint64_t roots_at = sizeof h + 8ull * h.outputs;
    const uint64_t nodes_at = roots_at + 12ull * h.trees;
    const uint64_t vectors_at = (nodes_at + (uint64_t)node_size * h.nodes + 7) / 8 * 8;
    const uint64_t sets_at = (vectors_at + (uint64_t)h.bytes_per_value * h.vectors * h.leaf_width + 7) / 8 * 8;
    const uint64_t words_at = sets_at + sizeof(category_set) * (uint64_t)h.sets;
    if (words_at + 4ull * h.words != length) return NULL;
    forest *f = calloc(1, sizeof *f);
    if (!f) return NULL;
    f->head = h;
    f->base = (const double *)(data + sizeof h);
    f->roots = (const uint32_t *)(data + roots_at);
    f->place = f->roots + h.trees;
    f->output = f->place + h.trees;
    f->nodes = data + nodes_at;
    f->vectors = data + vectors_at;
    f->sets = (const category_set *)(data + sets_at);
    f->words = (const uint32_t *)(data + words_at);
    for (uint32_t copy = 0; copy < COPIES; copy++) f->row_copies += h.copies >> copy & 1;
    f->row_values = (size_t)f->row_copies * h.width + 1;
    f->depths = calloc(h.trees / LANES + 1, sizeof(uint32_t));
    f->mixed = calloc(h.trees / LANES + 1, 1);
    f->row = malloc(h.bytes_per_value * ROW_BLOCK * f->row_values);
    f->leaves = malloc((size_t)h.bytes_per_value * ROW_BLOCK * ((size_t)h.trees + 1));
    f->sums = malloc((size_t)h.bytes_per_value * h.outputs);
    if (!f->depths || !f->mixed || !f->row || !f->leaves || !f->sums || check(f)) {
        coppice_close(f);
        return NULL;
    }
    f->wide = open_wide(f);
    return f;
}

/* ---- walking --------------------------------------------------------------------------------------------------- */

static inline uint32_t goes_right_by_set(const forest *f, double value, uint32_t number) {
    const category_set s = f->sets[number];
    if (isnan(value)) return s.nan_right;
    const uint32_t rules = f->head.rules;
    const int known = (rules & INT_CATEGORIES ? value > -1.0 : value >= 0) && value < 32.0 * s.words &&
                      !(rules & EXACT_CATEGORIES && value != floor(value));
    const uint32_t code = known ? (uint32_t)(int64_t)value : 0;
    const uint32_t member = known && (f->words[s.first_word + code / 32] >> code % 32 & 1);
    return member ? s.member_right : !s.member_right;
}

#define DEFINE_SCORING(value_t, node_t, suffix, LESS)                                                                  \
    static void spread_##suffix(const forest *f, const double *given, value_t *row) {                                  \
        const uint32_t width = f->head.width, copies = f->head.copies, rules = f->head.rules;                          \
        const double snap = rules & SNAP ? (double)1e-35f : -1.0;                                                      \
        value_t *copy = row + width;                                                                                   \
        for (uint32_t j = 0; j < width; j++) {                                                                         \
            const double x = fabs(given[j]) <= snap ? 0.0 : given[j];                                                  \
            row[j] = rules & ROUND ? (value_t)(float)x : (value_t)x;                                                   \
        }                                                                                                              \
        if (copies & 1u << NAN_LOW) {                                                                                  \
            for (uint32_t j = 0; j < width; j++) copy[j] = row[j] != row[j] ? -(value_t)INFINITY : row[j];             \
            copy += width;                                                                                             \
        }                                                                                                              \
        if (copies & 1u << NAN_ZERO) {                                                                                 \
            for (uint32_t j = 0; j < width; j++) copy[j] = row[j] != row[j] ? (value_t)0 : row[j];                     \
            copy += width;                                                                                             \
        }                                                                                                              \
        if (copies & 1u << ZERO_NAN) {                                                                                 \
            for (uint32_t j = 0; j < width; j++) copy[j] = row[j] == 0 ? (value_t)NAN : row[j];                        \
            copy += width;                                                                                             \
        }                                                                                                              \
        if (copies & 1u << ZERO_LOW) {                                                                                 \
            for (uint32_t j = 0; j < width; j++) copy[j] = row[j] == 0 || row[j] != row[j] ? -(value_t)INFINITY : row[j];\
            copy += width;                                                                                             \
        }                                                                                                              \
        *copy = -(value_t)INFINITY;                                                                                    \
    }                                                                                                                  \
                                                                                                                       \
    static inline uint32_t step_##suffix(const node_t *nodes, const value_t *row, uint32_t i) {                        \
        const node_t *n = nodes + i;                                                                                   \
        return n->left + (uint32_t) !(row[n->slot] LESS n->threshold);                                                 \
    }                                                                                                                  \
                                                                                                                       \
    static inline uint32_t step_any_##suffix(const forest *f, const node_t *nodes, const value_t *row, uint32_t i) {   \
        const node_t *n = nodes + i;                                                                                   \
        if (n->slot & CATEGORICAL)                                                                                     \
            return n->left + goes_right_by_set(f, (double)row[n->slot & ~CATEGORICAL], (uint32_t)n->threshold);        \
        const uint32_t next = n->left + (uint32_t) !(row[n->slot] LESS n->threshold);                                  \
        return next;                                                                                                   \
    }                                                                                                                  \
                                                                                                                       \
    static void walk_##suffix(const forest *f, uint32_t group, const value_t *row, value_t *leaves) {                  \
        const node_t *nodes = f->nodes;                                                                                \
        const uint32_t *root = f->roots + LANES * group, *place = f->place + LANES * group;                            \
        uint32_t a = root[0], b = root[1], c = root[2], d = root[3], e = root[4], g = root[5], h = root[6], k = root[7]; \
        for (uint32_t steps = f->depths[group]; steps; steps--) {                                                      \
            a = step_##suffix(nodes, row, a);                                                                          \
            b = step_##suffix(nodes, row, b);                                                                          \
            c = step_##suffix(nodes, row, c);                                                                          \
            d = step_##suffix(nodes, row, d);                                                                          \
            e = step_##suffix(nodes, row, e);                                                                          \
            g = step_##suffix(nodes, row, g);                                                                          \
            h = step_##suffix(nodes, row, h);                                                                          \
            k = step_##suffix(nodes, row, k);                                                                          \
        }                                                                                                              \
        leaves[place[0]] = nodes[a].threshold;                                                                         \
        leaves[place[1]] = nodes[b].threshold;                                                                         \
        leaves[place[2]] = nodes[c].threshold;                                                                         \
        leaves[place[3]] = nodes[d].threshold;                                                                         \
        leaves[place[4]] = nodes[e].threshold;                                                                         \
        leaves[place[5]] = nodes[g].threshold;                                                                         \
        leaves[place[6]] = nodes[h].threshold;                                                                         \
        leaves[place[7]] = nodes[k].threshold;                                                                         \
    }                                                                                                                  \
                                                                                                                       \
    static void walk_any_##suffix(const forest *f, uint32_t group, const value_t *row, value_t *leaves) {              \
        const node_t *nodes = f->nodes;                                                                                \
        uint32_t at[LANES];                                                                                            \
        memcpy(at, f->roots + LANES * group, sizeof at);                                                               \
        for (uint32_t steps = f->depths[group]; steps; steps--)                                                        \
            for (int lane = 0; lane < LANES; lane++) at[lane] = step_any_##suffix(f, nodes, row, at[lane]);            \
        for (int lane = 0; lane < LANES; lane++) leaves[f->place[LANES * group + lane]] = nodes[at[lane]].threshold;   \
    }                                                                                                                  \
                                                                                                                       \
    static void add_##suffix(const forest *f, const value_t *leaves, double *margins) {                                \
        const uint32_t outputs = f->head.outputs, leaf_width = f->head.leaf_width, trees = f->head.real_trees;         \
        value_t *sums = f->sums;                                                                                       \
        for (uint32_t k = 0; k < outputs; k++) sums[k] = (value_t)f->base[k];                                          \
        if (!leaf_width)                                                                                               \
            for (uint32_t t = 0; t < trees; t++) sums[f->output[t]] += leaves[t];                                      \
        else                                                                                                           \
            for (uint32_t t = 0; t < trees; t++) {                                                                     \
                const value_t *vector = (const value_t *)f->vectors + (size_t)leaves[t] * leaf_width;                  \
                for (uint32_t k = 0; k < leaf_width; k++) sums[f->output[t] + k] += vector[k];                         \
            }                                                                                                          \
        for (uint32_t k = 0; k < outputs; k++) margins[k] = (double)sums[k];                                           \
    }                                                                                                                  \
                                                                                                                       \
    static void score_##suffix(forest *f, const double *rows, uint32_t count, double *margins) {                       \
        const size_t width = f->head.width, trees = f->head.trees, outputs = f->head.outputs, values = f->row_values;  \
        value_t *row = f->row, *leaves = f->leaves;                                                                    \
        for (uint32_t begin = 0; begin < count; begin += ROW_BLOCK) {                                                  \
            const uint32_t block = count - begin < ROW_BLOCK ? count - begin : ROW_BLOCK;                              \
            for (uint32_t r = 0; r < block; r++) spread_##suffix(f, rows + (begin + r) * width, row + r * values);     \
            if (f->wide && block >= WIDE_FROM) {                                                                       \
                coppice_wide_score(f->wide, row, values, block, f->base[0], margins + begin);                          \
                continue;                                                                                              \
            }                                                                                                          \
            for (uint32_t group = 0; group < trees / LANES; group++)                                                   \
                for (uint32_t r = 0; r < block; r++)                                                                   \
                    if (f->mixed[group]) walk_any_##suffix(f, group, row + r * values, leaves + r * trees);            \
                    else walk_##suffix(f, group, row + r * values, leaves + r * trees);                                \
            if (outputs > 1 || f->head.leaf_width) {                                                                   \
                for (uint32_t r = 0; r < block; r++)                                                                   \
                    add_##suffix(f, leaves + r * trees, margins + (begin + r) * outputs);                              \
                continue;                                                                                              \
            }                                                                                                          \
            for (uint32_t r = 0; r < block; r++) {                                                                     \
                value_t sum = (value_t)f->base[0];                                                                     \
                for (uint32_t t = 0; t < f->head.real_trees; t++) sum += leaves[r * trees + t];                        \
                margins[begin + r] = (double)sum;                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

DEFINE_SCORING(float, node32, f32, <)
DEFINE_SCORING(double, node64, f64, <=)

/* rows: count * width float64, row-major; margins: count * outputs float64. One thread at a time: the handle owns the
 * scratch. */
EXPORT void coppice_margin(forest *f, const double *rows, uint32_t count, double *margins) {
    if (f->head.bytes_per_value == 4) score_f32(f, rows, count, margins);
    else score_f64(f, rows, count, margins);
}

EXPORT uint32_t coppice_width(const forest *f) { return f->head.width; }
EXPORT uint32_t coppice_outputs(const forest *f) { return f->head.outputs; }

/* A whole call, laid out once: rows -> program (may be NULL) -> forest -> link. What it points into is the caller's. */
typedef struct {
    forest *trees;
    const void *program, *link;
    const double *rows;
    double *columns, *margins, *scores; /* max * program outputs, max * outputs, max * link width */
} plan;

/* Everything given stays the caller's and must outlive the plan. NULL where memory is out. */
EXPORT plan *coppice_plan_open(forest *trees, const void *program, const void *link, const double *rows, double *columns,
                               double *margins, double *scores) {
    plan *p = malloc(sizeof *p);
    if (p) *p = (plan){trees, program, link, rows, columns, margins, scores};
    return p;
}

EXPORT void coppice_plan_close(plan *p) { free(p); }

EXPORT void coppice_run(const plan *p, uint32_t count) {
    const double *rows = p->rows;
    if (p->program) {
        coppice_program_run(p->program, count, rows, p->columns);
        rows = p->columns;
    }
    coppice_margin(p->trees, rows, count, p->margins);
    coppice_link_apply(p->link, count, p->margins, p->scores);
}
