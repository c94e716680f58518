/* Rows into the traffic log's block: see quick.h, and `serving.arena`. */
#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#include "quick.h"

#include <string.h>
#include <time.h>

#define RECORD_BYTES 52 /* serving.blocks.RECORD */

int64_t coppice_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void append(char *to, int32_t *ends, int64_t row, text bytes) {
    int32_t begin = ends[row];
    memcpy(to + begin, bytes.bytes, (size_t)bytes.length);
    ends[row + 1] = begin + (int32_t)bytes.length;
}

int coppice_has_room(const door *d) {
    const block *b = d->rows;
    int64_t n = b->count;
    return n < b->rows && b->id_room - b->id_ends[n] >= MAX_ID && b->unit_room - b->unit_ends[n] >= MAX_UNIT &&
           b->feature_room - b->feature_ends[n] >= d->row_bytes;
}

void coppice_log_row(door *d, int64_t ts_us, int64_t tag, int64_t width, text id, text unit, const scored *s) {
    block *b = d->rows;
    int64_t head[2] = {ts_us, ++d->cells[d->seq_cell]}, n = b->count;
    int32_t rest[7] = {(int32_t)tag,          0, (int32_t)s->status, (int32_t)s->parse_us, (int32_t)s->queue_us,
                       (int32_t)s->score_us, (int32_t)s->batch_rows};
    char *record = b->records + n * RECORD_BYTES;
    memcpy(record, head, 16);
    memcpy(record + 16, &s->score, 8);
    memcpy(record + 24, rest, 28);
    append(b->ids, b->id_ends, n, id);
    append(b->units, b->unit_ends, n, unit);
    append(b->features, b->feature_ends, n, (text){(const char *)s->row, 8 * width});
    b->count = n + 1;
    d->cells[d->rows_cell]++;
}

/* For `serving.steps`: what the log alone costs, so many times. */
__attribute__((visibility("default"))) void coppice_log_again(door *d, const double *row, int64_t width, const char *id, int64_t length, int64_t times) {
    scored s = {row, 0.5, 200, 1, 0, 1, 1};
    while (times--) coppice_log_row(d, 0, 0, width, (text){id, length}, (text){id, 0}, &s);
}
