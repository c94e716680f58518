/*
 * The transforms before the trees: a served row becomes the row that the final estimator was trained on. The form is
 * told in compile/program.py, whose `run` is this file's twin, bit for bit; so compile with -ffp-contract=off and
 * without -ffast-math.
 *
 * The caller vouches for nothing: what is opened is copied, then checked count by count; running trusts what was checked.
 */
#include "program.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MOST_COLUMNS (1u << 20)

enum kind { FILL = 1, SUBTRACT, DIVIDE, MULTIPLY, ADD, CLIP, MISSING, SENTINEL, CONSTANT, CODES, KEYS };

typedef struct { char magic[8]; uint32_t inputs, outputs, steps, values; } header;
typedef struct { uint32_t input, steps; } column;   /* a column's steps follow those of the column before it */
typedef struct { uint32_t kind, values; } step;     /* and a step's values those of the step before it */

typedef struct {
    header head;
    column *columns;
    step *steps;
    double *values;
} program;

/* ---- opening --------------------------------------------------------------------------------------------------- */

/* How many values a step of this kind has; at least so many for the tables. 0: there is no such kind. */
static uint32_t values_of(uint32_t kind) {
    switch (kind) {
    case SUBTRACT: case DIVIDE: case MULTIPLY: case ADD: case MISSING: case SENTINEL: case CONSTANT: return 1;
    case FILL: case CLIP: case CODES: case KEYS: return 2;
    default: return 0;
    }
}

static int sound_step(const step *s, const double *v) {
    const uint32_t least = values_of(s->kind);
    if (!least || s->values < least) return 0;
    if (s->kind == CLIP) return v[0] <= v[1] && s->values == least;
    if (s->kind == CODES) return 1;
    if (s->kind != KEYS) return s->values == least;
    const uint32_t keys = (s->values - 2) / 2;
    if (s->values % 2 || (keys && isnan(v[2]))) return 0;
    for (uint32_t i = 1; i < keys; i++)
        if (!(v[2 + i - 1] < v[2 + i])) return 0;
    return 1;
}

static int sound(const program *p) {
    uint64_t steps = 0, values = 0;
    for (uint32_t j = 0; j < p->head.outputs; j++) {
        if (p->columns[j].input >= p->head.inputs) return 0;
        steps += p->columns[j].steps;
    }
    if (steps != p->head.steps) return 0;
    for (uint32_t i = 0; i < p->head.steps; i++) {
        if (values + p->steps[i].values > p->head.values || !sound_step(p->steps + i, p->values + values)) return 0;
        values += p->steps[i].values;
    }
    return values == p->head.values;
}

EXPORT void coppice_program_close(void *opened) {
    program *p = opened;
    if (!p) return;
    free(p->columns);
    free(p->steps);
    free(p->values);
    free(p);
}

/* At least one byte, so that NULL means that memory is out. */
static void *copied(const unsigned char **from, size_t bytes) {
    void *copy = malloc(bytes ? bytes : 1);
    if (copy && bytes) memcpy(copy, *from, bytes);
    *from += bytes;
    return copy;
}

EXPORT void *coppice_program_open(const unsigned char *data, size_t length) {
    header h;
    if (!data || length < sizeof h) return NULL;
    memcpy(&h, data, sizeof h);
    if (memcmp(h.magic, "COPPPRG1", 8) || !h.inputs || h.inputs > MOST_COLUMNS || !h.outputs || h.outputs > MOST_COLUMNS)
        return NULL;
    const uint64_t columns = sizeof(column) * (uint64_t)h.outputs, steps = sizeof(step) * (uint64_t)h.steps;
    if (sizeof h + columns + steps + sizeof(double) * (uint64_t)h.values != length) return NULL;
    program *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    const unsigned char *at = data + sizeof h;
    p->head = h;
    p->columns = copied(&at, (size_t)columns);
    p->steps = copied(&at, (size_t)steps);
    p->values = copied(&at, sizeof(double) * (size_t)h.values);
    if (!p->columns || !p->steps || !p->values || !sound(p)) {
        coppice_program_close(p);
        return NULL;
    }
    return p;
}

EXPORT uint32_t coppice_program_inputs(const void *opened) { return ((const program *)opened)->head.inputs; }

EXPORT uint32_t coppice_program_outputs(const void *opened) { return ((const program *)opened)->head.outputs; }

/* ---- running --------------------------------------------------------------------------------------------------- */

static int is(double x, double wanted) { return isnan(wanted) ? isnan(x) : x == wanted; }

static double by_code(const double *v, uint32_t codes, double x) {
    if (isnan(x)) return v[0];
    if (!(x >= 0 && x < codes) || x != (double)(uint32_t)x) return v[1];
    return v[2 + (uint32_t)x];
}

static double by_key(const double *v, uint32_t count, double x) {
    const double *keys = v + 2;
    uint32_t low = 0, high = count;
    if (isnan(x)) return v[0];
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (keys[middle] < x) low = middle + 1;
        else high = middle;
    }
    return low < count && keys[low] == x ? keys[count + low] : v[1];
}

static double taken(const step *s, const double *v, double x) {
    switch (s->kind) {
    case FILL: return is(x, v[1]) ? v[0] : x;
    case SUBTRACT: return x - v[0];
    case DIVIDE: return x / v[0];
    case MULTIPLY: return x * v[0];
    case ADD: return x + v[0];
    case CLIP: return x < v[0] ? v[0] : x > v[1] ? v[1] : x;
    case MISSING: return is(x, v[0]) ? 1.0 : 0.0;
    case SENTINEL: return (float)x == (float)v[0] ? (double)NAN : x;
    case CONSTANT: return v[0];
    case CODES: return by_code(v, s->values - 2, x);
    default: return by_key(v, (s->values - 2) / 2, x);
    }
}

EXPORT void coppice_program_run(const void *opened, uint32_t count, const double *rows, double *out) {
    const program *p = opened;
    const size_t inputs = p->head.inputs, outputs = p->head.outputs;
    for (size_t r = 0; r < count; r++) {
        const step *s = p->steps;
        const double *v = p->values;
        for (size_t j = 0; j < outputs; j++) {
            double x = rows[r * inputs + p->columns[j].input];
            for (uint32_t left = p->columns[j].steps; left; left--) {
                x = taken(s, v, x);
                v += s->values;
                s++;
            }
            out[r * outputs + j] = x;
        }
    }
}
