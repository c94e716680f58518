/* One request from its bytes to its answer: see quick.h. */
#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#include "quick.h"

#include <math.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))
#define NUMBER_ROOM 32
#define MS_ROOM 24

static int64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static inline char *put(char *out, text t) {
    memcpy(out, t.bytes, (size_t)t.length);
    return out + t.length;
}

static char *put_whole(char *out, int64_t number, int least) {
    char digits[NUMBER_ROOM];
    int n = 0;
    do {
        digits[n++] = (char)('0' + number % 10);
        number /= 10;
    } while (number || n < least);
    while (n) *out++ = digits[--n];
    return out;
}

static char *put_ms(char *out, int64_t us) {
    out = put_whole(out, us / 1000, 1);
    *out++ = '.';
    return put_whole(out, us % 1000, 3);
}

/* Is the loop so late that the request's deadline has to be looked at? */
static int is_late(const door *d, int64_t now, int64_t since) {
    int64_t due = now - d->lateness[0], late = d->lateness[1];
    if (due > late) late = due;
    if (now - since < late) late = now - since;
    return late > d->lateness[2];
}

/* 14 hex digits of µs, the mark, 6 hex digits of a count whose upper half is ours: serving.scoring.id_maker. */
static text new_id(door *d, int64_t ts_us) {
    static const char HEX[] = "0123456789abcdef";
    char *out = d->id;
    for (int shift = 52; shift >= 0; shift -= 4) *out++ = HEX[ts_us >> shift & 15];
    out = put(out, d->mark);
    uint64_t count = 0x800000 | (d->made & 0x7FFFFF);
    for (int shift = 20; shift >= 0; shift -= 4) *out++ = HEX[count >> shift & 15];
    return (text){d->id, out - d->id};
}

/* The answer's length, or 0 where it would not fit. */
static int64_t answer(door *d, const arm *a, text id, const scored *s, text score) {
    int which = a->choice == ABOVE ? s->score > a->threshold : a->choice == BELOW ? s->score < a->threshold : 0;
    const text *body = a->bodies[which];
    int64_t length = body[0].length + score.length + body[1].length + id.length + body[2].length;
    int64_t most = d->preamble.length + length + id.length + 4 * MS_ROOM + 2;
    for (int i = 0; i < 6; i++) most += a->head[i].length;
    if (most > d->room) return 0;
    char *out = put(put(d->out, d->preamble), a->head[0]);
    out = put(put_whole(out, length, 1), a->head[1]);
    out = put(put(out, id), a->head[2]);
    out = put(put_ms(out, s->parse_us), a->head[3]);
    out = put(put_ms(out, s->queue_us), a->head[4]);
    out = put(put_ms(out, s->score_us), a->head[5]);
    *out++ = '\r';
    *out++ = '\n';
    out = put(put(put(put(put(out, body[0]), score), body[1]), id), body[2]);
    return out - d->out;
}

static void observe(const door *d, int64_t us) {
    int64_t bucket = 0;
    while (bucket < d->edge_count && d->edges[bucket] < us) bucket++;
    d->cells[d->seconds_cell + bucket]++;
    d->cells[d->seconds_cell + d->edge_count + 1] += us;
}

static const arm *arm_of(const endpoint *p, text unit) {
    return p->split ? p->arms + p->points[coppice_point(p->salted, unit)] : p->arms;
}

static void remember(door *d, int64_t asked, int64_t answering, const double *row, int64_t ts_us, text id, text unit) {
    d->ts_us = ts_us;
    d->asked = asked;
    d->answering = answering;
    d->row = row;
    if (id.bytes != d->id) memcpy(d->id, id.bytes, (size_t)id.length);
    d->id_length = id.length;
    memcpy(d->unit, unit.bytes, (size_t)unit.length);
    d->unit_length = unit.length;
}

/* Answer, log and count a scored row: the length of the answer in `out`, negative where the block of rows has no room for
   the next, or a shadow has rows to score; 0 where the score can't be told (or the caller left a full block), and then nothing has changed. */
static int64_t finish(door *d, const endpoint *p, const arm *a, int64_t arrived, int64_t ts_us, text id, text unit,
                      const scored *s) {
    if (!isfinite(s->score) || !coppice_has_room(d)) return 0;
    char *digits = d->format(s->score, 'r', 0, 2, 0); /* 2: Py_DTSF_ADD_DOT_0, as repr does */
    if (!digits) return 0;
    int64_t written = answer(d, a, id, s, (text){digits, (int64_t)strlen(digits)});
    d->release(digits);
    if (!written) return 0;
    coppice_log_row(d, ts_us, a->tag, p->width, id, unit, s);
    if (p->shadow_count) coppice_offer(d, p, ts_us, id, unit, s->row);
    d->cells[d->ok_cell]++;
    d->cells[a->rows_cell]++;
    remember(d, p - d->endpoints, a - p->arms, s->row, ts_us, id, unit);
    observe(d, (coppice_now_ns() - arrived) / 1000);
    return coppice_has_room(d) && !d->has_seen ? written : -written;
}

