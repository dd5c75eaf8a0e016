// Vectors of float32 in the processor's own width, and the two types that numbers are stored in.
//
// Arithmetic is float32 throughout; bfloat16 is widened when it is read and rounded when it is
// written. Products and sums contract to one operation only where `fused` says so, which makes
// results those of torch's separate operators. Nothing here knows of ops or threads.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace elidir {

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

inline Floats every(float v) {
#ifdef __AVX512F__
  return (Floats)_mm512_set1_ps(v);
#else
  return Floats{v, v, v, v, v, v, v, v};
#endif
}

// a b + c, rounded once where the processor can.
inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// The lanes' sum, always in the same order.
inline float total(Floats v) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)v);
#else
  float sum[kLanes];
  memcpy(sum, &v, sizeof sum);
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  return sum[0];
#endif
}

struct BFloat16 {
  uint16_t bits;
};

inline float widen(float v) { return v; }
inline float widen(BFloat16 v) {
  uint32_t bits = uint32_t(v.bits) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

inline void narrow(float v, float* to) { *to = v; }
inline void narrow(float v, BFloat16* to) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  to->bits = v != v ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// By dereference, not memcpy, which moves a vector in halves and makes the next reading wait.
inline Floats load(const float* p) { return *reinterpret_cast<const Floats*>(p); }
inline Floats load(const BFloat16* p) {
#ifdef __AVX512F__
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return (Floats)_mm512_slli_epi32(wide, 16);
#else
  const Halves half = *reinterpret_cast<const Halves*>(p);
  return (Floats)(__builtin_convertvector(half, Words) << 16);
#endif
}

inline void store(Floats v, float* p) { *reinterpret_cast<Floats*>(p) = v; }
inline void store(Floats v, BFloat16* p) {
  Words bits = (Words)v;
  Words rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  rounded = v == v ? rounded : (Words{} + 0x7fc0u);
  *reinterpret_cast<Halves*>(p) = __builtin_convertvector(rounded, Halves);
}

// How many lanes count: all of them, which is known when this is compiled, or the first few.
struct All {};
struct Few {
  long lanes;
};

// The others are zero, or are not written.
template <class T>
Floats load(const T* p, All) { return load(p); }
template <class T>
Floats load(const T* p, Few n) {
  T some[kLanes] = {};
  memcpy(some, p, n.lanes * sizeof(T));
  return load(some);
}
template <class T>
void store(Floats v, T* p, All) { store(v, p); }
template <class T>
void store(Floats v, T* p, Few n) {
  T some[kLanes];
  store(v, some);
  memcpy(p, some, n.lanes * sizeof(T));
}
inline Floats only(Floats v, All) { return v; }
inline Floats only(Floats v, Few n) {
  for (int lane = int(n.lanes); lane < kLanes; ++lane) v[lane] = 0;
  return v;
}

// Calls f(channel, lanes) over the channels of a row.
template <class F>
inline __attribute__((always_inline)) void channels(long width, F f) {
  long i = 0;
  for (; i + kLanes <= width; i += kLanes) f(i, All{});
  if (i < width) f(i, Few{width - i});
}

// Calls f with 0 to N - 1 as constants: loops over registers must be undone before anything else.
template <int N, class F>
inline __attribute__((always_inline)) void unrolled(F f) {
  if constexpr (N > 0) {
    unrolled<N - 1>(f);
    f(std::integral_constant<int, N - 1>{});
  }
}
#define ELIDIR_INLINE __attribute__((always_inline))

// e^x to the last place or two: 2^n times a polynomial in the rest; 0 below -87.3.
inline Floats exponential(Floats x) {
  const Floats low = every(-87.3f), high = every(88.7f);
  Floats y = x < low ? low : x;
  y = y > high ? high : y;
  Floats n = y * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
  Ints power = (Ints)n;
  n = n - 12582912.0f;
  Floats r = fused(n, every(-0.693359375f), y);
  r = fused(n, every(2.12194440e-4f), r);
  Floats p = every(1.9875691500e-4f);
  p = fused(p, r, every(1.3981999507e-3f));
  p = fused(p, r, every(8.3334519073e-3f));
  p = fused(p, r, every(4.1665795894e-2f));
  p = fused(p, r, every(1.6666665459e-1f));
  p = fused(p, r, every(5.0000001201e-1f));
  p = fused(p * r, r, r) + 1.0f;
  Floats scale = (Floats)((power + 127) << 23);
  Floats out = p * scale;
  out = x < low ? Floats{} : out;
  return x == x ? out : x;
}

// The natural logarithm of a positive number, to the last place or two.
inline Floats logarithm(Floats x) {
  const Words bits = (Words)x;
  const Floats part = (Floats)((bits & 0x7fffffu) | 0x3f000000u);  // from 0.5 to 1
  const auto small = part < every(0.707106781f);
  Floats power = __builtin_convertvector((Ints)(bits >> 23) - 126, Floats);
  power = small ? power - 1.0f : power;
  const Floats r = (small ? part + part : part) - 1.0f;
  Floats p = every(7.0376836292e-2f);
  p = fused(p, r, every(-1.1514610310e-1f));
  p = fused(p, r, every(1.1676998740e-1f));
  p = fused(p, r, every(-1.2420140846e-1f));
  p = fused(p, r, every(1.4249322787e-1f));
  p = fused(p, r, every(-1.6668057665e-1f));
  p = fused(p, r, every(2.0000714765e-1f));
  p = fused(p, r, every(-2.4999993993e-1f));
  p = fused(p, r, every(3.3333331174e-1f));
  const Floats square = r * r;
  Floats rest = fused(power, every(-2.12194440e-4f), square * r * p);
  rest = fused(square, every(-0.5f), rest);
  return fused(power, every(0.693359375f), r + rest);
}

}  // namespace elidir
