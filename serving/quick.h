/* The usual scoring request, from the bytes that were read to the bytes of its answer, without Python.

   `coppice_quick` takes one whole request, as clients send it: POST to a known path, HTTP/1.1, no header that asks for
   anything out of the way, a flat ASCII JSON object of all features. It scores it, logs it, counts it and writes the answer.
   Whatever is unusual in it, right or wrong, it leaves alone: it answers 0 and has changed nothing, and the Python path
   (serving.protocol) does the whole work again and knows every case. So each check here need only be safe, never complete.

   Nothing is allocated and nothing outlives the call but what the door points to. Every read is bounded by the request's
   end. `serving.quick` lays the structures out (field for field) and owns all that they point to. */
#ifndef COPPICE_QUICK_H
#define COPPICE_QUICK_H

#include <stdint.h>

#define COPPICE_QUICK_ABI 4
#define WAITS INT64_MIN /* and the batch's number: the answer comes with those of the batch */
#define MAX_ID 128
#define MAX_UNIT 128 /* one block of the hash; a longer unit goes through Python */
#define MAX_WIDTH 1024

typedef struct {
    const char *bytes;
    int64_t length;
} text;

enum { NUMBER, BOOLEAN, CATEGORY };

typedef struct {
    text key; /* with its quotes */
    int64_t kind;
    int64_t nullable;
    double missing; /* what null becomes */
    double low, high;
    int64_t takes_unseen;
    double unseen;          /* what a category that is not listed becomes */
    const text *categories; /* in ascending order of (length, bytes) */
    const double *codes;
    int64_t category_count;
} feature;

enum { ONLY, ABOVE, BELOW }; /* which body: the only one; the second if the score is above the threshold, or below it */

/* A request whose row waits for others to be scored with it. */
typedef struct {
    int64_t arrived, decoded, ts_us; /* ns, ns, µs */
    int64_t asked, answering;        /* as the door's */
    int64_t id_length, unit_length;
    char id[MAX_ID], unit[MAX_UNIT];
} waiting;

/* The rows of one lane that wait, at the front of the buffer of its arms. */
typedef struct {
    int64_t number, most, count;
    int64_t began, score_us; /* of the call */
    waiting *rows;
} batch;

typedef struct {
    void (*run)(void *, uint32_t); /* NULL: not scored on the loop's thread */
    void *plan;
    double *row; /* the first, of one; of `batch->most` where there is a batch */
    const double *score;
    batch *queue; /* NULL: each row is scored at once */
    int64_t cheap; /* to answer costs less than to refuse: however late the loop is */
    int64_t tag;
    int64_t rows_cell;
    int64_t choice;
    double threshold;
    text head[6];      /* what stands around: length, id, parse, queue and score ms */
    text bodies[2][3]; /* what stands around: score, id */
} arm;

/* A row that was answered, and that a shadow will score. */
typedef struct {
    int64_t ts_us, id_length, unit_length;
    char id[MAX_ID], unit[MAX_UNIT];
} seen;

/* A bundle that scores a sample of the answered rows when the answers are out: a ring of them, and the lane's buffer. */
typedef struct {
    void (*run)(void *, uint32_t);
    void *plan;
    double *row; /* of `most` rows */
    const double *score;
    int64_t most, tag, width;
    uint64_t sampled; /* of 2^32 rows */
    seen *ring;
    double *rows; /* the ring's */
    int64_t room, first, count;
    int64_t score_us; /* of the last call */
} shadow;

typedef struct {
    text name;
    int64_t split; /* the unit's point decides the arm; otherwise it is the first */
    const arm *arms;
    const uint16_t *points; /* arm by point */
    uint64_t salted[8];     /* the hash's state after the salt */
    const feature *features;
    int64_t width;
    int32_t *order; /* the features in the order in which the last request had them */
    shadow *const *shadows;
    int64_t shadow_count;
} endpoint;

/* Rows on their way to the traffic log's thread: `serving.blocks.Arena`. */
typedef struct {
    char *records;
    int32_t *id_ends, *unit_ends, *feature_ends; /* of each row, in bytes */
    char *ids, *units, *features;
    int64_t id_room, unit_room, feature_room; /* bytes */
    int64_t rows, count;
} block;

typedef struct {
    const endpoint *endpoints;
    int64_t endpoint_count;
    const text *others; /* header names, in small letters, that only Python understands */
    int64_t other_count;
    int64_t max_body;
    int64_t *cells; /* the worker's slot of the shared page */
    int64_t seq_cell, rows_cell, ok_cell, inline_cell, seconds_cell, shadow_shed_cell;
    const int64_t *edges; /* of the histogram of seconds, in µs */
    int64_t edge_count;
    const int64_t *lateness; /* ns: when the loop's next probe is due, how late the last was, how late is too late */
    block *rows;
    int64_t row_bytes; /* of the widest path's features */
    text preamble; /* status line and the server's own headers */
    char *out;
    int64_t room;
    text mark; /* of the ids made here */
    uint64_t made;
    uint64_t random; /* state of the draw of what shadows see; never 0 */
    char *(*format)(double, char, int, int, int *); /* PyOS_double_to_string, */
    void (*release)(void *);                        /* PyMem_Free, */
    const uint64_t *powers;                         /* of ten, 128 bits each: serving.quick.powers_of_ten */
    int64_t has_seen; /* a shadow's ring is empty no more: set here, cleared there */
    /* of the last request that was answered */
    const double *row;
    int64_t ts_us, unit_length, id_length;
    int64_t asked, answering; /* which endpoint, and which of its arms */
    char id[MAX_ID], unit[MAX_UNIT];
} door;

typedef struct {
    const endpoint *asked;
    text id, unit, body;
} request;

/* What became of a row. */
typedef struct {
    const double *row;
    double score;
    int64_t status, parse_us, queue_us, score_us, batch_rows;
} scored;

/* All of them answer 0 (or NULL) for what is not theirs to judge. */
int coppice_head(const door *d, const char *at, const char *end, request *r);
int coppice_row(const endpoint *p, const uint64_t *powers, text body, double *row);
const char *coppice_number(const uint64_t *powers, const char *at, const char *end, double *value);
int64_t coppice_point(const uint64_t salted[8], text unit);

int64_t coppice_now_ns(void); /* monotonic */
int coppice_has_room(const door *d); /* for one more row in the log's block */
void coppice_log_row(door *d, int64_t ts_us, int64_t tag, int64_t width, text id, text unit, const scored *s);
void coppice_offer(door *d, const endpoint *p, int64_t ts_us, text id, text unit, const double *row);

#endif
