// steps.h: for each op kind the record that runs it: pointers and sizes, resolved, and what to do with them. Each
// shares its work out over the pool by rows, columns or tiles in a way that no result depends on. Checks nothing:
// ops.cc has.
#ifndef EYESPOT_ENGINE_STEPS_H_
#define EYESPOT_ENGINE_STEPS_H_

#include <algorithm>
#include <cstring>

#include "engine/ops.h"

namespace eyespot {

constexpr int64_t INLINE_ELEMENTS = 16384;  // below this, waking the other threads costs more than they save
constexpr int64_t COLUMN_UNIT = 16;         // output columns of a linear are shared out in these
constexpr int64_t QUERY_TILE = 96;          // queries one attention call takes: enough to pay for unpacking the keys

// Calls body(first, last) so that rows 0..rows are covered once, on all threads when there is enough to do.
template <class Body>
void by_rows(const Run& run, int64_t rows, int64_t width, const Body& body) {
  if (rows == 1 || rows * width < INLINE_ELEMENTS) return body(int64_t{0}, rows);
  run.pool.run([&](const Member& member) {
    const auto [first, last] = member.share(rows);
    if (first < last) body(first, last);
  });
}

inline void copy(float* to, const float* from, int64_t n) {
  std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}

struct Embed : Step {
  void (*widen)(const WidenArgs&);
  const std::byte* table;
  int64_t row_bytes, width;
  float* out;
  void operator()(const Run& run) const {
    by_rows(run, run.counts[N], width, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) widen({table + run.tokens[i] * row_bytes, out + i * width, width});
    });
  }
};

struct Merge : Step {
  const float* x;
  float* out;
  int64_t token_id, width;
  void operator()(const Run& run) const {
    const float* next = run.features;
    for (int64_t i = 0; i < run.counts[N]; ++i) {
      const bool image = run.tokens[i] == token_id;
      if (image)
        copy(out + i * width, next, width), next += width;
      else if (x != out)
        copy(out + i * width, x + i * width, width);
    }
  }
};

struct LinearStep : Step {
  void (*linear)(const LinearArgs&);
  LinearArgs args;
  Dim rows;
  void operator()(const Run& run) const {
    run.pool.run([&](const Member& member) {
      LinearArgs a = args;
      a.rows = rows.at(run.counts);
      const auto [first, last] = member.share(a.m, COLUMN_UNIT);
      a.first = first, a.last = last, a.work = member.work;
      if (first < last) linear(a);
    });
  }
};

struct LinearA8Step : Step {
  void (*quantize)(const QuantizeArgs&);
  void (*linear)(const LinearA8Args&);
  const float* x;
  int8_t* q;  // scratch: int8 rows, then a scale a row
  LinearA8Args args;
  Dim rows;
  void operator()(const Run& run) const {
    LinearA8Args ready = args;
    ready.rows = rows.at(run.counts);
    float* scale = reinterpret_cast<float*>(q + ready.rows * ready.x_stride);
    ready.x = q, ready.x_scale = scale;
    by_rows(run, ready.rows, ready.k, [&](int64_t first, int64_t last) {
      quantize({x + first * ready.k, q + first * ready.x_stride, scale + first, last - first, ready.k, ready.x_stride});
    });
    run.pool.run([&](const Member& member) {
      LinearA8Args a = ready;
      const auto [first, last] = member.share(a.m, COLUMN_UNIT);
      a.first = first, a.last = last;
      if (first < last) linear(a);
    });
  }
};

struct NormStep : Step {
  void (*norm)(const NormArgs&);
  NormArgs args;
  Dim rows;
  void operator()(const Run& run) const {
    by_rows(run, rows.at(run.counts), args.width, [&](int64_t first, int64_t last) {
      NormArgs a = args;
      a.x += first * a.width, a.y += first * a.width, a.rows = last - first;
      norm(a);
    });
  }
};

