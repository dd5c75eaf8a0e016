// From rows of floats to rows of bytes: q = clamp(round(y / scale) + 128, 0, 255), where y is the
// row itself, its root-mean-square norm, the norm of a sum, or act(gate) * up.
//
// y is made in float32, in room of one row that stays in the first-level cache, and is rounded
// once. The channels that are kept apart are copied out of it. Rows are shared among the threads
// of the runtime that torch has loaded, as in gemv.cpp. Nothing here knows of Python.

#include <cstdint>
#include <cstdlib>
#include <cstring>

extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_thread_num();
int omp_get_num_threads();
}

namespace {

constexpr long kLanes = 16;
constexpr long kSmall = 1 << 14;  // elements below which one thread is enough

typedef float Floats __attribute__((vector_size(64), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(64), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(32), aligned(2)));
typedef uint8_t Bytes __attribute__((vector_size(16), aligned(1)));

struct Float32 {
  using Stored = float;
  static Floats load(const float* p) {
    Floats v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(float* p, Floats v) { memcpy(p, &v, sizeof v); }
};

struct BFloat16 {
  using Stored = uint16_t;
  static Floats load(const uint16_t* p) {
    Halves h;
    memcpy(&h, p, sizeof h);
    return (Floats)(__builtin_convertvector(h, Words) << 16);
  }
  static void store(uint16_t* p, Floats v) {
    Words bits = (Words)v;
    Words even = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    Words wrong = (Words)(v != v);
    Halves h = __builtin_convertvector((even & ~wrong) | (wrong & 0x7fc0), Halves);
    memcpy(p, &h, sizeof h);
  }
};

inline Floats all(float v) { return Floats{} + v; }

inline Floats least(Floats a, Floats b) { return a < b ? a : b; }
inline Floats greatest(Floats a, Floats b) { return a > b ? a : b; }

inline float total(Floats v) {
  float sum[kLanes], out = 0;
  memcpy(sum, &v, sizeof sum);
  for (long i = 0; i < kLanes; ++i) out += sum[i];
  return out;
}

// Rounds to the nearest, even on ties, for |v| < 2^22.
inline Floats rounded(Floats v) {
  const Floats magic = all(12582912.0f);
  return (v + magic) - magic;
}

// 2^n e^r with |r| <= ln 2 / 2: a polynomial, within 2e-7 of the value.
inline Floats exponential(Floats x) {
  x = least(greatest(x, all(-87.0f)), all(88.0f));
  Floats n = rounded(x * 1.44269504f);
  Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = all(1.9875691e-4f);
  p = p * r + 1.3981999e-3f;
  p = p * r + 8.3334519e-3f;
  p = p * r + 4.1665795e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 5.0000001e-1f;
  p = p * r * r + r + 1.0f;
  return p * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

enum Act { kSilu, kGeluTanh, kRelu };

template <int ACT>
inline Floats activated(Floats x) {
  if (ACT == kRelu) return x < 0.0f ? all(0.0f) : x;  // NaN stays NaN
  if (ACT == kSilu) return x * sigmoid(x);
  return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
}

enum Kind { kPlain, kNorm, kAddNorm, kGated };

struct Job {
  const void *a, *b;
  const float* weight;
  void* sum;
  uint8_t* grid;
  void* apart;
  const int64_t* columns;
  long count, rows, width, stride_a, stride_b;
  float inverse, eps;
  int kind, act;
  int failed;
};

// The vector at i of a row of `width`; lanes beyond the end are zeros.
template <class T>
inline Floats part(const typename T::Stored* row, long i, long width) {
  if (i + kLanes <= width) return T::load(row + i);
  typename T::Stored rest[kLanes] = {};
  memcpy(rest, row + i, (width - i) * sizeof *row);
  return T::load(rest);
}

template <class T>
inline void put(typename T::Stored* row, long i, long width, Floats v) {
  if (i + kLanes <= width) return T::store(row + i, v);
  typename T::Stored rest[kLanes];
  T::store(rest, v);
  memcpy(row + i, rest, (width - i) * sizeof *row);
}

template <class T, int ACT>
void gate(const Job& job, const typename T::Stored* g, const typename T::Stored* u, float* y) {
  for (long i = 0; i < job.width; i += kLanes)
    Float32::store(y + i, activated<ACT>(part<T>(g, i, job.width)) * part<T>(u, i, job.width));
}

// y = x, or the sum that is stored too; returns its sum of squares.
template <class T>
float add(const Job& job, const typename T::Stored* a, const typename T::Stored* b,
          typename T::Stored* sum, float* y) {
  Floats squares = {};
  for (long i = 0; i < job.width; i += kLanes) {
    Floats v = part<T>(a, i, job.width);
    if (b) {
      v += part<T>(b, i, job.width);
      put<T>(sum, i, job.width, v);
      v = part<T>(sum, i, job.width);  // as the next reader will see it
    }
    squares += v * v;
    Float32::store(y + i, v);
  }
  return total(squares);
}

void scale(const Job& job, float squares, float* y) {
  const float factor = 1.0f / __builtin_sqrtf(squares / float(job.width) + job.eps);
  for (long i = 0; i < job.width; i += kLanes)
    Float32::store(y + i, Float32::load(y + i) * factor * part<Float32>(job.weight, i, job.width));
}

void bytes(const Job& job, const float* y, uint8_t* grid) {
  for (long i = 0; i < job.width; i += kLanes) {
    Floats v = Float32::load(y + i) * job.inverse;
    v = v == v ? v : all(0.0f);
    v = rounded(least(greatest(v, all(-128.0f)), all(127.0f))) + 128.0f;
    Bytes out = __builtin_convertvector(__builtin_convertvector(v, Ints), Bytes);
    memcpy(grid + i, &out, job.width - i < kLanes ? job.width - i : kLanes);
  }
}

template <class T>
void row(const Job& job, long r, float* y) {
  using Stored = typename T::Stored;
  const Stored* a = static_cast<const Stored*>(job.a) + r * job.stride_a;
  const Stored* b = job.b ? static_cast<const Stored*>(job.b) + r * job.stride_b : nullptr;
  if (job.kind == kGated) {
    if (job.act == kSilu) gate<T, kSilu>(job, a, b, y);
    if (job.act == kGeluTanh) gate<T, kGeluTanh>(job, a, b, y);
    if (job.act == kRelu) gate<T, kRelu>(job, a, b, y);
  } else {
    Stored* sum = job.sum ? static_cast<Stored*>(job.sum) + r * job.width : nullptr;
    const float squares = add<T>(job, a, b, sum, y);
    if (job.kind != kPlain) scale(job, squares, y);
  }
  bytes(job, y, job.grid + r * job.width);
  Stored* apart = static_cast<Stored*>(job.apart) + r * job.count;
  for (long i = 0; i < job.count; i += kLanes) {
    float some[kLanes] = {};
    for (long k = 0; k < kLanes && i + k < job.count; ++k) {
      const int64_t c = job.columns[i + k];
      some[k] = y[c < 0 ? c + job.width : c];
    }
    put<T>(apart, i, job.count, Float32::load(some));
  }
}

template <class T>
void share(Job& job, long thread, long threads) {
  const long padded = (job.width + kLanes - 1) / kLanes * kLanes;
  float* y = static_cast<float*>(malloc(padded * sizeof(float)));
  if (!y) {
    job.failed = 1;
    return;
  }
  const long end = job.rows * (thread + 1) / threads;
  for (long r = job.rows * thread / threads; r < end; ++r) row<T>(job, r, y);
  free(y);
}

template <class T>
void body(void* job) {
  share<T>(*static_cast<Job*>(job), omp_get_thread_num(), omp_get_num_threads());
}

template <class T>
void run(Job& job) {
  if (job.rows * job.width < kSmall)
    share<T>(job, 0, 1);
  else
    GOMP_parallel(body<T>, &job, 0, 0);
}

}  // namespace

extern "C" {

int elidir_quantize(int is_bf16, int kind, int act, const void* a, const void* b,
                     const float* weight, void* sum, uint8_t* grid, void* apart,
                     const int64_t* columns, long count, long rows, long width, long stride_a,
                     long stride_b, float inverse, float eps) {
  Job job{a,     b,    weight,  sum,   grid,     apart,    columns, count,
          rows,  width, stride_a, stride_b, inverse, eps, kind, act, 0};
  is_bf16 ? run<BFloat16>(job) : run<Float32>(job);
  return job.failed;
}
}
