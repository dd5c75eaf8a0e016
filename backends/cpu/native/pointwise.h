// Ops on single rows: functions of each channel, norms, rotary embedding, rows chosen or moved.
//
// Rows are read and written as T, float32 or bfloat16; what lies between is float32.

#pragma once

#include "record.h"

namespace elidir {

// Numbers of the functions, as in records.py.
enum Function : int64_t {
  kAdd, kSub, kMul, kDiv,
  kRelu, kRelu2, kSilu, kSigmoid, kTanh, kGelu, kGeluTanh, kQuickGelu, kNeg, kExp,
};

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

inline Floats tangent(Floats x) {
  // From e^-2|x|; near zero, where that loses digits, from the series' quotient.
  Floats size = x < 0 ? -x : x;
  Floats e = exponential(size * -2.0f);
  Floats far = (1.0f - e) / (1.0f + e);
  Floats s = x * x;
  Floats near = size * (1.0f + s * (1.0f / 9.0f + s * (1.0f / 945.0f))) /
                (1.0f + s * (4.0f / 9.0f + s * (1.0f / 63.0f)));
  Floats out = size < 0.5f ? near : far;
  return x < 0 ? -out : (x == x ? out : x);
}

inline Floats gelu(Floats x) {
  float some[kLanes];
  memcpy(some, &x, sizeof some);
  for (float& v : some) v = 0.5f * v * (1.0f + erff(v * 0.70710678f));
  return load(some);
}

inline Floats function(int64_t fn, Floats x) {
  switch (fn) {
    case kRelu: return x < 0 ? Floats{} : x;
    case kRelu2: { Floats y = x < 0 ? Floats{} : x; return y * y; }
    case kSilu: return x / (1.0f + exponential(-x));
    case kSigmoid: return sigmoid(x);
    case kTanh: return tangent(x);
    case kGelu: return gelu(x);
    case kGeluTanh:
      return 0.5f * x * (1.0f + tangent(0.79788456f * (x + 0.044715f * (x * x * x))));
    case kQuickGelu: return x * sigmoid(1.702f * x);
    case kNeg: return -x;
    default: return exponential(x);
  }
}

inline Floats arithmetic(int64_t fn, Floats a, Floats b) {
  switch (fn) {
    case kAdd: return a + b;
    case kSub: return a - b;
    case kMul: return a * b;
    default: return a / b;
  }
}

template <class T>
void unary(const Call& call, const Record& r, const Share& s) {
  const Rows<T> x = rows<T>(call, r, r.in[0]), y = rows<T>(call, r, r.out[0]);
  const long count = count_rows(r);
  for (long row = s.begin(count); row < s.end(count); ++row) {
    const T* a = x(row);
    T* to = y(row);
    channels(r.width, [&](long i, auto n) { store(function(r.fn, load(a + i, n)), to + i, n); });
  }
}

// a fn b, or a fn number where `extra[0]` is 1, or number fn a where it is 2.
template <class T>
void binary(const Call& call, const Record& r, const Share& s) {
  const Rows<T> x = rows<T>(call, r, r.in[0]), z = rows<T>(call, r, r.in[1]);
  const Rows<T> y = rows<T>(call, r, r.out[0]);
  const long count = count_rows(r);
  const Floats number = every(float(r.number));
  for (long row = s.begin(count); row < s.end(count); ++row) {
    const T *a = x(row), *b = z(row);
    T* to = y(row);
    channels(r.width, [&](long i, auto n) {
      Floats left = load(a + i, n), right = r.extra[0] ? number : load(b + i, n);
      Floats out = r.extra[0] == 2 ? arithmetic(r.fn, right, left) : arithmetic(r.fn, left, right);
      store(out, to + i, n);
    });
  }
}

// fn(gate) * up.
template <class T>
void gated(const Call& call, const Record& r, const Share& s) {
  const Rows<T> x = rows<T>(call, r, r.in[0]), z = rows<T>(call, r, r.in[1]);
  const Rows<T> y = rows<T>(call, r, r.out[0]);
  const long count = count_rows(r);
  for (long row = s.begin(count); row < s.end(count); ++row) {
    const T *gate = x(row), *up = z(row);
    T* to = y(row);
    channels(r.width, [&](long i, auto n) {
      store(function(r.fn, load(gate + i, n)) * load(up + i, n), to + i, n);
    });
  }
}

// What a row is multiplied with: one over the root of its mean square, or, less `mean`, its variance.
template <class T>
float norm_scale(const T* x, const Record& r, float mean) {
  Floats squares = {};
  channels(r.width, [&](long i, auto n) {
    const Floats v = only(load(x + i, n) - mean, n);
    squares = fused(v, v, squares);
  });
  return 1.0f / sqrtf(total(squares) / float(r.width) + float(r.number));
}

// The norm of a row by its mean square, or, centred, by its variance.
template <class T>
void norm(const T* x, T* y, const Record& r, bool centred) {
  const float *weight = reinterpret_cast<const float*>(r.weight),
              *bias = reinterpret_cast<const float*>(r.bias);
  Floats sum = {};
  float mean = 0;
  if (centred) {
    channels(r.width, [&](long i, auto n) { sum += load(x + i, n); });
    mean = total(sum) / float(r.width);
  }
  const float scale = norm_scale(x, r, mean);
  channels(r.width, [&](long i, auto n) {
    Floats v = (load(x + i, n) - mean) * scale;
    if (weight) v = v * load(weight + i, n);
    if (bias) v = v + load(bias + i, n);
    store(v, y + i, n);
  });
}

template <class T>
void add(const Record& r, const T* a, const T* b, T* sum) {
  channels(r.width, [&](long i, auto n) { store(load(a + i, n) + load(b + i, n), sum + i, n); });
}

template <class T>
void norms(const Call& call, const Record& r, const Share& s) {
  const Rows<T> x = rows<T>(call, r, r.in[0]), y = rows<T>(call, r, r.out[0]);
  const long count = count_rows(r);
  for (long row = s.begin(count); row < s.end(count); ++row) norm(x(row), y(row), r, r.fn != 0);
}

// out[0] = a + b, out[1] = its norm.
template <class T>
void add_norm(const Call& call, const Record& r, const Share& s) {
  const Rows<T> x = rows<T>(call, r, r.in[0]), z = rows<T>(call, r, r.in[1]);
  const Rows<T> sums = rows<T>(call, r, r.out[0]), y = rows<T>(call, r, r.out[1]);
  const long count = count_rows(r);
  for (long row = s.begin(count); row < s.end(count); ++row) {
    T* sum = sums(row);
    add(r, x(row), z(row), sum);
    norm(sum, y(row), r, false);
  }
}

// x [B, H, N, width], cos and sin [1, B, N, inner]; fn 0 turns halves, 1 neighbours.
template <class T>
void rope(const Call& call, const Record& r, const Share& s) {
  const Rows<T> x = rows<T>(call, r, r.in[0]), y = rows<T>(call, r, r.out[0]);
  const Rows<T> cosines = rows<T>(call, r, r.in[1]), sines = rows<T>(call, r, r.in[2]);
  const long count = count_rows(r), half = r.inner;
  const long step = r.fn ? 2 : 1, other = r.fn ? 1 : half;
  for (long row = s.begin(count); row < s.end(count); ++row) {
    const long batch = row / (r.dims[1] * r.dims[2]), token = row % r.dims[2];
    const T *from = x(row), *cos = cosines.at(0, batch, token), *sin = sines.at(0, batch, token);
    T* to = y(row);
    auto turn = [&](long i, auto n) {
      Floats a = load(from + i, n), b = load(from + i + half, n);
      Floats c = load(cos + i, n), d = load(sin + i, n);
      store(a * c - b * d, to + i, n);
      store(b * c + a * d, to + i + half, n);
    };
    if (r.fn == 0) channels(half, turn);
    for (long i = 0; r.fn && i < half; ++i) {
      const float a = widen(from[i * step]), b = widen(from[i * step + other]);
      const float c = widen(cos[i]), d = widen(sin[i]);
      narrow(a * c - b * d, to + i * step);
      narrow(b * c + a * d, to + i * step + other);
    }
    for (long i = 2 * half; i < r.width; ++i) to[i] = from[i];
  }
}

// in[0] holds i64 positions, one a row; out: cos and sin of their angles, `width` frequencies.
inline void rope_table(const Call& call, const Record& r, const Share& s) {
  const int64_t* at = reinterpret_cast<const int64_t*>(call.outers[r.in[0].slot].data);
  const Rows<float> cosines = rows<float>(call, r, r.out[0]), sines = rows<float>(call, r, r.out[1]);
  const float* freqs = reinterpret_cast<const float*>(r.weight);
  const long count = count_rows(r);
  for (long row = s.begin(count); row < s.end(count); ++row)
    for (long i = 0; i < r.width; ++i) {
      const float angle = float(at[row]) * freqs[i];
      cosines(row)[i] = cosf(angle) * float(r.number);
      sines(row)[i] = sinf(angle) * float(r.number);
    }
}

// out[b, r] = x[b, in[1][b, r]]: dims are [1, B, R], `inner` the tokens of x.
inline bool take(const Call& call, const Record& r, const Share& s) {
  const int64_t* chosen = reinterpret_cast<const int64_t*>(call.outers[r.in[1].slot].data);
  const Rows<float> x = rows<float>(call, r, r.in[0]), y = rows<float>(call, r, r.out[0]);
  const long count = count_rows(r);
  for (long row = s.begin(count); row < s.end(count); ++row) {
    const int64_t at = chosen[row] < 0 ? chosen[row] + r.inner : chosen[row];
    if (at < 0 || at >= r.inner) return false;
    memcpy(y(row), x.at(0, row / r.dims[2], at), r.width * sizeof(float));
  }
  return true;
}

// Rows of one type as rows of another.
template <class From, class To>
void convert(const Call& call, const Record& r, const Share& s) {
  const Rows<From> x = rows<From>(call, r, r.in[0]);
  const Rows<To> y = rows<To>(call, r, r.out[0]);
  const long count = count_rows(r);
  for (long row = s.begin(count); row < s.end(count); ++row) {
    const From* from = x(row);
    To* to = y(row);
    channels(r.width, [&](long i, auto n) { store(load(from + i, n), to + i, n); });
  }
}

}  // namespace elidir
