// y = x W^T + b for a few rows of x: each output is a dot product with one stored row of W.
//
// W [outs, inner] is read once, in the order in which it is stored, and that reading is what the
// time goes to. Sums are float32; each output adds its products in one fixed order, whatever the
// number of rows and threads, so results do not depend on them. bfloat16 pairs are taken apart by
// a shift and a mask, which needs x with its even and odd elements apart (`spread`).
//
// No OpenMP pragma and no OpenMP library: the two entry points below are found in the runtime
// that torch has loaded, so that both use one team of threads. Nothing here knows of Python.

#include <cstdint>
#include <cstdlib>
#include <cstring>

extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_thread_num();
int omp_get_num_threads();
}

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
constexpr long kStep = 2 * kLanes;  // elements of W per step: two vectors of float32
constexpr long kOuts = 4;           // rows of W that are read side by side
constexpr long kSmall = 1 << 15;    // elements of W below which one thread is enough

typedef float Floats __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes), aligned(2)));

struct Pair {
  Floats first, second;
};

struct BFloat16 {
  using Stored = uint16_t;
  static Pair load(const uint16_t* w) {
    Words both;
    memcpy(&both, w, sizeof both);
    return {(Floats)(both << 16), (Floats)(both & 0xffff0000u)};
  }
  // Even elements of a step come first, odd ones after them.
  static long place(long i) { return i / kStep * kStep + i % 2 * kLanes + i % kStep / 2; }
  static float widen(uint16_t v) {
    uint32_t bits = uint32_t(v) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
  }
  static uint16_t narrow(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    if (v != v) return 0x7fc0;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
};

template <class T>
struct Job {
  const typename T::Stored *weight, *bias;
  typename T::Stored* y;
  const float* x;  // spread and padded with zeros to `padded` a row
  long rows, inner, outs, padded;
};

inline float total(Floats v) {
  float sum[kLanes];
  memcpy(sum, &v, sizeof sum);
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  return sum[0];
}

// OUTS outputs, from `out` on, of ROWS rows, from `row` on. The loops over both are unrolled by
// command: the sums stay in registers only then.
template <class T, int OUTS, int ROWS>
void tile(const Job<T>& job, long out, long row) {
  using Stored = typename T::Stored;
  Pair sums[OUTS][ROWS] = {};
  const Stored* weight = job.weight + out * job.inner;
  const float* x = job.x + row * job.padded;
  auto add = [&](int o, Pair w, long at) {
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      Pair v;
      memcpy(&v, x + r * job.padded + at, sizeof v);
      sums[o][r].first += w.first * v.first;
      sums[o][r].second += w.second * v.second;
    }
  };
  // Ask for what the next group of outputs will read here, in bytes; far enough, not too far.
  const long group = kOuts * job.inner * sizeof(Stored);
  const long ahead = group < 4096 ? 4096 : group > 16384 ? 16384 : group;
  const long whole = job.inner / kStep * kStep;
  for (long i = 0; i < whole; i += kStep)
#pragma GCC unroll 4
    for (int o = 0; o < OUTS; ++o) {
      const Stored* w = weight + o * job.inner + i;
      __builtin_prefetch(reinterpret_cast<const char*>(w) + ahead);
      add(o, T::load(w), i);
    }
  const long left = job.inner - whole;
#pragma GCC unroll 4
  for (int o = 0; o < OUTS; ++o) {
    if (!left) continue;
    Stored rest[kStep] = {};
    memcpy(rest, weight + o * job.inner + whole, left * sizeof(Stored));
    add(o, T::load(rest), whole);
  }
#pragma GCC unroll 4
  for (int o = 0; o < OUTS; ++o)
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      float bias = job.bias ? T::widen(job.bias[out + o]) : 0.0f;
      job.y[(row + r) * job.outs + out + o] =
          T::narrow(total(sums[o][r].first + sums[o][r].second) + bias);
    }
}

template <class T, int OUTS>
void rows(const Job<T>& job, long out) {
  long row = 0;
  for (; row + 3 <= job.rows; row += 3) tile<T, OUTS, 3>(job, out, row);
  if (job.rows - row == 2) tile<T, OUTS, 2>(job, out, row);
  if (job.rows - row == 1) tile<T, OUTS, 1>(job, out, row);
}

// The share of the calling thread: a run of whole groups of kOuts outputs.
template <class T>
void share(const Job<T>& job, long thread, long threads) {
  const long groups = (job.outs + kOuts - 1) / kOuts;
  long out = groups * thread / threads * kOuts;
  long end = groups * (thread + 1) / threads * kOuts;
  if (end > job.outs) end = job.outs;
  for (; out + kOuts <= end; out += kOuts) rows<T, kOuts>(job, out);
  for (; out < end; ++out) rows<T, 1>(job, out);
}

template <class T>
void body(void* job) {
  share(*static_cast<Job<T>*>(job), omp_get_thread_num(), omp_get_num_threads());
}

template <class T>
int run(const void* weight, const void* bias, const void* x, void* y, long n, long inner,
        long outs) {
  using Stored = typename T::Stored;
  const long padded = (inner + kStep - 1) / kStep * kStep;
  float* spread = static_cast<float*>(calloc(n * padded, sizeof(float)));
  if (!spread) return 1;
  for (long r = 0; r < n; ++r)
    for (long i = 0; i < inner; ++i)
      spread[r * padded + T::place(i)] = T::widen(static_cast<const Stored*>(x)[r * inner + i]);
  Job<T> job{static_cast<const Stored*>(weight), static_cast<const Stored*>(bias),
             static_cast<Stored*>(y), spread, n, inner, outs, padded};
  if (outs * inner < kSmall)
    share(job, 0, 1);
  else
    GOMP_parallel(body<T>, &job, 0, 0);
  free(spread);
  return 0;
}

}  // namespace

extern "C" {

int elidir_linear_bf16(const void* weight, const void* bias, const void* x, void* y, long rows,
                       long inner, long outs) {
  return run<BFloat16>(weight, bias, x, y, rows, inner, outs);
}
}
