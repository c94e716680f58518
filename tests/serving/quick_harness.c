/* Asks quick.c the requests of a file, each in memory of exactly its length, for a sanitizer to watch.

   argv: the file (4 bytes of length, then the request, and so on), the powers of ten. Prints asked and answered. */
#include "quick.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int64_t coppice_quick(door *d, const char *data, int64_t length, int64_t since);
void coppice_quick_score(const door *d, batch *b);
int64_t coppice_quick_finish(door *d, const batch *b, int64_t i);
void coppice_quick_empty(batch *b);
int64_t coppice_quick_shadow(door *d, shadow *s);
void coppice_salt(const uint8_t *salt, int64_t length, uint64_t salted[8]);

#define TEXT(s) {s, sizeof(s) - 1}
#define ROOM 700

static double rows_of[4][3], scores_of[4];
static double *row = rows_of[0], *score = scores_of;
static void run(void *plan, uint32_t rows) {
    (void)plan;
    for (uint32_t i = 0; i < rows; i++) scores_of[i] = rows_of[i][0] / 7 + rows_of[i][1] + rows_of[i][2];
}
static char *format(double value, char code, int precision, int flags, int *type) {
    (void)code, (void)precision, (void)flags, (void)type;
    char *made = malloc(40);
    snprintf(made, 40, "%.17g", value);
    return made;
}
static void *whole(const char *name, long *length) {
    FILE *file = fopen(name, "rb");
    if (!file) exit(2);
    fseek(file, 0, SEEK_END);
    *length = ftell(file);
    rewind(file);
    void *content = malloc((size_t)*length);
    if (fread(content, 1, (size_t)*length, file) != (size_t)*length) exit(2);
    fclose(file);
    return content;
}

static long offered, looked_at;
/* What `serving.quick` does after an answer with a negative length; now and then, so that rings fill and are emptied in parts. */
static void tend(door *d, shadow *shades) {
    if (d->has_seen) offered++;
    d->has_seen = 0;
    if (looked_at % 3) {
        for (int i = 0; i < 2; i++) {
            int64_t waited = shades[i].count, scored = coppice_quick_shadow(d, shades + i);
            if (scored < 0 || scored > 4 || shades[i].count != waited - scored || shades[i].first >= 5) exit(6);
        }
    }
    looked_at++;
    d->rows->count = 0;
}

int main(int argc, char **argv) {
    long length, powers_length;
    if (argc != 3) return 2;
    char *content = whole(argv[1], &length);
    uint64_t *powers = whole(argv[2], &powers_length);
    static const text categories[] = {TEXT("a"), TEXT("bb"), TEXT("cc"), TEXT("ddd")};
    static const double codes[] = {3, 1, 0, 2};
    const feature features[3] = {
        {TEXT("\"x\""), NUMBER, 1, 0.5, -1e9, 1e9, 0, 0, 0, 0, 0},
        {TEXT("\"flag\""), BOOLEAN, 0, 0, -1e9, 1e9, 0, 0, 0, 0, 0},
        {TEXT("\"plan\""), CATEGORY, 1, -1, -1e9, 1e9, 1, 9, categories, codes, 4},
    };
    waiting *held = malloc(4 * sizeof *held);
    batch queue = {0, 4, 0, 0, 0, held};
    arm arms[2] = {{run, 0, row, score, 0, 0, 0, 101, ABOVE, 0.5, {{0}}, {{{0}}}}, {run, 0, row, score, &queue, 0, 1, 103, ONLY, 0, {{0}}, {{{0}}}}};
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 6; k++) arms[i].head[k] = (text)TEXT("piece of a head\r\n");
        for (int k = 0; k < 6; k++) arms[i].bodies[k / 3][k % 3] = (text)TEXT("body");
    }
    uint16_t points[10000];
    for (int i = 0; i < 10000; i++) points[i] = i % 3 == 0;
    int32_t order[3] = {0, 1, 2};
    shadow *seeing[2], shades[2];
    for (int i = 0; i < 2; i++) {
        shades[i] = (shadow){run, 0, row, score, 4, i, 3, i ? UINT64_C(1) << 32 : UINT64_C(1) << 31, calloc(5, sizeof(seen)),
                             calloc(5, 24), 5, 0, 0, 0};
        seeing[i] = shades + i;
    }
    endpoint endpoints[2] = {{TEXT("/predict"), 0, arms, points, {0}, features, 3, order, seeing, 2},
                             {TEXT("/predict/ab"), 1, arms, points, {0}, features, 3, order, 0, 0}};
    coppice_salt((const uint8_t *)"salt", 4, endpoints[1].salted);
    static const text others[] = {TEXT("expect"), TEXT("transfer-encoding"), TEXT("upgrade")};
    int64_t cells[200] = {0}, edges[3] = {1, 10, 100}, lateness[3] = {INT64_MAX / 2, 0, INT64_MAX / 4};
    block rows = {malloc(8 * 52), calloc(9, 4), calloc(9, 4), calloc(9, 4), malloc(8 * 40), malloc(8 * 40), malloc(8 * 24),
                  8 * 40, 8 * 40, 8 * 24, 8, 0};
    char *out = malloc(ROOM);
    door d = {endpoints, 2, others, 3, 4000, cells, 1, 2, 3, 4, 10, 5, edges, 3, lateness, &rows, 24, TEXT("HTTP/1.1 200 OK\r\n"),
              out, ROOM, TEXT("mark"), 0, 7, format, free, powers, 0, 0, 0, 0, 0, 0, 0, {0}, {0}};
    long asked = 0, answered = 0;
    for (char *at = content; at + 4 <= content + length; asked++) {
        uint32_t size;
        memcpy(&size, at, 4);
        char *request = malloc(size ? size : 1);
        memcpy(request, at + 4, size);
        at += 4 + size;
        int64_t written = coppice_quick(&d, request, size, 0);
        free(request);
        if (written == WAITS) {
            if (queue.count < queue.most) continue;
            coppice_quick_score(&d, &queue);
            for (int64_t i = 0; i < queue.count; i++) {
                written = coppice_quick_finish(&d, &queue, i);
                if (written <= 0) tend(&d, shades);
                answered += written != 0;
            }
            coppice_quick_empty(&queue);
            continue;
        }
        if (written > ROOM || written < -ROOM) return 3;
        answered += written != 0;
        if (written < 0) tend(&d, shades);
        if (written == 0 && rows.count == rows.rows) return 4;
    }
    printf("%ld %ld\n", asked, answered);
    if (answered > 1000 && (!offered || !cells[5])) return 7;
    void *own[] = {shades[0].ring, shades[0].rows, shades[1].ring, shades[1].rows, held, content, powers, out, rows.records, rows.id_ends, rows.unit_ends, rows.feature_ends, rows.ids, rows.units, rows.features};
    for (int i = 0; i < 15; i++) free(own[i]);
    return cells[3] == answered ? 0 : 5;
}