static int64_t wait_in(batch *b, const door *d, const request *r, const arm *a, int64_t arrived, int64_t ts_us) {
    waiting *w = b->rows + b->count++;
    w->arrived = arrived;
    w->decoded = coppice_now_ns();
    w->ts_us = ts_us;
    w->asked = r->asked - d->endpoints;
    w->answering = a - r->asked->arms;
    w->id_length = r->id.length;
    w->unit_length = r->unit.length;
    memcpy(w->id, r->id.bytes, (size_t)r->id.length);
    memcpy(w->unit, r->unit.bytes, (size_t)r->unit.length);
    return WAITS + b->number;
}

/* What `finish` says; or 0: this request is for Python, and nothing has changed; or WAITS and the batch's number.
   `since`: when the connection was answered last. */
EXPORT int64_t coppice_quick(door *d, const char *data, int64_t length, int64_t since) {
    int64_t arrived = coppice_now_ns();
    request r;
    if (!coppice_head(d, data, data + length, &r)) return 0;
    int64_t ts_us = now_us();
    int64_t own_id = r.id.length == 0;
    if (own_id) r.id = new_id(d, ts_us);
    const endpoint *p = r.asked;
    const arm *a = arm_of(p, r.unit.length ? r.unit : r.id);
    if (!a->run || (!a->cheap && is_late(d, arrived, since)) || !coppice_has_room(d) || (a->queue && a->queue->count >= a->queue->most)) return 0;
    double *row = a->row + (a->queue ? a->queue->count * p->width : 0);
    if (!coppice_row(p, d->powers, r.body, row)) return 0;
    d->made += (uint64_t)own_id;
    if (a->queue) return wait_in(a->queue, d, &r, a, arrived, ts_us);
    int64_t decoded = coppice_now_ns();
    a->run(a->plan, 1);
    int64_t ended = coppice_now_ns();
    scored s = {row, *a->score, 200, (decoded - arrived) / 1000, 0, (ended - decoded) / 1000, 1};
    int64_t written = finish(d, p, a, arrived, ts_us, r.id, r.unit, &s);
    if (written) d->cells[d->inline_cell]++;
    return written;
}

/* Score what waits; then `coppice_quick_finish` answers each, in order, and `coppice_quick_empty` ends it. */
EXPORT void coppice_quick_score(const door *d, batch *b) {
    const waiting *first = b->rows;
    const arm *a = d->endpoints[first->asked].arms + first->answering;
    b->began = coppice_now_ns();
    a->run(a->plan, (uint32_t)b->count);
    b->score_us = (coppice_now_ns() - b->began) / 1000;
}

EXPORT int64_t coppice_quick_finish(door *d, const batch *b, int64_t i) {
    const waiting *w = b->rows + i;
    const endpoint *p = d->endpoints + w->asked;
    const arm *a = p->arms + w->answering;
    scored s = {a->row + i * p->width, a->score[i], 200, (w->decoded - w->arrived) / 1000, (b->began - w->decoded) / 1000,
                b->score_us, b->count};
    return finish(d, p, a, w->arrived, w->ts_us, (text){w->id, w->id_length}, (text){w->unit, w->unit_length}, &s);
}

EXPORT void coppice_quick_empty(batch *b) { b->count = 0; }

EXPORT int32_t coppice_quick_has_room(const door *d) { return coppice_has_room(d); }

EXPORT int32_t coppice_quick_abi(void) { return COPPICE_QUICK_ABI; }
/* For `serving.quick`, which lays the structures out: that it means the same ones. */
EXPORT int64_t coppice_quick_size(int32_t which) {
    static const int64_t SIZES[] = {sizeof(feature), sizeof(arm), sizeof(endpoint), sizeof(block), sizeof(door), sizeof(waiting), sizeof(batch), sizeof(seen), sizeof(shadow)};
    return which >= 0 && which < 9 ? SIZES[which] : -1;
}
EXPORT int64_t coppice_read_number(const uint64_t *powers, const char *at, int64_t length, double *value) {
    const char *end = coppice_number(powers, at, at + length, value);
    return end ? end - at : 0;
}
EXPORT int64_t coppice_point_of(const uint64_t salted[8], const char *unit, int64_t length) {
    return coppice_point(salted, (text){unit, length});
}
EXPORT int32_t coppice_read_row(const endpoint *p, const uint64_t *powers, const char *body, int64_t length, double *row) {
    return coppice_row(p, powers, (text){body, length}, row);
}