struct RopeStep : Step {
  void (*rope)(const RopeArgs&);
  RopeArgs args;
  void operator()(const Run& run) const {
    by_rows(run, run.counts[N], args.width, [&](int64_t first, int64_t last) {
      RopeArgs a = args;
      a.x += first * a.width, a.y += first * a.width, a.rows = last - first;
      a.cos += first * (a.rotary / 2), a.sin += first * (a.rotary / 2);
      rope(a);
    });
  }
};

// One layer of the cache: K [kv_heads][ctx][head_dim], V, and for int8 a scale a vector.
struct Cache {
  std::byte *k, *v;
  float *k_scale, *v_scale;
  int64_t ctx, item;
};

struct AttentionStep : Step {
  void (*attention)(const AttentionArgs&);
  void (*narrow)(const NarrowArgs&);      // f16 cache
  void (*quantize)(const QuantizeArgs&);  // int8 cache
  KvType type;
  Cache cache;
  AttentionArgs args;  // heads: query heads a key/value head
  int64_t kv_heads, group;
  const float* x;
  Dim rows;

  void store(int64_t row, int64_t head, int64_t position) const {
    const int64_t d = args.head_dim, at = head * cache.ctx + position;
    const float* k = x + row * args.q_stride + (kv_heads * args.heads + head) * d;
    const float* v = k + kv_heads * d;
    std::byte *to_k = cache.k + at * d * cache.item, *to_v = cache.v + at * d * cache.item;
    if (type == KvType::f32) {
      copy(reinterpret_cast<float*>(to_k), k, d);
      copy(reinterpret_cast<float*>(to_v), v, d);
    } else if (type == KvType::f16) {
      narrow({k, reinterpret_cast<uint16_t*>(to_k), d});
      narrow({v, reinterpret_cast<uint16_t*>(to_v), d});
    } else {
      quantize({k, reinterpret_cast<int8_t*>(to_k), cache.k_scale + at, 1, d, d});
      quantize({v, reinterpret_cast<int8_t*>(to_v), cache.v_scale + at, 1, d, d});
    }
  }

  // Queries of one sequence, shared out tile by tile in turn: later tiles of a causal sequence see more keys.
  void attend(const Run& run, int64_t sequences, int64_t length) const {
    const int64_t queries = length * args.heads, tiles = (queries + QUERY_TILE - 1) / QUERY_TILE;
    const int64_t tasks = sequences * kv_heads * tiles, d = args.head_dim;
    run.pool.run([&](const Member& member) {
      for (int64_t task = member.index; task < tasks; task += member.count) {
        const int64_t tile = task % tiles, head = task / tiles % kv_heads, row = task / tiles / kv_heads * length;
        AttentionArgs a = args;
        a.q = x + row * a.q_stride + head * a.heads * d;
        a.out = args.out + row * a.out_stride + head * a.heads * d;
        a.first = tile * QUERY_TILE, a.last = std::min(queries, a.first + QUERY_TILE);
        a.work = member.work;
        if (group != 0) {
          const float* k = x + row * a.q_stride + (kv_heads * a.heads + head) * d;
          a.k = k, a.v = k + kv_heads * d, a.keys = length, a.past = -1;
        } else {
          const int64_t at = head * cache.ctx;
          a.k = cache.k + at * d * cache.item, a.v = cache.v + at * d * cache.item;
          if (cache.k_scale != nullptr) a.k_scale = cache.k_scale + at, a.v_scale = cache.v_scale + at;
          a.keys = run.past + length, a.past = run.past;
        }
        attention(a);
      }
    });
  }

  void operator()(const Run& run) const {
    const int64_t n = rows.at(run.counts);
    if (group != 0) return attend(run, n / group, group);
    by_rows(run, n, args.q_stride, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        for (int64_t h = 0; h < kv_heads; ++h) store(i, h, run.past + i);
    });
    attend(run, 1, n);
  }
};

struct UnaryStep : Step {
  void (*unary)(const UnaryArgs&);
  const float* x;
  float* y;
  Dim rows;
  int64_t width;
  void operator()(const Run& run) const {
    by_rows(run, rows.at(run.counts), width, [&](int64_t first, int64_t last) {
      unary({x + first * width, y + first * width, (last - first) * width});
    });
  }
};

