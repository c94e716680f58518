/*
 * The scoring kernel: walks a flat forest (format: compile/flat.py) row by row, in the native library's own arithmetic.
 *
 * A walk is a chain of dependent loads, so eight trees are walked at once: while one waits for memory, seven go on.
 * A leaf points to itself through a slot of the row that holds -infinity, so a group of trees takes the same number of
 * steps in each and there is no branch to mispredict. What a missing value does is decided by which copy of the row a
 * node reads (NaN kept, NaN as -infinity, NaN as zero), not by a test.
 *
 * Leaves are collected and then added in the order of training: float32 from the base score on for XGBoost, float64 from
 * zero for LightGBM. Compile with -ffp-contract=off and without -ffast-math, or the last bit is lost.
 *
 * The caller vouches for nothing: coppice_open checks every index, and the walk trusts only what was checked.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define LANES 8
#define ROW_BLOCK 16
#define CATEGORICAL 0x80000000u
#define ABI 1

typedef struct { float threshold; uint32_t slot, left; } node32;
typedef struct { double threshold; uint32_t slot, left; } node64;
typedef struct { uint32_t first_word, words, nan_right, member_right; } category_set;

typedef struct {
    char magic[8];
    uint32_t bytes_per_value; /* 4: xgboost, 8: lightgbm */
    uint32_t width;
    uint32_t copies;          /* of the row: bit 0 NaN kept, bit 1 NaN as -inf, bit 2 NaN as zero; always 7 */
    uint32_t zero_snap;
    uint32_t trees;           /* a multiple of LANES; the last ones may be padding that adds nothing */
    uint32_t real_trees;
    uint32_t nodes;
    uint32_t sets;
    uint32_t words;
    uint32_t unused;
    double base;
    double sigmoid;
} header;

