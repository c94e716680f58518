/* A decimal number to the nearest double: D. Lemire, "Number Parsing at a Gigabyte per Second", 2021, algorithm 1.

   19 digits and exponents of ten up to +-280 are read, so no result is subnormal or infinite; the rest is not ours. */
#include "quick.h"

#include <string.h>

#define LEAST_POWER (-342)
#define MOST_EXPONENT 280

__extension__ typedef unsigned __int128 wide;

static const double EXACT[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                               1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

static int rounded(const uint64_t *powers, uint64_t digits, int64_t exponent, double *value) {
    if (digits == 0) {
        *value = 0;
        return 1;
    }
    if (digits <= (UINT64_C(1) << 53) && exponent >= -22 && exponent <= 22) { /* one rounding, of exact operands */
        *value = exponent < 0 ? (double)digits / EXACT[-exponent] : (double)digits * EXACT[exponent];
        return 1;
    }
    int zeros = __builtin_clzll(digits);
    uint64_t left = digits << zeros;
    const uint64_t *power = powers + 2 * (exponent - LEAST_POWER);
    wide product = (wide)left * power[0];
    uint64_t high = (uint64_t)(product >> 64), low = (uint64_t)product;
    if ((high & 0x1FF) == 0x1FF) { /* the lower half of the power may still carry into what is kept */
        uint64_t carried = (uint64_t)(((wide)left * power[1]) >> 64);
        low += carried;
        high += low < carried;
    }
    if (low == UINT64_MAX && (exponent < -27 || exponent > 55)) return 0; /* undecided by 128 bits */
    int upper = (int)(high >> 63), shift = upper + 9;
    uint64_t mantissa = high >> shift;
    int64_t binary = ((217706 * exponent) >> 16) + 63 + upper - zeros; /* floor(log2(10^exponent)), by 217706 / 65536 */
    if (low <= 1 && exponent >= -4 && exponent <= 23 && (mantissa & 3) == 1 && mantissa << shift == high)
        mantissa &= ~UINT64_C(1); /* half-way: to even */
    mantissa += mantissa & 1;
    mantissa >>= 1;
    if (mantissa >> 53) {
        mantissa >>= 1;
        binary++;
    }
    uint64_t bits = (mantissa & ((UINT64_C(1) << 52) - 1)) | (uint64_t)(binary + 1023) << 52;
    memcpy(value, &bits, sizeof bits);
    return 1;
}

static inline int is_digit(char c) { return (unsigned)(c - '0') < 10; }

/* JSON's grammar of a number. Where it ends, or NULL. */
const char *coppice_number(const uint64_t *powers, const char *at, const char *end, double *value) {
    int negative = at < end && *at == '-';
    at += negative;
    const char *first = at;
    uint64_t digits = 0;
    int64_t exponent = 0, count;
    while (at < end && is_digit(*at)) digits = 10 * digits + (uint64_t)(*at++ - '0');
    count = at - first;
    if (count == 0 || count > 19 || (*first == '0' && count > 1)) return 0;
    int whole = 1;
    if (at < end && *at == '.') {
        const char *fraction = ++at;
        whole = 0;
        if (digits == 0) { /* leading zeros are no digits of ours */
            while (at < end && *at == '0') at++;
            count = 0;
        }
        const char *significant = at;
        while (at < end && is_digit(*at)) digits = 10 * digits + (uint64_t)(*at++ - '0');
        if (at == fraction || at - fraction > 200) return 0;
        count += at - significant;
        if (count > 19) return 0;
        exponent = fraction - at;
    }
    if (at < end && (*at == 'e' || *at == 'E')) {
        int down = 0;
        int64_t given = 0;
        whole = 0;
        if (++at < end && (*at == '+' || *at == '-')) down = *at++ == '-';
        const char *digit = at;
        while (at < end && is_digit(*at) && at - digit < 4) given = 10 * given + (*at++ - '0');
        if (at == digit || (at < end && is_digit(*at))) return 0;
        exponent += down ? -given : given;
    }
    if (exponent < -MOST_EXPONENT || exponent > MOST_EXPONENT || (negative && whole && digits == 0)) return 0;
    if (!rounded(powers, digits, exponent, value)) return 0;
    if (negative) *value = -*value;
    return at;
}
