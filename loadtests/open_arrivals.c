/* Requests on a schedule, whatever the answers do: an open loop over HTTP/1.1, one thread, for tens of thousands a second.

   open_arrivals PORT PATH BODIES CONNECTIONS SEED DRAIN_S PATIENCE_S OUT RATE:SECONDS...

   BODIES: a JSON body a line, sent in turn. SEED 0: even arrivals, otherwise Poisson. A request that is due takes an idle
   connection; where there is none it waits its turn, and counts from when it was due; after PATIENCE_S it is given up. DRAIN_S
   after the last was due the run ends. OUT: of each request four int64: due, sent, answered (ns since the beginning; -1: never)
   and the status (0: no answer). Idle connections take turns, so that all workers have their share.
   Prints: CPU seconds, wall seconds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define ROOM 16384
#define EVENTS 256

typedef struct {
    int fd;
    int64_t asked; /* which request is in flight; -1: none */
    int64_t got;   /* bytes in `buffer` */
    char buffer[ROOM];
} connection;

typedef struct {
    int64_t due, sent, answered, status;
} request;

static connection *connections;
static int *idle, idle_first, idle_count, number, poller, port;
static request *requests;
static int64_t count, next_, in_flight, began, patience;
static char **wires;
static size_t *wire_lengths, wire_count;

static void stop(const char *why) {
    fprintf(stderr, "open_arrivals: %s: %s\n", why, strerror(errno));
    exit(2);
}

static void *room(size_t bytes) {
    void *made = calloc(bytes ? bytes : 1, 1);
    if (!made) stop("memory");
    return made;
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec - began;
}

static void connect_(connection *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to)) stop("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event)) stop("epoll_ctl");
    c->asked = -1;
    c->got = 0;
}

static void rest(connection *c) { idle[(idle_first + idle_count++) % number] = (int)(c - connections); }

static void finish(connection *c, int64_t status, int again) {
    if (c->asked >= 0) {
        requests[c->asked].answered = status ? now() : -1;
        requests[c->asked].status = status;
        in_flight--;
        c->asked = -1;
        rest(c);
    }
    c->got = 0;
    if (again) {
        close(c->fd);
        connect_(c);
    }
}

static void send_due(int64_t at) {
    while (next_ < count && idle_count && requests[next_].due <= at) {
        if (at - requests[next_].due > patience) {
            next_++;
            continue;
        }
        connection *c = connections + idle[idle_first];
        idle_first = (idle_first + 1) % number;
        idle_count--;
        size_t which = (size_t)next_ % wire_count, length = wire_lengths[which], done = 0;
        c->asked = next_;
        requests[next_++].sent = at;
        in_flight++;
        while (done < length) {
            ssize_t wrote = write(c->fd, wires[which] + done, length - done);
            if (wrote >= 0) done += (size_t)wrote;
            else if (errno != EAGAIN && errno != EINTR) break;
        }
        if (done < length) finish(c, 0, 1);
        at = now();
    }
}

/* The header's value; 0 where there is none. */
static const char *header(const char *head, const char *name) {
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, length) && line[2 + length] == ':') return line + 3 + length + strspn(line + 3 + length, " ");
    return NULL;
}

