/* A flat JSON object of all features, in any order, as one row: what serving.decoding makes of it, or nothing. */
#include "quick.h"

#include <string.h>

static inline const char *past_blanks(const char *at, const char *end) {
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) at++;
    return at;
}

static inline int begins(const char *at, const char *end, const char *with, int64_t length) {
    return end - at >= length && !memcmp(at, with, (size_t)length);
}

static int64_t feature_at(const endpoint *p, int64_t place, const char *at, const char *end) {
    int64_t expected = p->order[place];
    if (begins(at, end, p->features[expected].key.bytes, p->features[expected].key.length)) return expected;
    for (int64_t i = 0; i < p->width; i++)
        if (begins(at, end, p->features[i].key.bytes, p->features[i].key.length)) {
            p->order[place] = (int32_t)i;
            return i;
        }
    return -1;
}

static int code_of(const feature *f, text name, double *value) {
    int64_t low = 0, high = f->category_count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        text known = f->categories[middle];
        int order = known.length != name.length ? (known.length < name.length ? -1 : 1)
                                                : memcmp(known.bytes, name.bytes, (size_t)name.length);
        if (order == 0) {
            *value = f->codes[middle];
            return 1;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *value = f->unseen;
    return f->takes_unseen != 0;
}

/* Where a plain string ends, that is its closing quote: no escapes, no control characters, ASCII. */
static const char *end_of_string(const char *at, const char *end) {
    while (at < end && *at != '"' && *at != '\\' && *at >= ' ' && *at != 127) at++; /* char: >= ' ' leaves out 128..255 too */
    return at < end && *at == '"' ? at : 0;
}

static const char *value_of(const feature *f, const uint64_t *powers, const char *at, const char *end, double *value) {
    if (begins(at, end, "null", 4)) {
        *value = f->missing;
        return f->nullable ? at + 4 : 0;
    }
    if (f->kind == NUMBER) {
        at = coppice_number(powers, at, end, value);
        return at && f->low <= *value && *value <= f->high ? at : 0;
    }
    if (f->kind == BOOLEAN) {
        *value = begins(at, end, "true", 4);
        return *value != 0 ? at + 4 : begins(at, end, "false", 5) ? at + 5 : 0;
    }
    if (at == end || *at != '"') return 0;
    const char *closing = end_of_string(++at, end);
    return closing && code_of(f, (text){at, closing - at}, value) ? closing + 1 : 0;
}

/* 1 where `row` has all values. */
int coppice_row(const endpoint *p, const uint64_t *powers, text body, double *row) {
    uint64_t seen[MAX_WIDTH / 64] = {0};
    const char *at = body.bytes, *end = body.bytes + body.length;
    at = past_blanks(at, end);
    if (at == end || *at++ != '{') return 0;
    for (int64_t place = 0; place < p->width; place++) {
        at = past_blanks(at, end);
        int64_t i = feature_at(p, place, at, end);
        if (i < 0 || seen[i / 64] >> i % 64 & 1) return 0;
        seen[i / 64] |= UINT64_C(1) << i % 64;
        at = past_blanks(at + p->features[i].key.length, end);
        if (at == end || *at++ != ':') return 0;
        at = value_of(p->features + i, powers, past_blanks(at, end), end, row + i);
        if (!at) return 0;
        at = past_blanks(at, end);
        if (at == end || *at++ != (place + 1 < p->width ? ',' : '}')) return 0;
    }
    return past_blanks(at, end) == end;
}
