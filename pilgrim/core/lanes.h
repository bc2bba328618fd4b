/* What the C of this project shares: several numbers at once, and bf16.

   gcc and clang make instructions of what is done with the vectors below: as many numbers as fill a register of
   AVX-512, or one of AVX2 (two of NEON). Wider ones than the processor has, they handle badly. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define VECTOR(type) type __attribute__((vector_size(LANES * sizeof(type))))
typedef VECTOR(float) floats;
typedef VECTOR(int32_t) ints32;
typedef VECTOR(uint32_t) words32;
typedef VECTOR(uint16_t) words16;
typedef VECTOR(int16_t) ints16;
typedef VECTOR(int8_t) ints8;

static inline floats lanes_of_32(const float *at) {
    floats lanes;
    memcpy(&lanes, at, sizeof lanes);
    return lanes;
}

/* bf16 is the upper half of an fp32 number. */
static inline floats lanes_of_16(const uint16_t *at) {
#ifdef __AVX512F__ /* for which gcc 12 finds a longer way by itself */
    return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at)), 16);
#else
    words16 half;
    memcpy(&half, at, sizeof half);
    return (floats)(__builtin_convertvector(half, words32) << 16);
#endif
}

static inline floats lanes_of_8(const int8_t *at) {
#if defined(__AVX512F__) /* for which, and for AVX2, gcc 12 finds a longer way by itself */
    return (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)at)));
#elif defined(__AVX2__)
    return (floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
#else
    ints8 whole;
    memcpy(&whole, at, sizeof whole);
    return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(whole, ints16), ints32), floats);
#endif
}

static inline float from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint16_t to_bf16(float x) { /* to the nearest, and of two to the even one, as torch does it */
    uint32_t bits;
    if (x != x) return 0x7fc0; /* NaN stays NaN */
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float sum_of(floats lanes) { /* halves are added, until one number is left */
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)lanes);
#else
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
#endif
}


/* As torch.where: of `yes` where a comparison has set all bits, of `no` where none. */
static inline floats where(ints32 set, floats yes, floats no) {
    return (floats)(((ints32)yes & set) | ((ints32)no & ~set));
}

static inline void store_32(float *at, floats lanes) { memcpy(at, &lanes, sizeof lanes); }

static inline void store_16(uint16_t *at, floats lanes) { /* as to_bf16 */
    const words32 bits = (words32)lanes, up = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const words32 nan = (words32)(lanes != lanes);
    const words16 half = __builtin_convertvector((up & ~nan) | (0x7fc0 & nan), words16);
    memcpy(at, &half, sizeof half);
}

/* e to the power of each number, to about 1e-7 of it. x = n ln 2 + f with a whole n: e^f is a Taylor series, as f
   is at most 0.35, and 2^n is a matter of the exponent's bits. Below -87 everything is e^-87, above 88 e^88; NaN
   stays NaN. */
static inline floats exp_of(floats x) {
    const float least = -87.0f, most = 88.0f, round = 12582912.0f; /* to which added, n is in the lowest bits */
    x = where(x < least, (floats){0} + least, x);
    x = where(x > most, (floats){0} + most, x);
    const floats shifted = x * 1.44269504f + round, n = shifted - round;
    const floats f = x - n * 0.693359375f - n * -2.12194440e-4f; /* ln 2 in two parts */
    floats sum = (floats){0} + 1.0f / 5040;
    const float factors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (int i = 0; i < 7; i++) sum = sum * f + factors[i];
    return sum * (floats)(((words32)shifted + 127) << 23);
}

/* How the embedding, norms, caches and activations are kept: in bf16 (NUMBER_BITS 16) or fp32 (32). */
#if NUMBER_BITS == 16
typedef uint16_t number;
#define number_lanes lanes_of_16
#define store_numbers store_16
#define from_number from_bf16
#define to_number to_bf16
#else
typedef float number;
#define number_lanes lanes_of_32
#define store_numbers store_32
#define from_number(x) (x)
#define to_number(x) (x)
#endif
