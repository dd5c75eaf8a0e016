// Attention of a few queries over many keys, and the keys' way into the cache.
//
// Keys are taken in runs of kKeys, always the same ones, so that threads can share one head's keys
// and the result still does not depend on how many threads there are: `attend` leaves for each run
// the highest score, the sum of exponentials and their mix of values; `merge` puts runs together,
// and `gain` adds up what each key got.

#pragma once

#include "pointwise.h"

namespace elidir {

constexpr long kKeys = 256;  // keys of a run; records.py sizes the scratch by it
constexpr int kQueries = 6;  // queries that share one reading of keys and values
constexpr long kWidest = 512;  // the most channels of a head

// The new tokens [B, G, N, width] of in[0] behind those in the cache, whose view is out[0].
template <class T>
void append(const Call& call, const Record& r, const Share& s) {
  const Rows<float> x = rows<float>(call, r, r.in[0]);
  const Rows<T> cache = rows<T>(call, r, r.out[0]);
  const long count = count_rows(r), past = call.outers[r.out[0].slot].length - r.dims[2];
  for (long row = s.begin(count); row < s.end(count); ++row) {
    const float* from = x(row);
    T* to = cache(row) + past * cache.strides[2];
    channels(r.width, [&](long i, auto n) { store(load(from + i, n), to + i, n); });
  }
}

// What attention reads: in[0] queries [B, H, N, width], in[1] keys, in[2] values; in[3] a bias
// [B, H, N, S] if fn has 1 in it. extra: key heads, channels of values (none if only weights are
// asked for), keys if no cache says so, slot of the mask or -1. The scratch of a query and a run is
// maximum, sum, mix, and if fn has 2 in it the keys' weights, or with 4 as well their scores.
template <class T>
struct Attention {
  const Record& r;
  Rows<float> q, bias;
  Rows<T> k, v;
  const Outer* mask;
  float* scratch;
  long keys, runs, group, mixed, step;

