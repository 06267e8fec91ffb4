// steps.h: for each op kind the record that runs it: pointers and sizes, resolved, and what to do with them. Each shares its
// work out over the pool by rows, columns or tiles in a way that no result depends on. Checks nothing: ops.cc has.
#ifndef EYESPOT_ENGINE_STEPS_H_
#define EYESPOT_ENGINE_STEPS_H_

#include <algorithm>
#include <cstring>
#include <vector>

#include "engine/fail.h"
#include "engine/ops.h"
#include "kernels/generic.h"

namespace eyespot {

constexpr int64_t INLINE_ELEMENTS = 16384;  // below this, waking the other threads costs more than they save
constexpr int64_t PIECE_ELEMENTS = 4096;    // that one takes at least
constexpr int64_t PIECE_PANELS = 4;
constexpr int64_t QUERIES = 512;     // that one attention call takes at most, and which read each key once
constexpr int64_t MANY = 4;          // attention calls a thread, where there are queries enough: they take unequal times
constexpr int64_t STORE_ROWS = 64;   // rows of keys one store call takes

// Calls body(first, last, member) so that rows 0..rows are covered once, on all threads when there is enough to do.
template <class Body>
void by_rows(const Run& run, int64_t rows, int64_t width, const Body& body) {
  if (rows == 1 || rows * width < INLINE_ELEMENTS) return body(int64_t{0}, rows, run.pool.caller());
  run.pool.run(rows, 1, (PIECE_ELEMENTS + width - 1) / width, body);
}

// Calls body(task, member) for tasks 0..tasks.
template <class Body>
void by_tasks(const Run& run, int64_t tasks, const Body& body) {
  run.pool.run(tasks, 1, 1, [&](int64_t first, int64_t last, const Member& member) {
    for (int64_t task = first; task < last; ++task) body(task, member);
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
    by_rows(run, run.counts[N], width, [&](int64_t first, int64_t last, const Member&) {
      for (int64_t i = first; i < last; ++i) widen({table + run.tokens[i] * row_bytes, out + i * width, width});
    });
  }
  Cost costs(const Run& run) const { return {run.counts[N] * row_bytes, 0}; }
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

// Rows of some value as int8 in scratch, as A8 linears take them: each row once, by the op that makes it when that is a
// norm, gelu or swiglu, else by the first linear that reads it.
struct Int8Rows {
  void (*quantize)(const QuantizeArgs&) = nullptr;  // null: nothing wants them
  int8_t* q = nullptr;                              // [rows][stride]
  float* scale = nullptr;                           // [rows][groups]
  int32_t* sum = nullptr;                           // [rows][groups]
  int64_t k = 0, stride = 0, group = 0, groups = 0;
  void take(const float* x, int64_t row, int64_t rows) const {
    quantize({x, q + row * stride, scale + row * groups, sum + row * groups, rows, k, stride, group});
  }
};

// What norms, gelu and swiglu have in common: rows made one by one, and rounded to int8 while they are in the cache.
struct RowStep : Step {
  float* y;
  Dim rows;
  int64_t width;  // of y
  Int8Rows int8;
  bool keep = true;  // false: only the int8 rows are read, and y is the thread's scratch

  // make(first, last, to) writes rows first..last from `to` on. `in`: columns that a row is made of.
  template <class Make>
  void run_rows(const Run& run, int64_t in, const Make& make) const {
    by_rows(run, rows.at(run.counts), in, [&](int64_t first, int64_t last, const Member& member) {
      if (int8.quantize == nullptr) return make(first, last, y + first * width);
      for (int64_t row = first; row < last; ++row) {
        float* to = keep ? y + row * width : static_cast<float*>(member.work);
        make(row, row + 1, to);
        int8.take(to, row, 1);
      }
    });
  }
};

// A linear of any scheme: the kernel's columns are shared out in whole panels.
template <class Args>
struct LinearStep : Step {
  void (*linear)(const Args&);
  Args args;
  Dim rows;
  int64_t m, multiply_adds, weight_bytes;  // of one row; of all
  const float* x;
  Int8Rows int8;  // A8 whose input nobody has rounded yet

  void operator()(const Run& run) const {
    const int64_t n = rows.at(run.counts);
    if (int8.quantize != nullptr)
      by_rows(run, n, int8.k,
              [&](int64_t first, int64_t last, const Member&) { int8.take(x + first * int8.k, first, last - first); });
    run.pool.run(m, PANEL, PIECE_PANELS, [&](int64_t first, int64_t last, const Member& member) {
      Args a = args;
      a.rows = n, a.first = first, a.last = last, a.work = member.work;
      linear(a);
    });
  }
  Cost costs(const Run& run) const { return {weight_bytes, multiply_adds * rows.at(run.counts)}; }
};

struct NormStep : RowStep {
  void (*norm)(const NormArgs&);
  NormArgs args;
  void operator()(const Run& run) const {
    run_rows(run, width, [&](int64_t first, int64_t last, float* to) {
      NormArgs a = args;
      a.x += first * width, a.y = to, a.rows = last - first;
      norm(a);
    });
  }
};

struct RopeStep : Step {
  void (*rope)(const RopeArgs&);
  RopeArgs args;
  Dim rows;
  void operator()(const Run& run) const {
    by_rows(run, rows.at(run.counts), args.width, [&](int64_t first, int64_t last, const Member&) {
      RopeArgs a = args;
      a.x += first * a.width, a.y += first * a.width, a.rows = last - first;
      a.cos += first * (a.rotary / 2), a.sin += first * (a.rotary / 2);
      rope(a);
    });
  }
};

struct AttentionStep : Step {
  void (*store)(const StoreArgs&);
  void (*attention)(const AttentionArgs&);
  void (*attention_span)(const AttentionArgs&);  // null for a group
  void (*merge)(const MergeArgs&);
  Cache cache;  // of key/value head 0
  int64_t kv_heads, group, head_bytes, head_keys, sequence_bytes, key_bytes;  // key_bytes: of a key and its value
  AttentionArgs args;  // heads: query heads a key/value head
  float* partial;
  const float* x;
  Dim rows;

  Cache head(int64_t sequence, int64_t h) const {
    const int64_t at = sequence * sequence_bytes + h * head_bytes;
    Cache c = cache;
    c.k = static_cast<std::byte*>(c.k) + at, c.v = static_cast<std::byte*>(c.v) + at;
    if (c.k_scale == nullptr) return c;
    const int64_t scales = sequence * (sequence_bytes / 4) + h * head_keys;
    c.k_scale += scales, c.v_scale += scales;
    return c;
  }

  // Keys `at`.. of every sequence = its `length` rows.
  void store_rows(const Run& run, int64_t sequences, int64_t length, int64_t at) const {
    const int64_t d = args.head_dim, pieces = (length + STORE_ROWS - 1) / STORE_ROWS;
    const auto body = [&](int64_t task, const Member&) {
      const int64_t piece = task % pieces, h = task / pieces % kv_heads, sequence = task / pieces / kv_heads;
      const int64_t first = piece * STORE_ROWS, count = std::min(STORE_ROWS, length - first);
      const float* k = x + (sequence * length + first) * args.q_stride + (kv_heads * args.heads + h) * d;
      store({k, k + kv_heads * d, head(sequence, h), args.q_stride, d, at + first, count});
    };
    const int64_t tasks = sequences * kv_heads * pieces;
    if (sequences * length * kv_heads * d >= INLINE_ELEMENTS) return by_tasks(run, tasks, body);
    for (int64_t task = 0; task < tasks; ++task) body(task, run.pool.caller());
  }

  // The first key that row `row` sees, cut down to a whole span: where spans begin must not depend on the row.
  int64_t first_key(int64_t past, int64_t row) const {
    if (past < 0 || args.window == 0) return 0;
    return std::max<int64_t>(0, past + row - args.window + 1) / SPAN * SPAN;
  }

  // Queries first..last of a sequence that begins at row `at` of x. `past` is -1 where all keys are seen.
  AttentionArgs queries(int64_t sequence, int64_t at, int64_t h, int64_t first, int64_t last, int64_t past,
                        int64_t keys) const {
    AttentionArgs a = args;
    const int64_t d = a.head_dim, row = first / a.heads, from = first_key(past, row);
    a.q = x + (at + row) * a.q_stride + h * a.heads * d;
    a.out = args.out + (at + row) * a.out_stride + h * a.heads * d;
    a.first = first - row * a.heads, a.last = last - row * a.heads;
    a.past = past < 0 ? past : past + row - from;
    a.keys = (past < 0 ? keys : past + (last - 1) / a.heads + 1) - from;
    a.cache = head(sequence, h);
    skip(a.cache, from);
    return a;
  }

  void skip(Cache& c, int64_t keys) const {  // whole blocks of them
    const int64_t bytes = keys * (head_bytes / head_keys);
    c.k = static_cast<std::byte*>(c.k) + bytes, c.v = static_cast<std::byte*>(c.v) + bytes;
    if (c.k_scale != nullptr) c.k_scale += keys, c.v_scale += keys;
  }

  // Tiles of queries, head by head: a member reads the keys of its own heads.
  void attend(const Run& run, int64_t sequences, int64_t length, int64_t past) const {
    const int64_t count = length * args.heads, heads = sequences * kv_heads;
    const int64_t few = std::clamp(heads * count / (MANY * run.pool.threads()), QUERIES / 8, QUERIES);
    const int64_t wanted = (count + few - 1) / few, tile = round_up((count + wanted - 1) / wanted, PANEL);
    const int64_t tiles = (count + tile - 1) / tile;
    by_tasks(run, heads * tiles, [&](int64_t task, const Member& member) {
      const int64_t first = task % tiles * tile, h = task / tiles % kv_heads, sequence = task / tiles / kv_heads;
      AttentionArgs a = queries(sequence, sequence * length, h, first, std::min(count, first + tile), past, length);
      a.work = member.work;
      attention(a);
    });
  }

  // One row whose heads do not share out evenly: spans of keys do.
  void attend_spans(const Run& run) const {
    const int64_t d = args.head_dim, stride = args.heads * (d + 2);
    const int64_t keys = run.past + 1 - first_key(run.past, 0), spans = (keys + SPAN - 1) / SPAN;
    by_tasks(run, kv_heads * spans, [&](int64_t task, const Member& member) {
      AttentionArgs a = queries(0, 0, task / spans, 0, args.heads, run.past, 0);
      a.span = task % spans, a.partial = partial + task * stride, a.work = member.work;
      attention_span(a);
    });
    by_rows(run, kv_heads * args.heads, spans * d, [&](int64_t first, int64_t last, const Member&) {
      for (int64_t i = first; i < last; ++i) {
        const float* from = partial + i / args.heads * spans * stride + i % args.heads * (d + 2);
        merge({from, args.out + i * d, spans, stride, d});
      }
    });
  }

  void operator()(const Run& run) const {
    const int64_t n = rows.at(run.counts);
    if (group != 0) {
      store_rows(run, n / group, group, 0);
      return attend(run, n / group, group, -1);
    }
    store_rows(run, 1, n, run.past);
    const bool spans = n == 1 && kv_heads % run.pool.threads() != 0 && run.past + 1 - first_key(run.past, 0) > SPAN;
    spans ? attend_spans(run) : attend(run, 1, n, run.past);
  }

  Cost costs(const Run& run) const {
    const int64_t n = rows.at(run.counts), queries = args.heads * kv_heads * args.head_dim;
    if (group != 0) return {0, 2 * n * group * queries};
    int64_t seen = 0, most = 0;
    for (int64_t row = 0; row < n; ++row) {
      const int64_t keys = run.past + row + 1, visible = args.window ? std::min(keys, args.window) : keys;
      seen += visible, most = std::max(most, visible);
    }
    return {most * kv_heads * key_bytes, 2 * seen * queries};
  }
};

// Rows that see those of their own run, all of them; runs follow each other, each of any length.
struct AttentionRuns : AttentionStep {
  struct Part {
    int64_t row, length, key;  // where it begins among the rows, and among the keys
  };
  int which;     // of Run::runs
  int64_t room;  // keys
  mutable std::vector<Part> runs;  // of this call; as much room as rows

  void find(const Run& run, int64_t n) const {
    const int32_t* number = run.runs[which];
    runs.clear();
    for (int64_t row = 0, key = 0; row < n;) {
      int64_t end = row + 1;
      while (end < n && number[end] == number[row]) ++end;
      runs.push_back({row, end - row, key});
      key += round_up(end - row, PANEL);
      row = end;
    }
    const Part& last = runs.back();
    if (last.key + round_up(last.length, PANEL) > room)
      fail_with(ES_USAGE, "the picture's windows need more room", last.key + round_up(last.length, PANEL),
                "at most " + str(room) + " keys", "several pictures or frames in one call");
  }

  void operator()(const Run& run) const {
    const int64_t n = rows.at(run.counts), d = args.head_dim;
    find(run, n);
    const auto count = static_cast<int64_t>(runs.size());
    by_tasks(run, count * kv_heads, [&](int64_t task, const Member&) {
      const Part& part = runs[static_cast<size_t>(task / kv_heads)];
      const int64_t h = task % kv_heads;
      const float* k = x + part.row * args.q_stride + (kv_heads * args.heads + h) * d;
      Cache to = head(0, h);
      skip(to, part.key);
      store({k, k + kv_heads * d, to, args.q_stride, d, 0, part.length});
    });
    int64_t longest = 0;
    for (const Part& part : runs) longest = std::max(longest, part.length * args.heads);
    const int64_t tile = std::min<int64_t>(QUERIES, round_up(longest, PANEL));
    const int64_t tiles = (longest + tile - 1) / tile;  // of the longest run; shorter ones pass over theirs
    by_tasks(run, count * kv_heads * tiles, [&](int64_t task, const Member& member) {
      const Part& part = runs[static_cast<size_t>(task / tiles / kv_heads)];
      const int64_t h = task / tiles % kv_heads, first = task % tiles * tile, all = part.length * args.heads;
      if (first >= all) return;
      AttentionArgs a = queries(0, part.row, h, first, std::min(all, first + tile), -1, part.length);
      skip(a.cache, part.key);
      a.work = member.work;
      attention(a);
    });
  }

  Cost costs(const Run&) const {
    int64_t pairs = 0;
    for (const Part& part : runs) pairs += part.length * part.length;
    return {0, 2 * pairs * args.heads * kv_heads * args.head_dim};
  }
};

struct UnaryStep : RowStep {
  void (*unary)(const UnaryArgs&);
  const float* x;
  void operator()(const Run& run) const {
    run_rows(run, width, [&](int64_t first, int64_t last, float* to) {
      unary({x + first * width, to, (last - first) * width});
    });
  }
};

struct SwigluStep : RowStep {
  void (*swiglu)(const SwigluArgs&);
  const float* x;
  void operator()(const Run& run) const {
    run_rows(run, 2 * width, [&](int64_t first, int64_t last, float* to) {
      swiglu({x + first * 2 * width, to, last - first, width});
    });
  }
};

struct AddStep : Step {
  void (*add)(const AddArgs&);
  AddArgs args;
  Dim rows;
  void operator()(const Run& run) const {
    by_rows(run, rows.at(run.counts), args.width, [&](int64_t first, int64_t last, const Member&) {
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
    by_rows(run, rows.at(run.counts), width, [&](int64_t first, int64_t last, const Member&) {
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
    by_rows(run, rows.at(run.counts), channels * patch * patch, [&](int64_t first, int64_t last, const Member&) {
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
    by_rows(run, rows.at(run.counts), width, [&](int64_t first, int64_t last, const Member&) {
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
    by_rows(run, rows.at(run.counts), width, [&](int64_t first, int64_t last, const Member&) {
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
    by_rows(run, rows.at(run.counts), width, [&](int64_t first, int64_t last, const Member&) {
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
    const int64_t across = (side + factor - 1) / factor;
    by_rows(run, rows.at(run.counts), width * factor * factor, [&](int64_t first, int64_t last, const Member&) {
      float* to = out + first * factor * factor * width;
      for (int64_t i = first; i < last; ++i) {
        const int64_t tile = i / (across * across), top = i / across % across * factor, left = i % across * factor;
        for (int64_t y = 0; y < factor; ++y, to += factor * width) {
          const int64_t inside = top + y < side ? std::min(factor, side - left) : 0;  // zeros beyond the picture
          copy(to, x + (tile * side * side + (top + y) * side + left) * width, inside * width);
          std::fill(to + inside * width, to + factor * width, 0.0F);
        }
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