static void receive(connection *c) {
    ssize_t more = read(c->fd, c->buffer + c->got, (size_t)(ROOM - 1 - c->got));
    if (more < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (more <= 0) {
        finish(c, 0, 1);
        return;
    }
    c->got += more;
    c->buffer[c->got] = 0;
    char *end = strstr(c->buffer, "\r\n\r\n");
    if (!end) {
        if (c->got == ROOM - 1) finish(c, 0, 1);
        return;
    }
    *end = 0; /* the head alone is looked at */
    const char *length = header(c->buffer, "content-length"), *keeps = header(c->buffer, "connection");
    int64_t whole = end + 4 - c->buffer + (length ? atoll(length) : ROOM);
    int closes = keeps && !strncasecmp(keeps, "close", 5);
    int status = strlen(c->buffer) > 12 ? atoi(c->buffer + 9) : 0;
    *end = '\r';
    if (whole >= ROOM || c->got > whole) finish(c, 0, 1); /* longer than what is asked for here, or not HTTP */
    else if (c->got == whole) finish(c, status, closes);
}

static void read_bodies(const char *name, const char *path) {
    FILE *file = fopen(name, "r");
    char *line = NULL;
    size_t size = 0, most = 0;
    ssize_t length;
    if (!file) stop(name);
    while ((length = getline(&line, &size, file)) > 0) {
        if (line[length - 1] == '\n') length--;
        if (!length) continue;
        if (wire_count == most) {
            most = most ? 2 * most : 1024;
            wires = realloc(wires, most * sizeof *wires);
            wire_lengths = realloc(wire_lengths, most * sizeof *wire_lengths);
            if (!wires || !wire_lengths) stop("memory");
        }
        char *wire = room((size_t)length + strlen(path) + 200);
        int head = sprintf(wire, "POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %zd\r\n\r\n", path, length);
        memcpy(wire + head, line, (size_t)length);
        wires[wire_count] = wire;
        wire_lengths[wire_count++] = (size_t)(head + length);
    }
    free(line);
    fclose(file);
    if (!wire_count) { errno = EINVAL; stop(name); }
}

/* When each is due. `past`: the expected count; the next is due where it reaches `wanted`. */
static int64_t plan(int stages, char **told, long seed) {
    double begin_s = 0, past = 0, wanted = 0;
    int64_t most = 0;
    srand48(seed);
    if (seed) wanted = -log(1 - drand48());
    for (int i = 0; i < stages; i++) {
        double rate = 0, seconds = 0;
        if (sscanf(told[i], "%lf:%lf", &rate, &seconds) != 2 || !(rate > 0) || !(seconds > 0)) { errno = EINVAL; stop(told[i]); }
        while (wanted < past + rate * seconds) {
            if (count == most) {
                most = most ? 2 * most : 65536;
                requests = realloc(requests, (size_t)most * sizeof *requests);
                if (!requests) stop("memory");
            }
            requests[count++] = (request){(int64_t)(1e9 * (begin_s + (wanted - past) / rate)), -1, -1, 0};
            wanted += seed ? -log(1 - drand48()) : 1;
        }
        past += rate * seconds;
        begin_s += seconds;
    }
    return (int64_t)(1e9 * begin_s);
}

int main(int argc, char **argv) {
    if (argc < 10) { errno = EINVAL; stop("PORT PATH BODIES CONNECTIONS SEED DRAIN_S PATIENCE_S OUT RATE:SECONDS..."); }
    port = atoi(argv[1]);
    number = atoi(argv[4]);
    if (number < 1 || number > 20000) { errno = EINVAL; stop("CONNECTIONS"); }
    read_bodies(argv[3], argv[2]);
    int64_t ends = plan(argc - 9, argv + 9, atol(argv[5])) + (int64_t)(1e9 * atof(argv[6]));
    patience = (int64_t)(1e9 * atof(argv[7]));
    poller = epoll_create1(EPOLL_CLOEXEC);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event events[EVENTS], ring = {.events = EPOLLIN, .data.ptr = NULL};
    if (poller < 0 || timer < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, timer, &ring)) stop("epoll");
    connections = room((size_t)number * sizeof *connections);
    idle = room((size_t)number * sizeof *idle);
    for (int i = 0; i < number; i++) {
        connect_(connections + i);
        rest(connections + i);
    }
    struct rusage used_before, used;
    getrusage(RUSAGE_SELF, &used_before);
    began = now();
    for (int64_t at = 0; at < ends && (next_ < count || in_flight); at = now()) {
        send_due(at);
        int64_t wake = next_ < count && idle_count && requests[next_].due < ends ? requests[next_].due : ends;
        if (wake > (at = now())) { /* an instant that is past would never ring */
            int64_t instant = wake + began;
            struct itimerspec set = {.it_value = {instant / 1000000000, instant % 1000000000}};
            if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &set, NULL)) stop("timerfd_settime");
        }
        int ready = epoll_wait(poller, events, EVENTS, wake > at ? -1 : 0);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr) receive(events[i].data.ptr);
            else {
                uint64_t rung;
                if (read(timer, &rung, 8) < 0 && errno != EAGAIN) stop("timer");
            }
        }
    }
    double wall = (double)now() / 1e9;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec - used_before.ru_utime.tv_sec - used_before.ru_stime.tv_sec);
    cpu += (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec - used_before.ru_utime.tv_usec - used_before.ru_stime.tv_usec) / 1e6;
    FILE *out = fopen(argv[8], "wb");
    if (!out || fwrite(requests, sizeof *requests, (size_t)count, out) != (size_t)count || fclose(out)) stop(argv[8]);
    printf("%.6f %.6f\n", cpu, wall);
    return 0;
}
