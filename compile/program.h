/*
 * The program of transforms before the trees (form and meaning: compile/program.py), as opened by program.c.
 */
#ifndef COPPICE_PROGRAM_H
#define COPPICE_PROGRAM_H

#include <stddef.h>
#include <stdint.h>

/* Copies `data`, which may lie at any address. NULL where it is not a sound program, or memory is out. */
void *coppice_program_open(const unsigned char *data, size_t length);
void coppice_program_close(void *program);

uint32_t coppice_program_inputs(const void *program);
uint32_t coppice_program_outputs(const void *program);

/* rows: count * inputs float64, row-major; out: count * outputs. Writes nothing else: any number of threads may call. */
void coppice_program_run(const void *program, uint32_t count, const double *rows, double *out);

#endif
