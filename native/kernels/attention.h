// attention.h: what goes into a cache and what attends to it, for any vector of vector_*.h. Both products, q k and weights v,
// are one tile: R rows of numbers times P vectors of a cache, each vector loaded once for R rows. A desk of QUERIES rows
// stays in L2 while a cache passes over it once, a span of keys at a time.
#ifndef EYESPOT_KERNELS_ATTENTION_H_
#define EYESPOT_KERNELS_ATTENTION_H_

#include <cstring>
#include <type_traits>

#include "kernels/elementwise.h"
#include "kernels/generic.h"

namespace eyespot {
namespace {

constexpr int STRIP = 6;         // queries in registers
constexpr int64_t QUERIES = 42;  // queries that share a pass over the cache
constexpr int64_t KEYS = 64;     // keys of a pass that stay in L1
constexpr int64_t WIDE = 256;    // floats from row to row of the desk: a span's scores, or a head
constexpr int64_t AHEAD = 4096;  // bytes that the cache is asked for before they are used: hides most of memory's time
static_assert(WIDE >= SPAN && WIDE >= HEAD_DIM && KEYS % PANEL == 0 && SPAN % KEYS == 0 && PANEL % W == 0);

struct Softmax {
  float top[QUERIES], total[QUERIES], sums[QUERIES][WIDE];
};

// A row of the desk: floats, or as many pairs of words.
union Line {
  float f[WIDE];
  int16_t w[2 * WIDE];
};

// What one call keeps in its scratch.
struct Desk {
  Line q[QUERIES];        // times the scale of the scores; for int16 q_scale is that
  Line weights[QUERIES];  // of a span: scores first, then e^(score - top); for int16 that over weight_scale
  float q_scale[QUERIES], weight_scale[QUERIES];
  int64_t start[QUERIES], stop[QUERIES];  // keys of the span that a query sees
  Softmax span, whole;
  float keys[KEYS * HEAD_DIM];  // K or V made float
};
static_assert(sizeof(Desk) <= WORK_BYTES);
static_assert((WORDS + SPAN / 2 + 8) * KV_WORD <= INT32_MAX);  // a span's weights, rounded, times the largest V

// Vectors across for R rows: as many as the registers hold beside R numbers, or that many vectors, and one in passing.
constexpr int across(int rows) {
  int p = 1;
  while (p < 8 && 2 * p * W <= KEYS && rows * 2 * p + (rows < 2 * p ? rows : 2 * p) + 1 <= REGISTERS) p *= 2;
  return p;
}

// c[r][0 .. P * W) += sum over i < n of a[r][i] * b[i][..], in order; rows of a and c are WIDE apart; b's are `step`, and
// its runs of PANEL columns `run`.
template <int R, int P, class Format>
[[gnu::noinline]] void product(const float* a, const typename Format::T* b, int64_t step, int64_t run, float* c,
                               int64_t n) {
  F sums[R][P];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < P; ++v) sums[r][v] = load(c + r * WIDE + v * W);
  for (int64_t i = 0; i < n; ++i, b += step) {
    __builtin_prefetch(reinterpret_cast<const char*>(b) + AHEAD);
    const auto column = [&](int v) { return Format::load(b + v * W / PANEL * run + v * W % PANEL); };
    if constexpr (R < P) {
      F numbers[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) numbers[r] = all(a[r * WIDE + i]);
#pragma GCC unroll 8
      for (int v = 0; v < P; ++v) {
        const F vector = column(v);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[r][v] = fma(numbers[r], vector, sums[r][v]);
      }
    } else {
      F vectors[P];
#pragma GCC unroll 8
      for (int v = 0; v < P; ++v) vectors[v] = column(v);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const F number = all(a[r * WIDE + i]);
#pragma GCC unroll 8
        for (int v = 0; v < P; ++v) sums[r][v] = fma(number, vectors[v], sums[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < P; ++v) store(c + r * WIDE + v * W, sums[r][v]);
}

// The same for `columns` columns, a multiple of W.
template <int R, class Format>
inline void product_row(const float* a, const typename Format::T* b, int64_t step, int64_t run, float* c, int64_t n,
                        int64_t columns) {
  constexpr int P = across(R);
  int64_t j = 0;
  for (; j + P * W <= columns; j += P * W) product<R, P, Format>(a, b + j / PANEL * run, step, run, c + j, n);
  for (; j < columns; j += W)
    product<R, 1, Format>(a, b + j / PANEL * run + j % PANEL, step, run, c + j, n);
}

// use(R, i) for queries i .. i + R of `count`, R a constant.
template <class Use>
inline void strips(int64_t count, const Use& use) {
  int64_t i = 0;
  for (; i + STRIP <= count; i += STRIP) use(std::integral_constant<int, STRIP>{}, i);
  switch (count - i) {
    case 5: return use(std::integral_constant<int, 5>{}, i);
    case 4: return use(std::integral_constant<int, 4>{}, i);
    case 3: return use(std::integral_constant<int, 3>{}, i);
    case 2: return use(std::integral_constant<int, 2>{}, i);
    case 1: return use(std::integral_constant<int, 1>{}, i);
    default: return;
  }
}

// Keys that query p sees, as [start, stop).
struct Sight {
  int64_t start, stop;
  Sight(const AttentionArgs& a, int64_t p) : start(0), stop(a.keys) {
    if (a.past < 0) return;
    stop = a.past + p / a.heads + 1;
    if (a.window > 0 && stop > a.window) start = stop - a.window;
  }
};

inline int64_t clip(int64_t v, int64_t low, int64_t high) { return v < low ? low : v > high ? high : v; }
inline int64_t down(int64_t v) { return v / PANEL * PANEL; }
inline int64_t up(int64_t v) { return down(v + PANEL - 1); }

// Scores of `count` queries for keys [from, to) of the span, whole blocks that begin at k.
template <class Format>
inline void score(const typename Format::T* k, int64_t dim, int64_t from, int64_t to, int64_t count, Desk& desk) {
  strips(count, [&](auto rows, int64_t i) {
    constexpr int R = decltype(rows)::value;
    const int64_t j = clip(down(desk.start[i]), from, to), stop = clip(up(desk.stop[i + R - 1]), from, to);
    if (j < stop)
      product_row<R, Format>(desk.q[i].f, k + (j - from) * dim, PANEL, PANEL * dim, desk.weights[i].f + j, dim, stop - j);
  });
}

// Adds keys [from, to) of the span, whose V begins at v, to the sums of `count` queries.
template <class Format>
inline void collect(const typename Format::T* v, int64_t stride, int64_t columns, int64_t from, int64_t to,
                    int64_t count, Desk& desk) {
  strips(count, [&](auto rows, int64_t i) {
    constexpr int R = decltype(rows)::value;
    const int64_t j = clip(desk.start[i], from, to), stop = clip(desk.stop[i + R - 1], from, to);
    if (j < stop)
      product_row<R, Format>(desk.weights[i].f + j, v + (j - from) * stride, stride, PANEL, desk.span.sums[i], stop - j,
                             columns);
  });
}

// Scores [low, high) of query i become weights: k_scale and v_scale are the span's, null where numbers are stored as they
// are. Places that the query does not see may hold anything: they are replaced, never multiplied.
inline void weigh(const float* k_scale, const float* v_scale, int64_t low, int64_t high, int64_t i, Desk& desk) {
  const F hidden = all(-__builtin_inff());
  const int64_t start = desk.start[i], stop = desk.stop[i];
  float* row = desk.weights[i].f;
  F best = hidden;
  for (int64_t j = low; j < high; j += W) {
    F s = load(row + j);
    if (k_scale) s = s * load(k_scale + j);
    if (j < start) s = choose(first(start - j), hidden, s);
    if (j + W > stop) s = choose(first(stop - j), s, hidden);
    best = max(best, s);
    store(row + j, s);
  }
  const float top = largest_lane(best);
  const F base = all(top == -__builtin_inff() ? 0.0f : top);  // nothing seen: all weights are 0
  F total = all(0.0f);
  for (int64_t j = low; j < high; j += W) {
    const F weight = exp_below(load(row + j) - base);
    total = total + weight;
    store(row + j, v_scale ? weight * load(v_scale + j) : weight);
  }
  desk.span.top[i] = top;
  desk.span.total[i] = sum_lanes(total);
}

// Which keys of a span queries [p, p + count) see, and their softmax over none.
inline void look(const AttentionArgs& a, int64_t p, int64_t count, int64_t span, Desk& desk) {
  const int64_t first_key = span * SPAN;
  for (int64_t i = 0; i < count; ++i) {
    const Sight sight(a, p + i);
    desk.start[i] = clip(sight.start - first_key, 0, SPAN);
    desk.stop[i] = clip(sight.stop - first_key, 0, SPAN);
    desk.span.top[i] = -__builtin_inff(), desk.span.total[i] = 0;
    std::memset(desk.span.sums[i], 0, static_cast<size_t>(a.head_dim) * sizeof(float));
  }
}

// desk.span = the softmax of queries [p, p + count) over a span's keys.
template <class Format>
inline void attend_span(const AttentionArgs& a, int64_t p, int64_t count, int64_t span, Desk& desk) {
  look(a, p, count, span, desk);
  const int64_t first_key = span * SPAN, dim = a.head_dim;
  const int64_t low = down(desk.start[0]), stop = desk.stop[count - 1], high = up(stop);
  for (int64_t i = 0; i < count; ++i)
    std::memset(desk.weights[i].f + low, 0, static_cast<size_t>(high - low) * sizeof(float));
  // Few queries use the cache as it lies; for many, a part of it is made float once.
  constexpr bool FLOAT = std::is_same_v<Format, F32>;
  const bool few = count <= 2 * STRIP, whole = dim % W == 0;
  const auto* k = static_cast<const typename Format::T*>(a.cache.k) + first_key * dim;
  const auto* v = static_cast<const typename Format::T*>(a.cache.v) + first_key * dim;
  for (int64_t from = low; from < high; from += KEYS) {
    const int64_t to = clip(from + KEYS, 0, high);
    if (FLOAT || few) {
      score<Format>(k + from * dim, dim, from, to, count, desk);
    } else {
      each((to - from) * dim, [&](int64_t i, auto lanes) {
        lanes.store(desk.keys + i, lanes.template load<Format>(k + from * dim + i));
      });
      score<F32>(desk.keys, dim, from, to, count, desk);
    }
  }
  const float* k_scale = std::is_same_v<Format, Int8> ? a.cache.k_scale + first_key : nullptr;
  const float* v_scale = std::is_same_v<Format, Int8> ? a.cache.v_scale + first_key : nullptr;
  strips(count, [&](auto rows, int64_t i) {
    constexpr int R = decltype(rows)::value;
    for (int r = 0; r < R; ++r)
      weigh(k_scale, v_scale, down(desk.start[i]), up(desk.stop[i + R - 1]), i + r, desk);
  });
  for (int64_t from = low; from < stop; from += KEYS) {
    const int64_t to = clip(from + KEYS, 0, stop);
    if (whole && (FLOAT || few)) {
      collect<Format>(v + from * dim, dim, dim, from, to, count, desk);
    } else {
      const int64_t stride = up(dim);
      for (int64_t j = from; j < to; ++j)
        each(dim, [&](int64_t c, auto lanes) {
          store(desk.keys + (j - from) * stride + c, lanes.template load<Format>(v + j * dim + c));
        });
      collect<F32>(desk.keys, stride, (dim + W - 1) / W * W, from, to, count, desk);
    }
  }
}

// ---- int16 ----

// c[r][0 .. P * W) = scale[r] * scales[..] * sum over i < n of a[r][i] . b[i][..], pairs of words; rows of a are a line
// apart, those of c WIDE; b's are `step` pairs apart, and its runs of PANEL columns `run`. scales: none where null.
template <int R, int P>
[[gnu::noinline]] void product(const int16_t* a, const int16_t* b, int64_t step, int64_t run, const float* scale,
                               const float* scales, float* c, int64_t n) {
  using Sum [[gnu::vector_size(sizeof(I))]] = int32_t;  // as I, GCC 12 would store every sum in every round
  Sum sums[R][P];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < P; ++v) sums[r][v] = Sum{};
  for (int64_t i = 0; i < n; ++i, b += 2 * step) {
    I pairs[P];
#pragma GCC unroll 8
    for (int v = 0; v < P; ++v) pairs[v] = load_bytes(b + 2 * (v * W / PANEL * run + v * W % PANEL));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const I pair = four(reinterpret_cast<const int8_t*>(a + 2 * (r * WIDE + i)));
#pragma GCC unroll 8
      for (int v = 0; v < P; ++v) sums[r][v] = reinterpret_cast<Sum>(dot2(reinterpret_cast<I>(sums[r][v]), pairs[v], pair));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < P; ++v) {
      const F factor = scales ? all(scale[r]) * load(scales + v * W) : all(scale[r]);
      store(c + r * WIDE + v * W, to_float(reinterpret_cast<I>(sums[r][v])) * factor);
    }
}

// The same for `columns` columns, a multiple of PANEL.
template <int R>
inline void product_row(const int16_t* a, const int16_t* b, int64_t step, int64_t run, const float* scale,
                        const float* scales, float* c, int64_t n, int64_t columns) {
  constexpr int P = across(R);
  const auto from = [&](int64_t j) { return scales ? scales + j : nullptr; };
  int64_t j = 0;
  for (; j + P * W <= columns; j += P * W)
    product<R, P>(a, b + 2 * (j / PANEL * run), step, run, scale, from(j), c + j, n);
  for (; j < columns; j += W)
    product<R, 1>(a, b + 2 * (j / PANEL * run + j % PANEL), step, run, scale, from(j), c + j, n);
}

// Scores [low, high) of query i become words; v_scale is the span's. As in weigh, what is not seen is replaced.
inline void weigh_words(const float* v_scale, int64_t low, int64_t high, int64_t i, Desk& desk) {
  const int64_t start = desk.start[i], stop = desk.stop[i];
  float* row = desk.weights[i].f;
  const auto seen = [&](int64_t j, F yes, F no) {
    if (j < start) yes = choose(first(start - j), no, yes);
    return j + W > stop ? choose(first(stop - j), yes, no) : yes;
  };
  const F hidden = all(-__builtin_inff()), zero = all(0.0f);
  F best = hidden;
  for (int64_t j = low; j < high; j += W) best = max(best, seen(j, load(row + j), hidden));
  const float top = largest_lane(best);
  const F base = all(top == -__builtin_inff() ? 0.0f : top);
  F total = zero, most = zero, sum = zero;
  for (int64_t j = low; j < high; j += W) {
    const F weight = seen(j, exp_roughly(load(row + j) - base), zero);
    const F scaled = seen(j, weight * load(v_scale + j), zero);
    total = total + weight, most = max(most, scaled), sum = sum + scaled;
    store(row + j, scaled);
  }
  desk.span.top[i] = top;
  desk.span.total[i] = sum_lanes(total);
  const float by_most = largest_lane(most) / 32767, by_sum = sum_lanes(sum) / WORDS;
  const float scale = by_sum < by_most ? by_most : by_sum;  // NaN, if any, is in the sum
  desk.weight_scale[i] = scale;
  const F inverse = all(scale > 1e-37f ? 1 / scale : 0.0f);
  for (int64_t j = low; j < high; j += W) store_int16(desk.weights[i].w + j, to_int(load(row + j) * inverse));
}

// attend_span where K and V are words: sums are exact in int32, so a span's keys are summed at once.
template <>
inline void attend_span<Int16>(const AttentionArgs& a, int64_t p, int64_t count, int64_t span, Desk& desk) {
  look(a, p, count, span, desk);
  const int64_t first_key = span * SPAN, width = up(a.head_dim);
  const auto* k = static_cast<const int16_t*>(a.cache.k) + first_key * width;
  const auto* v = static_cast<const int16_t*>(a.cache.v) + first_key * width;
  const int64_t low = down(desk.start[0]), high = up(desk.stop[count - 1]);
  for (int64_t from = low; from < high; from += KEYS)
    strips(count, [&](auto rows, int64_t i) {
      constexpr int R = decltype(rows)::value;
      const int64_t to = clip(from + KEYS, 0, high);
      const int64_t j = clip(down(desk.start[i]), from, to), stop = clip(up(desk.stop[i + R - 1]), from, to);
      if (j < stop)
        product_row<R>(desk.q[i].w, k + j * width, PANEL, width / 2 * PANEL, desk.q_scale + i,
                       a.cache.k_scale + first_key + j, desk.weights[i].f + j, width / 2, stop - j);
    });
  strips(count, [&](auto rows, int64_t i) {
    constexpr int R = decltype(rows)::value;
    const int64_t j = down(desk.start[i]), stop = up(desk.stop[i + R - 1]);
    for (int r = 0; r < R; ++r) weigh_words(a.cache.v_scale + first_key, j, stop, i + r, desk);
    if (j < stop)
      product_row<R>(desk.weights[i].w + j, v + j * width, width, PANEL, desk.weight_scale + i, nullptr,
                     desk.span.sums[i], (stop - j) / 2, width);
  });
}

// ---- all formats ----

// Rows of q from query p on, times the scale, onto the desk.
template <class Format>
inline void take_queries(const AttentionArgs& a, int64_t p, int64_t count, Desk& desk) {
  const F scale = all(a.scale);
  for (int64_t i = 0; i < count; ++i) {
    const float* q = a.q + (p + i) / a.heads * a.q_stride + (p + i) % a.heads * a.head_dim;
    if constexpr (std::is_same_v<Format, Int16>) {
      const float most = static_cast<float>(clip(INT32_MAX / (KV_WORD * a.head_dim), 1, 32767));
      int32_t sum;  // not used
      quantize_group(q, a.head_dim, most, desk.q[i].w, desk.q_scale[i], sum);
      desk.q_scale[i] *= a.scale;
      std::memset(desk.q[i].w + a.head_dim, 0, static_cast<size_t>(up(a.head_dim) - a.head_dim) * sizeof(int16_t));
    } else {
      each(a.head_dim, [&](int64_t c, auto lanes) { lanes.store(desk.q[i].f + c, lanes.load(q + c) * scale); });
    }
  }
}

// Adds one span's softmax to that of the spans before it, which began as -Inf and zeros.
inline void add_span(float& top, float& total, float* sums, float span_top, float span_total, const float* span_sums,
                     int64_t dim) {
  if (span_total == 0) return;  // no key was seen: a span whose scores are all NaN has top -Inf too, but a total of NaN
  const float next = span_top > top ? span_top : top;
  const F shrink = exp(all(top - next)), span_shrink = exp(all(span_top - next));
  total = total * lowest_lane(shrink) + span_total * lowest_lane(span_shrink);
  each(dim, [&](int64_t c, auto lanes) {
    lanes.store(sums + c, fma(lanes.load(sums + c), shrink, lanes.load(span_sums + c) * span_shrink));
  });
  top = next;
}

template <class Format>
inline void attention(const AttentionArgs& a) {
  Desk& desk = *static_cast<Desk*>(a.work);
  Softmax& whole = desk.whole;
  for (int64_t p = a.first; p < a.last; p += QUERIES) {
    const int64_t count = clip(a.last - p, 0, QUERIES);
    take_queries<Format>(a, p, count, desk);
    for (int64_t i = 0; i < count; ++i) {
      whole.top[i] = -__builtin_inff(), whole.total[i] = 0;
      std::memset(whole.sums[i], 0, static_cast<size_t>(a.head_dim) * sizeof(float));
    }
    const int64_t stop = Sight(a, p + count - 1).stop;
    for (int64_t span = Sight(a, p).start / SPAN; span * SPAN < stop; ++span) {
      attend_span<Format>(a, p, count, span, desk);
      for (int64_t i = 0; i < count; ++i)
        add_span(whole.top[i], whole.total[i], whole.sums[i], desk.span.top[i], desk.span.total[i], desk.span.sums[i],
                 a.head_dim);
    }
    for (int64_t i = 0; i < count; ++i) {
      float* out = a.out + (p + i) / a.heads * a.out_stride + (p + i) % a.heads * a.head_dim;
      const F total = all(whole.total[i]);
      each(a.head_dim, [&](int64_t c, auto lanes) { lanes.store(out + c, lanes.load(whole.sums[i] + c) / total); });
    }
  }
}

template <class Format>
inline void attention_span(const AttentionArgs& a) {
  Desk& desk = *static_cast<Desk*>(a.work);
  float* partial = a.partial;
  for (int64_t p = a.first; p < a.last; p += QUERIES) {
    const int64_t count = clip(a.last - p, 0, QUERIES);
    take_queries<Format>(a, p, count, desk);
    attend_span<Format>(a, p, count, a.span, desk);
    for (int64_t i = 0; i < count; ++i, partial += a.head_dim + 2) {
      partial[0] = desk.span.top[i], partial[1] = desk.span.total[i];
      std::memcpy(partial + 2, desk.span.sums[i], static_cast<size_t>(a.head_dim) * sizeof(float));
    }
  }
}

void attention_f32(const AttentionArgs& a) { attention<F32>(a); }
void attention_f16(const AttentionArgs& a) { attention<F16>(a); }
void attention_int8(const AttentionArgs& a) { attention<Int8>(a); }
void attention_int16(const AttentionArgs& a) { attention<Int16>(a); }
void attention_span_f32(const AttentionArgs& a) { attention_span<F32>(a); }
void attention_span_f16(const AttentionArgs& a) { attention_span<F16>(a); }
void attention_span_int8(const AttentionArgs& a) { attention_span<Int8>(a); }

void merge_f32(const MergeArgs& a) {
  float top = -__builtin_inff(), total = 0;
  std::memset(a.out, 0, static_cast<size_t>(a.head_dim) * sizeof(float));
  for (int64_t s = 0; s < a.spans; ++s) {
    const float* partial = a.partial + s * a.stride;
    add_span(top, total, a.out, partial[0], partial[1], partial + 2, a.head_dim);
  }
  const F divisor = all(total);
  each(a.head_dim, [&](int64_t c, auto lanes) { lanes.store(a.out + c, lanes.load(a.out + c) / divisor); });
}

// ---- store ----

// A key's vector of n numbers goes into its block, a column of it.
template <class T>
inline void put_key(const StoreArgs& a, int64_t key, const T* row, int64_t n) {
  T* k = static_cast<T*>(a.cache.k) + down(key) * n + key % PANEL;
  for (int64_t c = 0; c < n; ++c) k[c * PANEL] = row[c];
}

void store_f32(const StoreArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    put_key(a, a.at + r, a.k + r * a.stride, a.head_dim);
    std::memcpy(static_cast<float*>(a.cache.v) + (a.at + r) * a.head_dim, a.v + r * a.stride,
                static_cast<size_t>(a.head_dim) * sizeof(float));
  }
}

void store_f16(const StoreArgs& a) {
  uint16_t key[HEAD_DIM];
  for (int64_t r = 0; r < a.rows; ++r) {
    const float *k = a.k + r * a.stride, *v = a.v + r * a.stride;
    uint16_t* value = static_cast<uint16_t*>(a.cache.v) + (a.at + r) * a.head_dim;
    each(a.head_dim, [&](int64_t c, auto lanes) {
      lanes.store(key + c, lanes.load(k + c));
      lanes.store(value + c, lanes.load(v + c));
    });
    put_key(a, a.at + r, key, a.head_dim);
  }
}

void store_int8(const StoreArgs& a) {
  int8_t key[HEAD_DIM];
  int32_t sum;  // not kept
  for (int64_t r = 0; r < a.rows; ++r) {
    const int64_t at = a.at + r;
    quantize_group(a.k + r * a.stride, a.head_dim, 127, key, a.cache.k_scale[at], sum);
    quantize_group(a.v + r * a.stride, a.head_dim, 127, static_cast<int8_t*>(a.cache.v) + at * a.head_dim,
                   a.cache.v_scale[at], sum);
    put_key(a, at, key, a.head_dim);
  }
}

// K's pairs go as one number into their place of the block; V's words lie beside those of the key before or after.
void store_int16(const StoreArgs& a) {
  const int64_t width = up(a.head_dim);
  int16_t words[HEAD_DIM] = {};      // beyond head_dim zeros
  int32_t pairs[HEAD_DIM / 2], sum;  // no sum is kept
  for (int64_t r = 0; r < a.rows; ++r) {
    const int64_t at = a.at + r;
    quantize_group(a.k + r * a.stride, a.head_dim, KV_WORD, words, a.cache.k_scale[at], sum);
    std::memcpy(pairs, words, static_cast<size_t>(width) * sizeof *words);
    put_key(a, at, pairs, width / 2);
    quantize_group(a.v + r * a.stride, a.head_dim, KV_WORD, words, a.cache.v_scale[at], sum);
    int16_t* v = static_cast<int16_t*>(a.cache.v) + at / 2 * 2 * width + at % 2;
    for (int64_t c = 0; c < a.head_dim; ++c) v[2 * c] = words[c];
  }
}

}  // namespace
}  // namespace eyespot

#endif