typedef struct {
    header head;
    const uint32_t *roots;    /* of the trees in walking order */
    const uint32_t *place;    /* walking order -> training order */
    const void *nodes;
    const category_set *sets;
    const uint32_t *words;
    uint32_t *depths;         /* of each group of LANES trees: counted here, never read from the file */
    void *row;                /* scratch: ROW_BLOCK rows of 3 * width + 1 values */
    void *leaves;             /* scratch: ROW_BLOCK rows of trees values */
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

/* Children come after their parent, so one pass finds cycles, strays and each node's depth. 0 if all is well. */
static int check_nodes(forest *f, uint32_t *depth_below) {
    const uint32_t last_slot = 3 * f->head.width;
    for (uint32_t i = f->head.nodes; i-- > 0;) {
        const uint32_t slot = slot_of(f, i), left = left_of(f, i);
        if (left == i) {
            if (slot != last_slot || !isfinite(threshold_of(f, i))) return 1;
            depth_below[i] = 0;
            continue;
        }
        if (left <= i || left >= f->head.nodes - 1 || (slot & ~CATEGORICAL) >= last_slot) return 1;
        if (slot & CATEGORICAL) {
            const double set = threshold_of(f, i);
            if (!(set >= 0 && set < f->head.sets) || set != floor(set)) return 1;
        } else if (isnan(threshold_of(f, i))) return 1;
        const uint32_t a = depth_below[left], b = depth_below[left + 1];
        depth_below[i] = 1 + (a > b ? a : b);
    }
    return 0;
}

static int check(forest *f) {
    uint32_t *depth_below = malloc(sizeof(uint32_t) * (size_t)f->head.nodes);
    if (!depth_below) return 2;
    int bad = check_nodes(f, depth_below);
    unsigned char *seen = calloc(f->head.trees, 1);
    if (!seen) bad = 2;
    for (uint32_t t = 0; !bad && t < f->head.trees; t++) {
        if (f->roots[t] >= f->head.nodes || f->place[t] >= f->head.trees || seen[f->place[t]]++) { bad = 1; break; }
        uint32_t *depth = &f->depths[t / LANES];
        if (depth_below[f->roots[t]] > *depth) *depth = depth_below[f->roots[t]];
    }
    for (uint32_t s = 0; !bad && s < f->head.sets; s++)
        if ((uint64_t)f->sets[s].first_word + f->sets[s].words > f->head.words) bad = 1;
    free(seen);
    free(depth_below);
    return bad;
}

EXPORT void coppice_close(forest *f) {
    if (!f) return;
    free(f->depths);
    free(f->row);
    free(f->leaves);
    free(f);
}

/* `data` stays the caller's and must outlive the handle. NULL where it is not a sound flat forest, or memory is out. */
EXPORT forest *coppice_open(const unsigned char *data, size_t length) {
    header h;
    if (length < sizeof h) return NULL;
    memcpy(&h, data, sizeof h);
    if (memcmp(h.magic, "COPPFLT1", 8) || (h.bytes_per_value != 4 && h.bytes_per_value != 8)) return NULL;
    if (h.copies != 7 || !h.width || h.width > 1u << 20 || !h.nodes || h.trees % LANES || h.real_trees > h.trees) return NULL;
    const size_t node_size = h.bytes_per_value == 4 ? sizeof(node32) : sizeof(node64);
    const uint64_t nodes_at = sizeof h + 8ull * h.trees;
    const uint64_t sets_at = (nodes_at + (uint64_t)node_size * h.nodes + 7) / 8 * 8;
    const uint64_t words_at = sets_at + sizeof(category_set) * (uint64_t)h.sets;
    if (words_at + 4ull * h.words != length) return NULL;
    forest *f = calloc(1, sizeof *f);
    if (!f) return NULL;
    f->head = h;
    f->roots = (const uint32_t *)(data + sizeof h);
    f->place = f->roots + h.trees;
    f->nodes = data + nodes_at;
    f->sets = (const category_set *)(data + sets_at);
    f->words = (const uint32_t *)(data + words_at);
    f->depths = calloc(h.trees / LANES + 1, sizeof(uint32_t));
    f->row = malloc((size_t)h.bytes_per_value * ROW_BLOCK * (3 * (size_t)h.width + 1));
    f->leaves = malloc((size_t)h.bytes_per_value * ROW_BLOCK * ((size_t)h.trees + 1));
    if (!f->depths || !f->row || !f->leaves || check(f)) {
        coppice_close(f);
        return NULL;
    }
    return f;
}

/* ---- walking --------------------------------------------------------------------------------------------------- */

static inline uint32_t goes_right_by_set(const forest *f, double value, uint32_t number) {
    const category_set s = f->sets[number];
    if (isnan(value)) return s.nan_right;
    const int known = value >= 0 && value < 32.0 * s.words;
    const uint32_t code = known ? (uint32_t)value : 0;
    const uint32_t member = known && (f->words[s.first_word + code / 32] >> code % 32 & 1);
    return member ? s.member_right : !s.member_right;
}

#define DEFINE_SCORING(value_t, node_t, suffix, LESS)                                                                  \
    static void spread_##suffix(const forest *f, const double *given, value_t *row) {                                  \
        const uint32_t width = f->head.width;                                                                          \
        const double snap = f->head.zero_snap ? (double)1e-35f : -1.0;                                                 \
        for (uint32_t j = 0; j < width; j++) {                                                                         \
            const double x = fabs(given[j]) <= snap ? 0.0 : given[j];                                                  \
            const value_t v = (value_t)x;                                                                              \
            const int missing = x != x;                                                                                \
            row[j] = v;                                                                                                \
            row[width + j] = missing ? -(value_t)INFINITY : v;                                                         \
            row[2 * width + j] = missing ? (value_t)0 : v;                                                             \
        }                                                                                                              \
        row[3 * width] = -(value_t)INFINITY;                                                                           \
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
    static void score_##suffix(forest *f, const double *rows, uint32_t count, double *margins) {                       \
        const size_t width = f->head.width, trees = f->head.trees;                                                     \
        value_t *row = f->row, *leaves = f->leaves;                                                                    \
        for (uint32_t begin = 0; begin < count; begin += ROW_BLOCK) {                                                  \
            const uint32_t block = count - begin < ROW_BLOCK ? count - begin : ROW_BLOCK;                              \
            for (uint32_t r = 0; r < block; r++)                                                                       \
                spread_##suffix(f, rows + (begin + r) * width, row + r * (3 * width + 1));                             \
            for (uint32_t group = 0; group < trees / LANES; group++)                                                   \
                for (uint32_t r = 0; r < block; r++)                                                                   \
                    if (f->head.sets) walk_any_##suffix(f, group, row + r * (3 * width + 1), leaves + r * trees);      \
                    else walk_##suffix(f, group, row + r * (3 * width + 1), leaves + r * trees);                       \
            for (uint32_t r = 0; r < block; r++) {                                                                     \
                value_t sum = (value_t)f->head.base;                                                                   \
                for (uint32_t t = 0; t < f->head.real_trees; t++) sum += leaves[r * trees + t];                        \
                margins[begin + r] = (double)sum;                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

DEFINE_SCORING(float, node32, f32, <)
DEFINE_SCORING(double, node64, f64, <=)

/* The one place where a margin becomes a probability, for every backend. */
EXPORT void coppice_logistic(double sigmoid, uint32_t count, double *values) {
    for (uint32_t i = 0; i < count; i++) values[i] = 1.0 / (1.0 + exp(-sigmoid * values[i]));
}

/* rows: count * width float64, row-major; margins: count float64. One thread at a time: the handle owns the scratch. */
EXPORT void coppice_margin(forest *f, const double *rows, uint32_t count, double *margins) {
    if (f->head.bytes_per_value == 4) score_f32(f, rows, count, margins);
    else score_f64(f, rows, count, margins);
}

EXPORT void coppice_score(forest *f, const double *rows, uint32_t count, double *scores) {
    coppice_margin(f, rows, count, scores);
    coppice_logistic(f->head.sigmoid, count, scores);
}
