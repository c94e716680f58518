/* Blocks of rows through a forest of small trees (wide.c), and the nodes of a flat forest that both walkers read. */
#ifndef COPPICE_WIDE_H
#define COPPICE_WIDE_H

#include <stddef.h>
#include <stdint.h>

#define WIDE_ROWS 16

typedef struct { float threshold; uint32_t slot, left; } node32;
typedef struct { double threshold; uint32_t slot, left; } node64;

typedef struct wide wide;

/* `roots`: in the order in which leaves are added. NULL where a tree has more than 32 leaves or splits by category, or
 * memory is out: then rows are walked one by one. Nothing given is kept. */
wide *coppice_wide_open(uint32_t bytes_per_value, const void *nodes, const uint32_t *roots, uint32_t trees);
void coppice_wide_close(wide *w);

/* `rows`: `count`, at most WIDE_ROWS, of `row_values` float32 or float64 each, as the walk reads them. One thread at a time. */
void coppice_wide_score(wide *w, const void *rows, size_t row_values, uint32_t count, double base, double *margins);

#endif
