// What a tape is made of: records of ops over views of memory. The layout is that of records.py.
//
// A view has three dimensions over rows; the channels of a row lie side by side. Slot 0 is the
// arena and slot 1 the scratch, both float32; further slots are tensors of the caller, given anew
// at each call. A view whose first stride is kOuter takes its strides from the caller's tensor.

#pragma once

#include <atomic>
#include <cstdint>

#include "formats.h"

namespace elidir {

constexpr int64_t kOuter = -1;
constexpr int64_t kScratch = 1;

struct View {
  int64_t slot, offset, strides[3];
};

struct Record {
  int64_t code, type, fn;
  int64_t dims[3], width;
  View in[4], out[3];
  int64_t weight, bias, format, inner;  // addresses; bias and the weights of norms are float32
  int64_t extra[4];
  double number, limit;
};

struct Outer {
  char* data;
  int64_t strides[3], length;
};

// One call: the tape, the memory, and what the threads share.
struct Call {
  const Record* records;
  int64_t count;
  const Outer* outers;
  std::atomic<int64_t>* taken;  // pieces of work handed out, for each record
  std::atomic<int64_t>* failed;  // the first record that failed, or -1
  int64_t* clock;               // nanoseconds of each record, or null
};

// The share of one thread.
struct Share {
  int64_t thread, threads;
  std::atomic<int64_t>* taken;
  // The part [begin, end) of n pieces that is this thread's.
  int64_t begin(int64_t n) const { return n * thread / threads; }
  int64_t end(int64_t n) const { return n * (thread + 1) / threads; }
  // The next of n pieces that no thread has; n or more when there is none left.
  int64_t next() const { return taken->fetch_add(1, std::memory_order_relaxed); }
};

// A view as rows that can be counted through.
template <class T>
struct Rows {
  T* base;
  int64_t strides[3];
  const int64_t* dims;
  T* at(int64_t a, int64_t b, int64_t c) const {
    return base + a * strides[0] + b * strides[1] + c * strides[2];
  }
  T* operator()(int64_t row) const {
    return at(row / (dims[1] * dims[2]), row / dims[2] % dims[1], row % dims[2]);
  }
};

template <class T>
Rows<T> rows(const Call& call, const Record& r, const View& v) {
  const Outer& outer = call.outers[v.slot];
  const int64_t* strides = v.strides[0] == kOuter ? outer.strides : v.strides;
  T* base = reinterpret_cast<T*>(outer.data) + v.offset;
  return {base, {strides[0], strides[1], strides[2]}, r.dims};
}

inline int64_t count_rows(const Record& r) { return r.dims[0] * r.dims[1] * r.dims[2]; }

}  // namespace elidir
