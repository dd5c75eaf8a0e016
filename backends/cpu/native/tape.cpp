// Runs a tape: records one after another, on all threads, in a single parallel region.
//
// Between two records the threads wait for each other by spinning, which takes a fraction of the
// time that waking them would. No OpenMP pragma and no OpenMP library: the entry points below are
// found in the runtime that torch has loaded, so that both use one team. Nothing knows of Python.

#include <ctime>
#include <memory>
#include <new>

#include <sched.h>

#include "attend.h"
#include "gemv.h"
#include "int8.h"
#include "noise.h"
#include "pointwise.h"

extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_thread_num();
int omp_get_num_threads();
}

namespace elidir {
namespace {

// Numbers of the ops, as in records.py.
enum Code : int64_t {
  kLinear, kNorm, kAddNorm, kUnary, kBinary, kGated, kRope, kRopeTable, kEmbed, kTake,
  kAppend, kAttend, kMerge, kLoad, kStore, kDequantize,
  kQuantize, kLinearInt8, kCopy, kGain, kNoise, kPerturb,
};

// Calls f with a number of the type that rows are stored as.
template <class F>
void with_type(int64_t type, F f) {
  type == kBF16 ? f(BFloat16{}) : f(float{});
}

template <class T>
bool run_rows(const Call& call, const Record& r, const Share& s) {
  switch (r.code) {
    case kNorm: return norms<T>(call, r, s), true;
    case kAddNorm: return add_norm<T>(call, r, s), true;
    case kUnary: return unary<T>(call, r, s), true;
    case kBinary: return binary<T>(call, r, s), true;
    case kGated: return gated<T>(call, r, s), true;
    case kRope: return rope<T>(call, r, s), true;
    case kAppend: return append<T>(call, r, s), true;
    case kAttend: return attend<T>(call, r, s), true;
    case kGain: return gain<T>(call, r, s);
    case kNoise: return noise<T>(call, r, s), true;
    case kMerge: return merge<T>(call, r, s), true;
    case kQuantize: return quantize<T>(call, r, s), true;
    case kLoad: return convert<T, float>(call, r, s), true;
    default: return convert<float, T>(call, r, s), true;
  }
}

bool run(const Call& call, const Record& r, const Share& s) {
  bool done = true;
  switch (r.code) {
    case kLinear:
      with_format(r.format, [&](auto f) { linear<decltype(f)>(call, r, s); });
      return true;
    case kLinearInt8: return linear_int8(call, r, s), true;
    case kCopy: return copy(call, r, s), true;
    case kPerturb: return perturb(call, r, s), true;
    case kRopeTable: return rope_table(call, r, s), true;
    case kTake: return take(call, r, s);
    case kEmbed:
      with_format(r.format, [&](auto f) {
        with_type(r.type, [&](auto t) { done = embed<decltype(f), decltype(t)>(call, r, s); });
      });
      return done;
    case kDequantize:
      with_format(r.format, [&](auto f) {
        with_type(r.type, [&](auto t) { dequantize<decltype(f), decltype(t)>(call, r, s); });
      });
      return true;
    default:
      with_type(r.type, [&](auto t) { done = run_rows<decltype(t)>(call, r, s); });
      return done;
  }
}

// Where threads wait for each other. Whoever waits long lets others have the processor.
class Barrier {
 public:
  void wait(int threads) {
    if (threads == 1) return;
    const int phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins)
      spins < kSpins ? _mm_pause() : void(sched_yield());
  }

 private:
  static constexpr int kSpins = 2000;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
};

struct Job {
  const Call& call;
  Barrier barrier;
};

int64_t now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000L + time.tv_nsec;
}

void body(void* data) {
  Job& job = *static_cast<Job*>(data);
  const Call& call = job.call;
  const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
  int64_t before = call.clock && thread == 0 ? now() : 0;
  for (int64_t i = 0; i < call.count; ++i) {
    if (!run(call, call.records[i], {thread, threads, call.taken + i})) call.failed->store(i);
    job.barrier.wait(threads);
    // A thread may be past the next record, and have failed there, while another is still here: all
    // leave behind the record that failed, or one would wait for the others for ever.
    const int64_t failed = call.failed->load(std::memory_order_relaxed);
    if (failed >= 0 && failed <= i) return;
    if (!call.clock || thread != 0) continue;
    const int64_t after = now();
    call.clock[i] = after - before;
    before = after;
  }
}

}  // namespace
}  // namespace elidir

extern "C" {

// Returns -1, or the number of the record that failed (an index out of range), or -2 for want of
// memory. `clock` is null, or takes the nanoseconds of each record.
int64_t elidir_run(const void* records, int64_t count, const void* outers, int64_t threads,
                   int64_t* clock) {
  using namespace elidir;
  std::unique_ptr<std::atomic<int64_t>[]> taken(new (std::nothrow) std::atomic<int64_t>[count]());
  if (!taken) return -2;
  std::atomic<int64_t> failed{-1};
  Call call{static_cast<const Record*>(records), count, static_cast<const Outer*>(outers),
            taken.get(), &failed, clock};
  Job job{call, {}};
  GOMP_parallel(body, &job, unsigned(threads), 0);
  return failed.load();
}

int64_t elidir_record_bytes() { return sizeof(elidir::Record); }
}
