// Products in int8: rows of floats to rows of a grid of bytes, and what a few such rows are multiplied
// with. A byte q of the grid is clamp(round(v / scale) + 128, 0, 255).
//
// The weight lies as oneDNN packs it: blocks of kBlock outputs, and in a block, four values of each
// output side by side, again and again, zeros behind the last. Sums are exact, in 32 bits.

#pragma once

#include "gemv.h"
#include "pointwise.h"

namespace elidir {

constexpr long kBlock = 64;
constexpr int kGroups = kBlock / kLanes;
constexpr float kZeroPoint = 128.0f;

typedef uint8_t Bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));

// ---- from rows of floats to the grid

// What is rounded, as in records.py.
enum Kind : int64_t { kPlain, kNormed, kSummed, kProduct };

inline Bytes gridded(Floats v, float inverse) {
  v = v * inverse;
  v = v == v ? v : Floats{};
  v = v < -kZeroPoint ? every(-kZeroPoint) : v;
  v = v > kZeroPoint - 1 ? every(kZeroPoint - 1) : v;
  const float magic = 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer, even on ties
  v = (v + magic) - magic + kZeroPoint;
  return __builtin_convertvector(__builtin_convertvector(v, Ints), Bytes);
}

inline void store(Bytes v, uint8_t* p, All) { *reinterpret_cast<Bytes*>(p) = v; }
inline void store(Bytes v, uint8_t* p, Few n) {
  uint8_t some[kLanes];
  store(v, some, All{});
  memcpy(p, some, n.lanes);
}

// Where the channels of a row are read: side by side, or by their numbers.
struct Dense {
  long at;
  template <class T, class N>
  Floats operator()(const T* p, N n) const { return load(p + at, n); }
};
struct Chosen {
  const int64_t* columns;
  long width;
  template <class T>
  Floats operator()(const T* p, Few n) const {
    T some[kLanes] = {};
    for (long i = 0; i < n.lanes; ++i) some[i] = p[columns[i] < 0 ? columns[i] + width : columns[i]];
    return load(some);
  }
};

// f gives the values of a row's channels, read through a Dense or a Chosen; `extra` says how many of
// them are also written as they are, and `bias` where their numbers are.
template <class T, class F>
void round_row(const Record& r, uint8_t* grid, T* apart, F f) {
  const float inverse = float(r.limit);
  channels(r.width, [&](long i, auto n) { store(gridded(f(Dense{i}, n), inverse), grid + i, n); });
  const int64_t* columns = reinterpret_cast<const int64_t*>(r.bias);
  for (long i = 0, count = r.extra[1]; i < count; i += kLanes) {
    const Few some{count - i < kLanes ? count - i : kLanes};
    store(f(Chosen{columns + i, r.width}, some), apart + i, some);
  }
}

// The rows of in[0] (and in[1]), what `extra[0]` makes of them, to out[0], and the columns apart to
// out[1]. The sum of both goes to out[2]. `limit` is the inverse of the scale.
template <class T>
void quantize(const Call& call, const Record& r, const Share& s) {
  const Rows<T> x = rows<T>(call, r, r.in[0]), z = rows<T>(call, r, r.in[1]);
  const Rows<uint8_t> grids = rows<uint8_t>(call, r, r.out[0]);
  const Rows<T> aparts = rows<T>(call, r, r.out[1]), sums = rows<T>(call, r, r.out[2]);
  const float* weight = reinterpret_cast<const float*>(r.weight);
  const long count = count_rows(r);
  for (long row = s.begin(count); row < s.end(count); ++row) {
    const T *a = x(row), *b = z(row);
    uint8_t* grid = grids(row);
    T *apart = aparts(row), *sum = sums(row);
    if (r.extra[0] == kPlain)
      round_row(r, grid, apart, [&](auto at, auto n) { return at(a, n); });
    if (r.extra[0] == kProduct)
      round_row(r, grid, apart,
                [&](auto at, auto n) { return function(r.fn, at(a, n)) * at(b, n); });
    if (r.extra[0] == kSummed) add(r, a, b, sum), a = sum;
    if (r.extra[0] != kNormed && r.extra[0] != kSummed) continue;
    const float scale = norm_scale(a, r, 0.0f);
    round_row(r, grid, apart,
              [&](auto at, auto n) { return at(a, n) * scale * at(weight, n); });
  }
}

// Rows of a grid, as they are.
inline void copy(const Call& call, const Record& r, const Share& s) {
  const Rows<uint8_t> x = rows<uint8_t>(call, r, r.in[0]), y = rows<uint8_t>(call, r, r.out[0]);
  const long count = count_rows(r);
  for (long row = s.begin(count); row < s.end(count); ++row) memcpy(y(row), x(row), r.width);
}

// ---- the product

// sums + the products of four bytes (of a grid, in each word of x) with four of a weight.
inline Ints dot(Ints sums, Ints x, Ints w) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)x, (__m512i)w);
#elif defined(__AVX512BW__)
  const __m512i even = _mm512_set1_epi16(0xff), a = (__m512i)x, b = (__m512i)w;
  const __m512i low = _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8);
  return sums + (Ints)_mm512_madd_epi16(_mm512_and_si512(a, even), low) +
         (Ints)_mm512_madd_epi16(_mm512_srli_epi16(a, 8), _mm512_srai_epi16(b, 8));
