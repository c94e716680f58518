/* What the kernel needs of compile/links.c. */
#ifndef COPPICE_LINKS_H
#define COPPICE_LINKS_H
#include <stddef.h>
#include <stdint.h>

void *coppice_link_open(const unsigned char *data, size_t length);
uint32_t coppice_link_groups(const void *link); /* margins of a row, of all folds */
uint32_t coppice_link_width(const void *link);  /* scores of a row */
void coppice_link_apply(const void *link, uint32_t count, const double *margins, double *scores);
void coppice_link_close(void *link);

#endif