struct SwigluStep : Step {
  void (*swiglu)(const SwigluArgs&);
  const float* x;
  float* y;
  Dim rows;
  int64_t width;
  void operator()(const Run& run) const {
    by_rows(run, rows.at(run.counts), width, [&](int64_t first, int64_t last) {
      swiglu({x + first * 2 * width, y + first * width, last - first, width});
    });
  }
};

struct AddStep : Step {
  void (*add)(const AddArgs&);
  AddArgs args;
  Dim rows;
  void operator()(const Run& run) const {
    by_rows(run, rows.at(run.counts), args.width, [&](int64_t first, int64_t last) {
      AddArgs a = args;
      a.x += first * a.width, a.y += first * a.width, a.out += first * a.width, a.rows = last - first;
      add(a);
    });
  }
};

struct Scale : Step {
  const float* x;
  float* y;
  Dim rows;
  int64_t width;
  float factor;
  void operator()(const Run& run) const {
    by_rows(run, rows.at(run.counts), width, [&](int64_t first, int64_t last) {
      for (int64_t i = first * width; i < last * width; ++i) y[i] = factor * x[i];
    });
  }
};

struct Patches : Step {
  float* out;
  Dim rows;
  int64_t channels, height, width, patch;
  void operator()(const Run& run) const {
    const int64_t across = width / patch, down = height / patch;
    by_rows(run, rows.at(run.counts), channels * patch * patch, [&](int64_t first, int64_t last) {
      float* to = out + first * channels * patch * patch;
      for (int64_t i = first; i < last; ++i) {
        const int64_t tile = i / (across * down), top = i / across % down * patch, left = i % across * patch;
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t y = 0; y < patch; ++y, to += patch)
            copy(to, run.pixels + ((tile * channels + c) * height + top + y) * width + left, patch);
      }
    });
  }
};

struct Concat : Step {
  const float *x, *prefix;
  float* out;
  Dim rows;  // of the output
  int64_t group, width;
  void operator()(const Run& run) const {
    by_rows(run, rows.at(run.counts), width, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t tile = i / (group + 1), at = i % (group + 1);
        copy(out + i * width, at == 0 ? prefix : x + (tile * group + at - 1) * width, width);
      }
    });
  }
};

struct Position : Step {
  void (*add)(const AddArgs&);
  const float *x, *table;
  float* out;
  Dim rows;
  int64_t group, width;
  void operator()(const Run& run) const {
    by_rows(run, rows.at(run.counts), width, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        add({x + i * width, table + i % group * width, nullptr, out + i * width, 1, width, 1.0f});
    });
  }
};

struct Slice : Step {
  const float* x;
  float* out;
  Dim rows;  // of the output
  int64_t group, start, width;
  void operator()(const Run& run) const {
    const int64_t kept = group - start;
    by_rows(run, rows.at(run.counts), width, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        copy(out + i * width, x + (i / kept * group + start + i % kept) * width, width);
    });
  }
};

struct PixelShuffle : Step {
  const float* x;
  float* out;
  Dim rows;  // of the output
  int64_t side, factor, width;
  void operator()(const Run& run) const {
    const int64_t across = side / factor;
    by_rows(run, rows.at(run.counts), width * factor * factor, [&](int64_t first, int64_t last) {
      float* to = out + first * factor * factor * width;
      for (int64_t i = first; i < last; ++i) {
        const int64_t tile = i / (across * across), top = i / across % across * factor, left = i % across * factor;
        for (int64_t y = 0; y < factor; ++y, to += factor * width)
          copy(to, x + (tile * side * side + (top + y) * side + left) * width, factor * width);
      }
    });
  }
};

struct Select : Step {
  const float* x;
  float* out;
  int64_t width;
  void operator()(const Run& run) const {
    for (int64_t i = 0; i < run.counts[O]; ++i) copy(out + i * width, x + run.wanted[i] * width, width);
  }
};

}  // namespace eyespot

#endif
