// y = x W^T + b for a few rows of x: each output is a dot product with one stored row of W.
//
// W is read once, in the order in which it is stored, and that reading is what the time goes to.
// Each output adds its products in one fixed order, whatever the format, the number of rows and
// the number of threads, so results do not depend on them.

#pragma once

#include "record.h"

namespace elidir {

#ifdef __AVX512F__
constexpr int kOuts = 4;  // rows of W that are read side by side
#else
constexpr int kOuts = 2;
#endif
constexpr int kRows = 6;            // rows of x that share one reading of W
constexpr long kPiece = 1 << 14;    // values of W that a thread takes at a time

struct Product {
  const uint8_t* weight;
  const float* bias;
  long inner, outs, bytes;  // bytes of a row of W
};

// OUTS outputs, from `out` on, of ROWS rows of x.
template <class F, int OUTS, int ROWS>
void tile(const Product& job, long out, const float* const* x, float* const* y) {
  Floats sums[OUTS][ROWS] = {};
  const uint8_t* weight = job.weight + out * job.bytes;
  auto add = [&](auto o, const Step& w, const float* const* at, long i) ELIDIR_INLINE {
    unrolled<kParts>([&](auto p) ELIDIR_INLINE {
      unrolled<ROWS>([&](auto r) ELIDIR_INLINE {
        sums[o][r] = fused(w.part[p], load(at[r] + i + p * kLanes), sums[o][r]);
      });
    });
  };
  const long whole = job.inner / kStep * kStep, left = job.inner - whole;
  const long ahead = OUTS * job.bytes < 4096 ? 4096 : OUTS * job.bytes;
  for (long i = 0; i < whole; i += kStep)
    unrolled<OUTS>([&](auto o) ELIDIR_INLINE {
      const uint8_t* row = weight + o * job.bytes;
      __builtin_prefetch(row + F::bytes(i) + ahead);
      if (F::bytes(kStep) > 64) __builtin_prefetch(row + F::bytes(i) + ahead + 64);
      add(o, F::read(row, i), x, i);
    });
  if (left) {
    float some[ROWS][kStep] = {};
    const float* at[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      memcpy(some[r], x[r] + whole, left * sizeof(float));
      at[r] = some[r];
    }
    unrolled<OUTS>([&](auto o) ELIDIR_INLINE {
      add(o, F::rest(weight + o * job.bytes, whole, left), at, 0);
    });
  }
  unrolled<OUTS>([&](auto o) ELIDIR_INLINE {
    unrolled<ROWS>([&](auto r) ELIDIR_INLINE {
      y[r][out + o] = total(sums[o][r]) + (job.bias ? job.bias[out + o] : 0.0f);
    });
  });
}

// OUTS outputs of all rows: ROWS at a time, then what is left.
template <class F, int OUTS, int ROWS = kRows>
void outputs(const Product& job, long out, long rows, const float* const* x, float* const* y) {
  for (; rows >= ROWS; rows -= ROWS, x += ROWS, y += ROWS) tile<F, OUTS, ROWS>(job, out, x, y);
  if constexpr (ROWS > 1) outputs<F, OUTS, ROWS - 1>(job, out, rows, x, y);
}

constexpr long kMostRows = 64;

// in[0] x rows of `inner`, out[0] y rows of `width`; at most kMostRows rows.
template <class F>
void linear(const Call& call, const Record& r, const Share& share) {
  const Product job{reinterpret_cast<const uint8_t*>(r.weight),
                    reinterpret_cast<const float*>(r.bias), r.inner, r.width, F::bytes(r.inner)};
  const Rows<float> from = rows<float>(call, r, r.in[0]), to = rows<float>(call, r, r.out[0]);
  const float* x[kMostRows];
  float* y[kMostRows];
  const long count = count_rows(r);
  for (long i = 0; i < count; ++i) x[i] = from(i), y[i] = to(i);
  long piece = kPiece / job.inner / kOuts * kOuts;
  if (piece < kOuts) piece = kOuts;
  for (long start; (start = share.next() * piece) < job.outs;) {
    const long end = start + piece < job.outs ? start + piece : job.outs;
    long out = start;
    for (; out + kOuts <= end; out += kOuts) outputs<F, kOuts>(job, out, count, x, y);
    for (; out < end; ++out) outputs<F, 1>(job, out, count, x, y);
  }
}

template <class T>
void put(const Step& step, T* to, long left) {
  if (left >= kStep)
    unrolled<kParts>([&](auto p) ELIDIR_INLINE { store(step.part[p], to + p * kLanes); });
  for (int p = 0; left < kStep && p * kLanes < left; ++p) {
    const long lanes = left - p * kLanes;
    lanes < kLanes ? store(step.part[p], to + p * kLanes, Few{lanes})
                   : store(step.part[p], to + p * kLanes);
  }
}

// The values of `width` of each of the weight's rows, into a dense tensor of T: out[0].
template <class F, class T>
void dequantize(const Call& call, const Record& r, const Share& share) {
  const Rows<T> to = rows<T>(call, r, r.out[0]);
  const long bytes = F::bytes(r.width), count = count_rows(r);
  for (long row = share.begin(count); row < share.end(count); ++row) {
    const uint8_t* from = reinterpret_cast<const uint8_t*>(r.weight) + row * bytes;
    T* at = to(row);
    for (long i = 0; i < r.width; i += kStep) {
      const long left = r.width - i;
      const Step step = left < kStep ? F::rest(from, i, left) : F::read(from, i);
      put(step, at + i, left);
    }
  }
}

// Rows of a table by index: in[0] holds i64 indices, one a row; `inner` is the number of rows.
template <class F, class T>
bool embed(const Call& call, const Record& r, const Share& share) {
  const int64_t* ids = reinterpret_cast<const int64_t*>(call.outers[r.in[0].slot].data);
  const Rows<T> to = rows<T>(call, r, r.out[0]);
  const long bytes = F::bytes(r.width), count = count_rows(r);
  for (long row = share.begin(count); row < share.end(count); ++row) {
    if (ids[row] < 0 || ids[row] >= r.inner) return false;
    const uint8_t* from = reinterpret_cast<const uint8_t*>(r.weight) + ids[row] * bytes;
    T* at = to(row);
    for (long i = 0; i < r.width; i += kStep) {
      const long left = r.width - i;
      const Step step = left < kStep ? F::rest(from, i, left) : F::read(from, i);
      put(step, at + i, left);
    }
  }
  return true;
}

}  // namespace elidir
