// Gumbel noise on scores that `attend` has left, drawn by a counter.
//
// A number depends on the seed, the layer, the head and the positions of query and key alone, as in
// reference/noise.py. `noise` makes the softmax of few queries again, for `gain`; `perturb` changes
// rows of scores that were made as a product.

#pragma once

#include "attend.h"

namespace elidir {

// The bits of a word, or of each lane, mixed: two multiplications and shifts.
template <class W>
W mixed_bits(W x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

// -log(-log(u)), u being the low 23 bits as a number between 0 and 1.
inline Floats gumbel(Words bits) {
  const Floats number = __builtin_convertvector((Ints)(bits & 0x7fffffu), Floats);
  return -logarithm(-logarithm((number + 0.5f) * 0x1p-23f));
}

// What attention reads, its out[0] being the ordinals i32[B, G, S] of the tokens in the slots, whose
// length is the number of the layer; out[1] positions i64[B, T] by ordinal, out[2] i64[B, 1] where
// the temperature starts to go from `number` to `limit` over `inner` tokens. format: of the seed.
struct Noise {
  const Record& r;
  Rows<int32_t> ordinals;
  Rows<int64_t> positions, since;
  uint32_t seed;

  Noise(const Call& call, const Record& record)
      : r(record), ordinals(rows<int32_t>(call, r, r.out[0])),
        positions(rows<int64_t>(call, r, r.out[1])), since(rows<int64_t>(call, r, r.out[2])) {
    seed = mixed_bits(uint32_t(r.format + call.outers[r.out[0].slot].length + 1));
  }
  int64_t position(long batch, long g, long slot) const {
    return positions.at(batch, ordinals.at(batch, g, slot)[0], 0)[0];
  }
  float temperature(long batch, int64_t position) const {
    int64_t behind = position - since.at(batch, 0, 0)[0] + 1;
    behind = behind < 0 ? 0 : behind > r.inner ? r.inner : behind;
    return float(r.number) + float(r.limit - r.number) * (float(behind) / float(r.inner));
  }
};

template <class T>
void noise(const Call& call, const Record& r, const Share& share) {
  const Attention<T> a(call, r);
  const Noise n(call, r);
  const long groups = r.extra[0], items = r.dims[0] * groups * a.runs;
  for (long item; (item = share.next()) < items;) {
    const long batch = item / (groups * a.runs), g = item / a.runs % groups, run = item % a.runs;
    const long start = run * kKeys, count = a.keys - start < kKeys ? a.keys - start : kKeys;
    uint32_t keys[kKeys] = {};
    for (long t = 0; t < count; ++t)
      keys[t] = mixed_bits(uint32_t(n.position(batch, g, start + t)) ^ 0x9e3779b9u);
    for (long i = 0; i < a.group * r.dims[2]; ++i) {
      const long head = g * a.group + i / r.dims[2], token = i % r.dims[2];
      const int64_t at = n.position(batch, 0, a.keys - r.dims[2] + token);
      const uint32_t query = mixed_bits(uint32_t(at) + mixed_bits(uint32_t(head) + n.seed));
      const Floats tau = every(n.temperature(batch, at));
      float* partial = a.partial(batch, head, token, run);
      float* scores = partial + 2 + a.mixed;
      float highest = -INFINITY;
      for (long t = 0; t < count; t += kLanes) {  // lanes beyond the run are not looked at
        const Words words = mixed_bits(*reinterpret_cast<const Words*>(keys + t) + query);
        store((load(scores + t) + gumbel(words)) / tau, scores + t);
      }
      for (long t = 0; t < count; ++t) highest = scores[t] > highest ? scores[t] : highest;
      spread(scores, count, highest, partial);
    }
  }
}

// Words of queries [B, H, N, 1] in in[0] and of keys [B, H, N, S] in in[1], temperatures in in[2];
// the scores are out[0], in their place.
inline void perturb(const Call& call, const Record& r, const Share& s) {
  const Rows<float> queries = rows<float>(call, r, r.in[0]), keys = rows<float>(call, r, r.in[1]);
  const Rows<float> tau = rows<float>(call, r, r.in[2]), y = rows<float>(call, r, r.out[0]);
  const long count = count_rows(r);
  for (long row = s.begin(count); row < s.end(count); ++row) {
    const Words query = (Words)every(*queries(row));  // words come as floats of the same bits
    const float *words = keys(row), part = *tau(row);
    float* scores = y(row);
    channels(r.width, [&](long i, auto n) {
      const Floats drawn = gumbel(mixed_bits((Words)load(words + i, n) + query));
      store((load(scores + i, n) + drawn) / part, scores + i, n);
    });
  }
}

}  // namespace elidir