  Attention(const Call& call, const Record& record)
      : r(record), q(rows<float>(call, r, r.in[0])), bias(rows<float>(call, r, r.in[3])),
        k(rows<T>(call, r, r.in[1])), v(rows<T>(call, r, r.in[2])) {
    mask = r.extra[3] < 0 || !call.outers[r.extra[3]].data ? nullptr : &call.outers[r.extra[3]];
    scratch = reinterpret_cast<float*>(call.outers[kScratch].data);
    keys = r.extra[2] < 0 ? call.outers[r.in[1].slot].length : r.extra[2];
    runs = (keys + kKeys - 1) / kKeys;
    group = r.dims[1] / r.extra[0];
    mixed = r.extra[1];
    step = 2 + mixed + (keeps() ? kKeys : 0);
  }
  bool keeps() const { return r.fn & 2; }
  bool keeps_scores() const { return r.fn & 4; }
  float* partial(long batch, long head, long token, long run) const {
    const long row = (batch * r.dims[1] + head) * r.dims[2] + token;
    return scratch + (row * runs + run) * step;
  }
  bool sees(long batch, long token, long key) const {
    const int64_t* s = mask->strides;
    return mask->data[batch * s[0] + token * s[1] + key * s[2]];
  }
};

// Scores of COUNT queries with the keys of a run: the products alone.
template <int COUNT, class T>
void score(const T* keys, long stride, long count, long width, const float* const* q,
           float (*scores)[kKeys]) {
  for (long t = 0; t < count; ++t, keys += stride) {
    Floats sums[COUNT] = {};
    channels(width, [&](long i, auto n) ELIDIR_INLINE {
      const Floats key = load(keys + i, n);
      unrolled<COUNT>([&](auto j) ELIDIR_INLINE {
        sums[j] = fused(key, load(q[j] + i), sums[j]);
      });
    });
    unrolled<COUNT>([&](auto j) ELIDIR_INLINE { scores[j][t] = total(sums[j]); });
  }
}

// Values of a run mixed by the weights of COUNT queries; VECTORS vectors of channels, the last of
// which may be cut short.
template <int COUNT, int VECTORS, class T, class N>
void mix(const T* values, long stride, long count, N last, const float (*weights)[kKeys],
         float* const* out) {
  Floats sums[COUNT][VECTORS] = {};
  for (long t = 0; t < count; ++t, values += stride)
    unrolled<VECTORS>([&](auto i) ELIDIR_INLINE {
      Floats value;
      if constexpr (i + 1 < VECTORS) value = load(values + i * kLanes);
      else value = load(values + i * kLanes, last);
      unrolled<COUNT>([&](auto j) ELIDIR_INLINE {
        sums[j][i] = fused(value, every(weights[j][t]), sums[j][i]);
      });
    });
  unrolled<COUNT>([&](auto j) ELIDIR_INLINE {
    unrolled<VECTORS - 1>([&](auto i) ELIDIR_INLINE { store(sums[j][i], out[j] + i * kLanes); });
    store(sums[j][VECTORS - 1], out[j] + (VECTORS - 1) * kLanes, last);
  });
}

// Exponentials of a query's scores, of which the highest is given; leaves that and their sum.
inline void spread(float* scores, long count, float highest, float* partial) {
  Floats sum = {};
  const float base = highest == -INFINITY ? 0.0f : highest;
  channels(count, [&](long t, auto n) {
    Floats e = exponential(load(scores + t, n) - base);
    store(e, scores + t, n);
    sum += load(scores + t, n);  // read again: lanes beyond the run are zeros
  });
  partial[0] = highest;
  partial[1] = total(sum);
}

// What a query's products come to, in their place and in `partial`.
template <class T>
void weigh(const Attention<T>& a, long batch, long head, long token, long start, long count,
           float* scores, float* partial) {
  const Record& r = a.r;
  const float* bias = r.fn & 1 ? a.bias.at(batch, head, token) + start : nullptr;
  float highest = -INFINITY;
  for (long t = 0; t < count; ++t) {
    float v = scores[t] * float(r.number);
    if (r.limit > 0) v = float(r.limit) * tanhf(v / float(r.limit));
    if (bias) v += bias[t];
    if (a.mask && !a.sees(batch, token, start + t)) v = -INFINITY;
    scores[t] = v;
    highest = v > highest ? v : highest;
  }
  float* kept = partial + 2 + a.mixed;
  if (a.keeps_scores()) memcpy(kept, scores, count * sizeof(float));
  spread(scores, count, highest, partial);
  if (a.keeps() && !a.keeps_scores()) memcpy(kept, scores, count * sizeof(float));
}

// COUNT queries of one key head, the first of them `first`, over one run of keys.
template <int COUNT, class T>
void attend_some(const Attention<T>& a, long batch, long g, long run, long first) {
  const Record& r = a.r;
  const long start = run * kKeys, count = a.keys - start < kKeys ? a.keys - start : kKeys;
  float padded[COUNT][kWidest], scores[COUNT][kKeys];
  const float* q[COUNT];
  float* mixed[COUNT];
  for (int j = 0; j < COUNT; ++j) {
    const long head = g * a.group + (first + j) / r.dims[2], token = (first + j) % r.dims[2];
    q[j] = a.q.at(batch, head, token);
    if (r.width % kLanes) {  // keys are read with zeros behind them, and so must queries be
      memset(padded[j], 0, sizeof padded[j]);
      memcpy(padded[j], q[j], r.width * sizeof(float));
      q[j] = padded[j];
    }
    mixed[j] = a.partial(batch, head, token, run) + 2;
  }
  score<COUNT>(a.k.at(batch, g, start), a.k.strides[2], count, r.width, q, scores);
  for (int j = 0; j < COUNT; ++j) {
    const long head = g * a.group + (first + j) / r.dims[2], token = (first + j) % r.dims[2];
    weigh(a, batch, head, token, start, count, scores[j], mixed[j] - 2);
  }
  const T* values = a.v.at(batch, g, start);
  const long stride = a.v.strides[2];
  float* out[COUNT];
  for (long i = 0; i < a.mixed;) {
    for (int j = 0; j < COUNT; ++j) out[j] = mixed[j] + i;
    const long left = a.mixed - i;
    if (left >= 4 * kLanes) {
      mix<COUNT, 4>(values + i, stride, count, All{}, scores, out);
      i += 4 * kLanes;
    } else if (left >= kLanes) {
      mix<COUNT, 1>(values + i, stride, count, All{}, scores, out);
      i += kLanes;
    } else {
      mix<COUNT, 1>(values + i, stride, count, Few{left}, scores, out);
      i += left;
    }
  }
}

// All queries of one key head from `first` on: COUNT at a time, then what is left.
template <int COUNT = kQueries, class T>
void attend_all(const Attention<T>& a, long batch, long g, long run, long first, long queries) {
  for (; first + COUNT <= queries; first += COUNT) attend_some<COUNT>(a, batch, g, run, first);
  if constexpr (COUNT > 1) attend_all<COUNT - 1>(a, batch, g, run, first, queries);
}

template <class T>
void attend(const Call& call, const Record& r, const Share& share) {
  const Attention<T> a(call, r);
  const long groups = r.extra[0], queries = a.group * r.dims[2];
  const long items = r.dims[0] * groups * a.runs;
  for (long item; (item = share.next()) < items;) {
    const long batch = item / (groups * a.runs), g = item / a.runs % groups, run = item % a.runs;
    attend_all(a, batch, g, run, 0, queries);
  }
}

// The highest score of a query over all runs and the sum of exponentials, sinks (one logit for each
// head, or none) among them; -INFINITY if it sees no key.
struct Whole {
  float highest, sum;
};

template <class T>
Whole whole(const Attention<T>& a, long head, const float* part) {
  const float* sinks = reinterpret_cast<const float*>(a.r.weight);
  Whole w{-INFINITY, 0};
  for (long run = 0; run < a.runs; ++run)
    if (part[run * a.step] > w.highest) w.highest = part[run * a.step];
  if (w.highest == -INFINITY) return w;
  if (sinks && sinks[head] > w.highest) w.highest = sinks[head];
  if (sinks) w.sum = expf(sinks[head] - w.highest);
  for (long run = 0; run < a.runs; ++run)
    w.sum += part[run * a.step + 1] * expf(part[run * a.step] - w.highest);
  return w;
}

// out[0] is [1, B, N, H * mixed]; `weight` the sinks, or null.
template <class T>
void merge(const Call& call, const Record& r, const Share& s) {
  const Attention<T> a(call, r);
  const Rows<float> y = rows<float>(call, r, r.out[0]);
  const long count = count_rows(r);
  for (long row = s.begin(count); row < s.end(count); ++row) {
    const long batch = row / (r.dims[1] * r.dims[2]), head = row / r.dims[2] % r.dims[1];
    const long token = row % r.dims[2];
    float* to = y.at(0, batch, token) + head * a.mixed;
    const float* part = a.partial(batch, head, token, 0);
    const Whole w = whole(a, head, part);
    memset(to, 0, a.mixed * sizeof(float));
    if (w.highest == -INFINITY) continue;  // it may see no key
    for (long run = 0; run < a.runs; ++run) {
      const float* from = part + run * a.step;
      const float share = expf(from[0] - w.highest);
      channels(a.mixed, [&](long i, auto n) {
        store(fused(load(from + 2 + i, n), every(share), load(to + i, n)), to + i, n);
      });
    }
    channels(a.mixed, [&](long i, auto n) { store(load(to + i, n) / w.sum, to + i, n); });
  }
}

// What each key gets of queries' attention, one row after another in the slot of out[0]: the mean
// over the heads of its group, rows [B, G, S], or with 8 in fn over all heads, rows [B, S]. Of the
// `inner` queries that in[2] names as i64, or of all if that is negative. It reads the weights that
// `attend` or `noise` has left.
template <class T>
bool gain(const Call& call, const Record& r, const Share& share) {
  const Attention<T> a(call, r);
  const long heads = r.fn & 8 ? r.dims[1] : a.group, parts = r.dims[1] / heads;
  const int64_t* named = reinterpret_cast<const int64_t*>(call.outers[r.in[2].slot].data);
  const bool all = r.inner < 0;
  const long queries = all ? r.dims[2] : r.inner, items = r.dims[0] * parts * a.runs;
  float* rows = reinterpret_cast<float*>(call.outers[r.out[0].slot].data);
  for (long item; (item = share.next()) < items;) {
    const long batch = item / (parts * a.runs), part = item / a.runs % parts, run = item % a.runs;
    const long start = run * kKeys, count = a.keys - start < kKeys ? a.keys - start : kKeys;
    float* out = rows + (batch * parts + part) * a.keys + start;
    memset(out, 0, count * sizeof(float));
    for (long i = 0; i < heads * queries; ++i) {
      const long query = all ? i % queries : named[batch * queries + i % queries];
      if (query < 0 || query >= r.dims[2]) return false;
      const long head = part * heads + i / queries;
      const float* first = a.partial(batch, head, query, 0);
      const float* own = first + run * a.step;
      if (own[0] == -INFINITY) continue;
      const Whole w = whole(a, head, first);
      const float part_of = expf(own[0] - w.highest) / (w.sum * heads);
      const float* weights = own + 2 + a.mixed;
      channels(count, [&](long t, auto n) {
        store(fused(load(weights + t, n), every(part_of), load(out + t, n)), out + t, n);
      });
    }
  }
  return true;
}

}  // namespace elidir