#elif defined(__AVXVNNI__)
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)x, (__m256i)w);
#elif defined(__AVX2__)
  const __m256i even = _mm256_set1_epi16(0xff), a = (__m256i)x, b = (__m256i)w;
  const __m256i low = _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8);
  return sums + (Ints)_mm256_madd_epi16(_mm256_and_si256(a, even), low) +
         (Ints)_mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
#else
  for (int at = 0; at < 32; at += 8) sums += (x >> at & 255) * ((w << (24 - at)) >> 24);
  return sums;
#endif
}

inline Ints every_word(int32_t v) {
#ifdef __AVX512F__
  return (Ints)_mm512_set1_epi32(v);
#else
  return Ints{v, v, v, v, v, v, v, v};
#endif
}

struct Int8 {
  const int8_t* weight;
  const float *scales, *bias;  // of both grids together; null for none
  const int32_t* offsets;      // what the sums begin with: it takes the zero point out
  long inner, bytes, outs;     // bytes of a block
};

// The outputs of one block, from `out` on, of ROWS rows of x; `plus` is null or is added.
template <int ROWS>
void block(const Int8& job, long out, const uint8_t* const* x, const float* const* plus,
           float* const* y) {
  Ints sums[ROWS][kGroups];
  const int8_t* weight = job.weight + out / kBlock * job.bytes;
  unrolled<kGroups>([&](auto g) ELIDIR_INLINE {
    const Ints first = *reinterpret_cast<const Ints*>(job.offsets + out + g * kLanes);
    unrolled<ROWS>([&](auto r) ELIDIR_INLINE { sums[r][g] = first; });
  });
  auto add = [&](long at, const int32_t* words) ELIDIR_INLINE {
    const int8_t* four = weight + at * kBlock;
    unrolled<kGroups>([&](auto g) ELIDIR_INLINE {
      __builtin_prefetch(four + g * 4 * kLanes + 4096);
      const Ints w = *reinterpret_cast<const Ints*>(four + g * 4 * kLanes);
      unrolled<ROWS>([&](auto r) ELIDIR_INLINE {
        sums[r][g] = dot(sums[r][g], every_word(words[r]), w);
      });
    });
  };
  int32_t words[ROWS];
  long at = 0;
  for (; at + 4 <= job.inner; at += 4) {
    unrolled<ROWS>([&](auto r) ELIDIR_INLINE { memcpy(words + r, x[r] + at, 4); });
    add(at, words);
  }
  if (at < job.inner) {
    for (int r = 0; r < ROWS; ++r) words[r] = 0, memcpy(words + r, x[r] + at, job.inner - at);
    add(at, words);
  }
  unrolled<kGroups>([&](auto g) ELIDIR_INLINE {
    const long first = out + g * kLanes;
    if (first >= job.outs) return;
    auto write = [&](auto n) ELIDIR_INLINE {
      const Floats scale = load(job.scales + first, n);
      const Floats bias = job.bias ? load(job.bias + first, n) : Floats{};
      unrolled<ROWS>([&](auto r) ELIDIR_INLINE {
        Floats v = __builtin_convertvector(sums[r][g], Floats) * scale + bias;
        if (plus[r]) v += load(plus[r] + first, n);
        store(v, y[r] + first, n);
      });
    };
    job.outs - first < kLanes ? write(Few{job.outs - first}) : write(All{});
  });
}

// The outputs of one block of all rows: ROWS at a time, then what is left.
template <int ROWS = kRows>
void blocks(const Int8& job, long out, long rows, const uint8_t* const* x, const float* const* plus,
            float* const* y) {
  for (; rows >= ROWS; rows -= ROWS, x += ROWS, plus += ROWS, y += ROWS)
    block<ROWS>(job, out, x, plus, y);
  if constexpr (ROWS > 1) blocks<ROWS - 1>(job, out, rows, x, plus, y);
}

// in[0] rows of the grid, in[1] what is added if `fn` says so, out[0] rows of `width`; `extra` holds
// the addresses of scales and offsets, `format` the bytes of a block.
inline void linear_int8(const Call& call, const Record& r, const Share& share) {
  const Int8 job{reinterpret_cast<const int8_t*>(r.weight),
                 reinterpret_cast<const float*>(r.extra[0]),
                 reinterpret_cast<const float*>(r.bias),
                 reinterpret_cast<const int32_t*>(r.extra[1]), r.inner, r.format, r.width};
  const Rows<uint8_t> from = rows<uint8_t>(call, r, r.in[0]);
  const Rows<float> more = rows<float>(call, r, r.in[1]), to = rows<float>(call, r, r.out[0]);
  const long count = count_rows(r);
  const uint8_t* x[kMostRows];
  const float* plus[kMostRows];
  float* y[kMostRows];
  for (long i = 0; i < count; ++i)
    x[i] = from(i), plus[i] = r.fn ? more(i) : nullptr, y[i] = to(i);
  for (long out; (out = share.next() * kBlock) < job.outs;) {
    blocks(job, out, count, x, plus, y);
  }
}

}  // namespace elidir
