// How weights are stored: plain float32 and bfloat16, and the block formats of GGUF files.
//
// A format reads 32 values of a row at a time, in order, as float32: exactly the values that the
// weight has when it is dequantised. So a product over blocks is the product over the dense weight.

#pragma once

#include "vector.h"

namespace elidir {

constexpr long kStep = 32;  // values that are read at a time: one block
constexpr int kParts = kStep / kLanes;

struct Step {
  Floats part[kParts];
};

inline float half_to_float(const uint8_t* p) {
  uint16_t bits;
  memcpy(&bits, p, 2);
#ifdef __F16C__
  return _cvtsh_ss(bits);
#else
  uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = bits & 0x7fff;
  if (rest < 0x0400) {  // subnormal: a count of 2^-24
    float small = float(rest) * 5.9604644775390625e-8f;
    return sign ? -small : small;
  }
  uint32_t wide = sign | (rest >= 0x7c00 ? (rest << 13) + 0x70000000 : (rest << 13) + 0x38000000);
  float f;
  memcpy(&f, &wide, 4);
  return f;
#endif
}

template <class T>
struct Plain {
  static constexpr bool kBlocks = false;
  static long bytes(long values) { return values * long(sizeof(T)); }
  static Step read(const uint8_t* row, long at) {
    const T* p = reinterpret_cast<const T*>(row) + at;
    Step step;
    unrolled<kParts>([&](auto i) ELIDIR_INLINE { step.part[i] = load(p + i * kLanes); });
    return step;
  }
  // The last values of a row that is no multiple of a step; the rest is zero.
  static Step rest(const uint8_t* row, long at, long count) {
    T some[kStep] = {};
    memcpy(some, row + bytes(at), count * sizeof(T));
    return read(reinterpret_cast<const uint8_t*>(some), 0);
  }
};

// Four bits a value: values 0 to 15 are the low halves of 16 bytes, 16 to 31 the high halves.
// `scale` and `lowest` give the 16 values that a block may have, from which each is looked up.
inline Step nibbles(const uint8_t* packed, Floats scale, Floats shift, Floats lowest) {
  Step step;
#ifdef __AVX512F__
  const __m512 count = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512 table = (__m512)(((Floats)count - shift) * scale + lowest);
  __m512i q = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
  step.part[0] = (Floats)_mm512_permutexvar_ps(q, table);
  step.part[1] = (Floats)_mm512_permutexvar_ps(_mm512_srli_epi32(q, 4), table);
#else
  typedef uint8_t Bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
  for (int i = 0; i < kParts / 2; ++i) {
    Bytes some;
    memcpy(&some, packed + i * kLanes, sizeof some);
    Ints wide = __builtin_convertvector(some, Ints);
    step.part[i] = (__builtin_convertvector(wide & 15, Floats) - shift) * scale + lowest;
    step.part[i + kParts / 2] =
        (__builtin_convertvector(wide >> 4, Floats) - shift) * scale + lowest;
  }
#endif
  return step;
}

template <class Block>
struct Blocks {
  static constexpr bool kBlocks = true;
  static long bytes(long values) { return values / kStep * Block::kBytes; }
  static Step read(const uint8_t* row, long at) { return Block::read(row + bytes(at)); }
  static Step rest(const uint8_t* row, long at, long) { return read(row, at); }
};

// The number `which` of the halves that a block begins with, in every lane.
template <int WHICH>
Floats half(const uint8_t* block) {
#ifdef __AVX512F__
  const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block));
  const __m512 wide = _mm512_castps128_ps512(_mm_cvtph_ps(bits));
  return (Floats)_mm512_permutexvar_ps(_mm512_set1_epi32(WHICH), wide);
#else
  return every(half_to_float(block + 2 * WHICH));
#endif
}

struct Q4_0 {
  static constexpr long kBytes = 18;
  static Step read(const uint8_t* b) {  // (q - 8) d
    return nibbles(b + 2, half<0>(b), every(8.0f), Floats{});
  }
};

struct Q4_1 {
  static constexpr long kBytes = 20;
  static Step read(const uint8_t* b) {  // q d + m
    return nibbles(b + 4, half<0>(b), Floats{}, half<1>(b));
  }
};

struct Q8_0 {
  static constexpr long kBytes = 34;
  static Step read(const uint8_t* b) {  // q d
    const Floats scale = half<0>(b);
    Step step;
#ifdef __AVX512F__
    unrolled<kParts>([&](auto i) ELIDIR_INLINE {
      const __m128i* some = reinterpret_cast<const __m128i*>(b + 2 + i * kLanes);
      const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(some));
      step.part[i] = (Floats)_mm512_cvtepi32_ps(wide) * scale;
    });
#else
    typedef int8_t Bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
    unrolled<kParts>([&](auto i) ELIDIR_INLINE {
      const Bytes some = *reinterpret_cast<const Bytes*>(b + 2 + i * kLanes);
      step.part[i] = __builtin_convertvector(__builtin_convertvector(some, Ints), Floats) * scale;
    });
#endif
    return step;
  }
};

// Numbers of the formats, as in records.py.
enum Format : int64_t { kF32, kBF16, kQ4_0, kQ4_1, kQ8_0 };

// Calls f with the format's type.
template <class F>
void with_format(int64_t format, F f) {
  switch (format) {
    case kF32: return f(Plain<float>{});
    case kBF16: return f(Plain<BFloat16>{});
    case kQ4_0: return f(Blocks<Q4_0>{});
    case kQ4_1: return f(Blocks<Q4_1>{});
    default: return f(Blocks<Q8_0>{});
  }
}

}  // namespace elidir
