/* The rows that shadows score when the answers are out: see quick.h. */
#include "quick.h"

#include <math.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* xorshift64*, Vigna 2016, "An experimental exploration of Marsaglia's xorshift generators, scrambled" */
static uint64_t draw(door *d) {
    d->random ^= d->random >> 12;
    d->random ^= d->random << 25;
    d->random ^= d->random >> 27;
    return d->random * UINT64_C(2685821657736338717) >> 32;
}

void coppice_offer(door *d, const endpoint *p, int64_t ts_us, text id, text unit, const double *row) {
    for (int64_t i = 0; i < p->shadow_count; i++) {
        shadow *s = p->shadows[i];
        if (draw(d) >= s->sampled) continue;
        if (s->count == s->room) {
            d->cells[d->shadow_shed_cell]++;
            continue;
        }
        int64_t at = (s->first + s->count++) % s->room;
        seen *it = s->ring + at;
        it->ts_us = ts_us;
        it->id_length = id.length;
        it->unit_length = unit.length;
        memcpy(it->id, id.bytes, (size_t)id.length);
        memcpy(it->unit, unit.bytes, (size_t)unit.length);
        memcpy(s->rows + at * s->width, row, 8 * (size_t)s->width);
        d->has_seen |= s->count == 1;
    }
}

/* Scores and logs the rows that have waited longest, `most` of one call at most: how many. Fewer than were scored, or none
   of those that wait, where the log's block is full; the rest waits on. */
EXPORT int64_t coppice_quick_shadow(door *d, shadow *s) {
    int64_t count = s->count, to_end = s->room - s->first;
    if (count > s->most) count = s->most;
    if (count > to_end) count = to_end;
    s->score_us = 0;
    if (!count || !coppice_has_room(d)) return 0;
    double *rows = s->rows + s->first * s->width;
    memcpy(s->row, rows, 8 * (size_t)(count * s->width));
    int64_t began = coppice_now_ns();
    s->run(s->plan, (uint32_t)count);
    s->score_us = (coppice_now_ns() - began) / 1000;
    int64_t logged = 0;
    for (; logged < count && coppice_has_room(d); logged++) {
        const seen *it = s->ring + s->first + logged;
        scored told = {rows + logged * s->width, s->score[logged], isfinite(s->score[logged]) ? 200 : 500, 0, 0, s->score_us, count};
        coppice_log_row(d, it->ts_us, s->tag, s->width, (text){it->id, it->id_length}, (text){it->unit, it->unit_length}, &told);
    }
    s->first = (s->first + logged) % s->room;
    s->count -= logged;
    return logged;
}
