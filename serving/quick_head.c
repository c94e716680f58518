/* The head of a request: what the usual client sends. */
#include "quick.h"

#include <string.h>

#define TOKEN 1 /* may stand in a header's name (RFC 9110, 5.6.2) */
#define VALUE 2 /* in its value */
#define SANE 4  /* in a request id: serving.scoring.SANE_ID */
#define PRINT 8 /* in a unit: ASCII without blanks */

static const uint8_t KIND[256] = {
    ['\t'] = VALUE, [' '] = VALUE,
    ['!'] = 11, ['"'] = 10, ['#'] = 11, ['$'] = 11, ['%'] = 11, ['&'] = 11, ['\''] = 11, ['('] = 10, [')'] = 10,
    ['*'] = 11, ['+'] = 15, [','] = 10, ['-'] = 15, ['.'] = 15, ['/'] = 14, ['0' ... '9'] = 15, [':'] = 14, [';'] = 10,
    ['<'] = 10, ['='] = 14, ['>'] = 10, ['?'] = 10, ['@'] = 14, ['A' ... 'Z'] = 15, ['['] = 10, ['\\'] = 10, [']'] = 10,
    ['^'] = 11, ['_'] = 15, ['`'] = 11, ['a' ... 'z'] = 15, ['{'] = 10, ['|'] = 11, ['}'] = 10, ['~'] = 11,
    [128 ... 255] = VALUE,
};

static int all(text t, uint8_t kind) {
    uint8_t seen = kind;
    for (int64_t i = 0; i < t.length; i++) seen &= KIND[(uint8_t)t.bytes[i]];
    return seen == kind;
}

/* `small` is in small letters; a token's other letters differ from them by one bit. */
static int named(text name, const char *small, int64_t length) {
    if (name.length != length) return 0;
    for (int64_t i = 0; i < length; i++) {
        char c = name.bytes[i];
        if ((c >= 'A' && c <= 'Z' ? c | 0x20 : c) != small[i]) return 0;
    }
    return 1;
}

static int whole_number(text digits, int64_t *value) {
    if (digits.length < 1 || digits.length > 9) return 0;
    int64_t sum = 0;
    for (int64_t i = 0; i < digits.length; i++) {
        unsigned digit = (unsigned)(digits.bytes[i] - '0');
        if (digit > 9) return 0;
        sum = 10 * sum + digit;
    }
    *value = sum;
    return 1;
}

static int is_other(const door *d, text name) {
    for (int64_t i = 0; i < d->other_count; i++)
        if (named(name, d->others[i].bytes, d->others[i].length)) return 1;
    return 0;
}

static int header(const door *d, text name, text value, request *r) {
    switch (name.length) {
    case 6:
        if (!named(name, "x-unit", 6)) break;
        r->unit = value;
        return value.length > 0 && value.length <= MAX_UNIT && all(value, PRINT);
    case 10:
        if (!named(name, "connection", 10)) break;
        return named(value, "keep-alive", 10);
    case 12:
        if (named(name, "content-type", 12)) return value.length == 16 && !memcmp(value.bytes, "application/json", 16);
        if (!named(name, "x-request-id", 12)) break;
        r->id = value;
        return value.length > 0 && value.length <= MAX_ID && all(value, SANE);
    case 14:
        if (!named(name, "content-length", 14)) break;
        return r->body.length < 0 && whole_number(value, &r->body.length);
    }
    return !is_other(d, name);
}

static const endpoint *endpoint_of(const door *d, const char *at, const char *end) {
    for (int64_t i = 0; i < d->endpoint_count; i++) {
        text name = d->endpoints[i].name;
        if (end - at > name.length && at[name.length] == ' ' && !memcmp(at, name.bytes, (size_t)name.length))
            return d->endpoints + i;
    }
    return 0;
}

/* 1 where at..end is exactly one request for us. */
int coppice_head(const door *d, const char *at, const char *end, request *r) {
    if (end - at < 16 || memcmp(at, "POST ", 5)) return 0;
    r->asked = endpoint_of(d, at += 5, end);
    if (!r->asked) return 0;
    at += r->asked->name.length;
    if (end - at < 13 || memcmp(at, " HTTP/1.1\r\n", 11)) return 0;
    at += 11;
    r->id = r->unit = (text){"", 0};
    r->body.length = -1;
    while (*at != '\r') { /* in bounds: below, at least two bytes are left after a line */
        text name = {at, 0}, value;
        while (at < end && KIND[(uint8_t)*at] & TOKEN) at++;
        name.length = at - name.bytes;
        if (name.length == 0 || at == end || *at++ != ':') return 0;
        while (at < end && (*at == ' ' || *at == '\t')) at++;
        value.bytes = at;
        while (at < end && KIND[(uint8_t)*at] & VALUE) at++;
        value.length = at - value.bytes;
        if (end - at < 4 || at[0] != '\r' || at[1] != '\n' || !header(d, name, value, r)) return 0;
        at += 2;
    }
    r->body.bytes = at + 2;
    return at[1] == '\n' && r->body.length >= 0 && r->body.length <= d->max_body &&
           end - r->body.bytes == r->body.length;
}
