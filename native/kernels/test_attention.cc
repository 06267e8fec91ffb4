// test_attention.cc: store, attention, its spans and their merging. What stands in a cache where no key was stored is NaN
// here, and the arrays end with their allocation. Truth is the same formula in double.
#include "kernels/test_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/half.h"
#include "kernels/test.h"

namespace eyespot {
namespace {

int64_t up(int64_t keys) { return (keys + PANEL - 1) / PANEL * PANEL; }
bool paired(const std::string& format) { return format == "int16"; }
int64_t width_of(const std::string& format, int64_t dim) { return paired(format) ? up(dim) : dim; }
int64_t k_place(const std::string& format, int64_t key, int64_t i, int64_t dim) {
  if (paired(format)) return 2 * ((key / PANEL * (up(dim) / 2) + i / 2) * PANEL + key % PANEL) + i % 2;
  return (key / PANEL * dim + i) * PANEL + key % PANEL;
}
int64_t v_place(const std::string& format, int64_t key, int64_t i, int64_t dim) {
  return paired(format) ? 2 * (key / 2 * up(dim) + i) + key % 2 : key * dim + i;
}
int64_t item_of(const std::string& format) { return format == "f32" ? 4 : format == "int8" ? 1 : 2; }
int random_number(int most) { return static_cast<int>(rng() % (2 * static_cast<unsigned>(most) + 1)) - most; }

// How many rows stand after `past` keys (-1: every row sees every key), and how far back they see.
struct Case {
  int64_t rows, past, window;
  int64_t keys() const { return past < 0 ? rows : past + rows; }
};

// Queries on a cache of random keys, each number also as double. Places past the keys hold NaN.
struct Scene {
  Scene(const std::string& format, Case c, int64_t dim, int64_t heads, float sharpness)
      : format(format), c(c), dim(dim), heads(heads), keys(c.keys()), room(up(keys)), q_stride(heads * dim + 5),
        out_stride(heads * dim + 1), q(random_floats(c.rows * q_stride)), k_bytes(room * width_of(format, dim) * item_of(format)),
        v_bytes(k_bytes.bytes), k_scale(room), v_scale(room), k(static_cast<size_t>(keys * dim)), v(k) {
    for (size_t i = 0; paired(format) && i < k_bytes.bytes; ++i)  // what pads may be any words
      k_bytes.data()[i] = static_cast<char>(rng()), v_bytes.data()[i] = static_cast<char>(rng());
    for (int64_t j = 0; j < room; ++j) {
      const bool stored = j < keys;
      const float least = paired(format) ? 1e-4f : 1e-3f;
      k_scale[j] = stored ? uniform(least, 10 * least) : NAN, v_scale[j] = stored ? uniform(least, 10 * least) : NAN;
      for (int64_t i = 0; i < dim; ++i) {
        double k_value = 0, v_value = 0;
        const int64_t k_at = k_place(format, j, i, dim), v_at = v_place(format, j, i, dim);
        if (format == "f32") {
          auto *to_k = reinterpret_cast<float*>(k_bytes.data()), *to_v = reinterpret_cast<float*>(v_bytes.data());
          k_value = to_k[k_at] = stored ? uniform() : NAN, v_value = to_v[v_at] = stored ? uniform() : NAN;
        } else if (format == "f16") {
          auto *to_k = reinterpret_cast<uint16_t*>(k_bytes.data()), *to_v = reinterpret_cast<uint16_t*>(v_bytes.data());
          k_value = float_of_half(to_k[k_at] = half_of_float(stored ? uniform() : NAN));
          v_value = float_of_half(to_v[v_at] = half_of_float(stored ? uniform() : NAN));
        } else if (format == "int8") {
          auto *to_k = reinterpret_cast<int8_t*>(k_bytes.data()), *to_v = reinterpret_cast<int8_t*>(v_bytes.data());
          k_value = double(to_k[k_at] = static_cast<int8_t>(random_number(127))) * k_scale[j];
          v_value = double(to_v[v_at] = static_cast<int8_t>(random_number(127))) * v_scale[j];
        } else {
          auto *to_k = reinterpret_cast<int16_t*>(k_bytes.data()), *to_v = reinterpret_cast<int16_t*>(v_bytes.data());
          k_value = double(to_k[k_at] = static_cast<int16_t>(random_number(KV_WORD))) * k_scale[j];
          v_value = double(to_v[v_at] = static_cast<int16_t>(random_number(KV_WORD))) * v_scale[j];
        }
        if (stored) k[static_cast<size_t>(j * dim + i)] = k_value, v[static_cast<size_t>(j * dim + i)] = v_value;
      }
    }
    args = {q.data(), {k_bytes.data(), v_bytes.data(), k_scale.data(), v_scale.data()}, nullptr, q_stride, out_stride,
            heads,    dim, keys, c.past, c.window, 0, c.rows * heads,
            sharpness / std::sqrt(static_cast<float>(dim)), 0, nullptr, work.data};
  }

  // The softmax of query p over the keys it sees of [from, to), weights taken e^(score - base), base NaN for the largest
  // score; and the relative error that a kernel's weights may have.
  struct Truth {
    double top = -INFINITY, blur = 0, total = 0, error = 0;
    std::vector<double> sum, size;  // of the weights times v, and of their magnitudes
    std::vector<double> rounding;   // what rounding the weights to words may add to that
  };
  Truth truth(int64_t p, int64_t from, int64_t to, double base) {
    const int64_t row = p / heads, head = p % heads, stop = std::min(to, c.past < 0 ? keys : c.past + row + 1);
    const int64_t start = c.past >= 0 && c.window > 0 ? std::max(from, c.past + row + 1 - c.window) : from;
    Truth t;
    t.sum.resize(static_cast<size_t>(dim)), t.size.resize(static_cast<size_t>(dim)), t.rounding.resize(t.sum.size());
    double q_most = 0;
    for (int64_t i = 0; i < dim; ++i)
      q_most = std::max(q_most, std::abs(double(q[row * q_stride + head * dim + i])));
    const double q_step = paired(format) ? q_most / std::min<double>(32767, std::floor(INT32_MAX / double(KV_WORD * dim))) : 0;
    std::vector<double> scores;
    double reach = 0;
    for (int64_t j = start; j < stop; ++j) {
      double s = 0, spread = 0, off = 0;
      for (int64_t i = 0; i < dim; ++i) {
        off += std::abs(k[static_cast<size_t>(j * dim + i)]) * q_step / 2;
        const double term = q[row * q_stride + head * dim + i] * k[static_cast<size_t>(j * dim + i)];
        s += term, spread += std::abs(term);
      }
      scores.push_back(s * args.scale);
      t.top = std::max(t.top, scores.back()), reach = std::max(reach, std::abs(scores.back()));
      t.blur = std::max(t.blur, (gamma(static_cast<double>(dim) + 4) * spread + off) * args.scale);
    }
    for (size_t j = 0; j < scores.size(); ++j) {
      const double weight = std::exp(scores[j] - (std::isnan(base) ? t.top : base));
      t.total += weight;
      for (size_t i = 0; i < t.sum.size(); ++i) {
        const double term = weight * v[static_cast<size_t>(start + static_cast<int64_t>(j)) * t.sum.size() + i];
        t.sum[i] += term, t.size[i] += std::abs(term);
      }
    }
    for (size_t from_j = 0; paired(format) && from_j < scores.size();) {  // span by span
      const int64_t first = start + static_cast<int64_t>(from_j);
      const size_t to_j = std::min(scores.size(), from_j + static_cast<size_t>(SPAN - first % SPAN));
      double most = 0, sum = 0;
      for (size_t j = from_j; j < to_j; ++j) {
        const double scaled = std::exp(scores[j] - (std::isnan(base) ? t.top : base)) * v_scale[start + static_cast<int64_t>(j)];
        most = std::max(most, scaled), sum += scaled;
      }
      const double step = std::max(most / 32767, sum / WORDS);
      for (size_t j = from_j; j < to_j; ++j)
        for (size_t i = 0; i < t.rounding.size(); ++i) {
          const size_t key = static_cast<size_t>(start) + j;
          t.rounding[i] += step / 2 * std::abs(v[key * t.rounding.size() + i]) / v_scale[static_cast<int64_t>(key)];
        }
      from_j = to_j;
    }
    // Each weight is off by its score's error; once, and once more for each merged span, by exp's own error and by the
    // rounding of its argument; then come the sums.
    const double n = static_cast<double>(scores.size()), steps = 2 + n / SPAN + 1;
    t.error = 2 * t.blur + steps * ((paired(format) ? 4e-6 : EXP_ERROR) + 2 * UNIT * reach) + gamma(n + 3 * steps + 4);
    return t;
  }

  std::string format;
  Case c;
  int64_t dim, heads, keys, room, q_stride, out_stride;
  Array<float> q;
  Aligned<char> k_bytes, v_bytes;
  Aligned<float> k_scale, v_scale;
  std::vector<double> k, v;  // [keys][dim]
  AttentionArgs args;
};

// use(scene, sizes) for every shape worth it: tiles of 42 and strips of 6 queries, blocks of 16 keys, spans of 256.
template <class Use>
void scenes(const std::string& format, const Use& use) {
  const Case cases[] = {{1, 0, 0},    {1, 15, 0},    {1, 16, 0},     {1, 63, 0},  {1, 254, 0},  {1, 255, 0},
                        {1, 256, 0},  {2, 700, 0},   {7, 0, 0},      {17, 60, 0}, {65, 70, 1},  {40, 100, 9},
                        {50, 0, 64},  {3, 130, 65},  {5, 510, 300},  {6, 600, 3}, {9, 780, 257}, {44, 240, 0},
                        {1, -1, 0},   {43, -1, 0},   {101, -1, 0},   {270, -1, 0}};
  for (const Case& c : cases)
    for (int64_t dim : {1, 3, 7, 8, 9, 16, 20, 64, 72, 128, 256})
      for (int64_t heads : {1, 3, 7}) {
        if (c.rows > 100 && (heads != 1 || dim % 20 > 8)) continue;
        if (heads == 7 && (c.rows > 10 || dim % 16)) continue;
        Scene scene(format, c, dim, heads, heads == 3 ? 8.0f : 1.0f);
        use(scene, text(c.rows, c.past, c.window, dim, heads));
      }
}

// NaN in a query, in the last key or in its value: what it reaches must be NaN, also where that key is a span's only one.
void check_faults(const std::string& name, const std::string& format, void (*kernel)(const AttentionArgs&)) {
  for (int64_t keys : {1, 37, 257, 1025})
    for (int64_t dim : {9, 64})
      for (const std::string fault : {"q", "k", "v"}) {
        Scene scene(format, {keys, -1, 0}, dim, 1, 1.0f);
        const int64_t last = keys - 1;
        const bool scaled = format[0] == 'i';
        char* const bytes = (fault == "k" ? scene.k_bytes : scene.v_bytes).data();
        const int64_t at = fault == "k" ? k_place(format, last, 0, dim) : v_place(format, last, 0, dim);
        if (fault == "q") scene.q[last * scene.q_stride + 1] = NAN;
        if (fault != "q" && scaled) (fault == "k" ? scene.k_scale : scene.v_scale)[last] = NAN;
        if (fault != "q" && format == "f32") reinterpret_cast<float*>(bytes)[at] = NAN;
        if (fault != "q" && format == "f16") reinterpret_cast<uint16_t*>(bytes)[at] = half_of_float(NAN);
        Array<float> out(scene.c.rows * scene.out_stride);
        AttentionArgs a = scene.args;
        a.out = out.data();
        kernel(a);
        bool hidden = false;
        for (int64_t row = fault == "q" ? last : 0; row < keys; ++row)
          for (int64_t i = 0; i < (fault == "v" && !scaled ? 1 : dim); ++i)
            hidden |= !std::isnan(out[row * scene.out_stride + i]);
        expect(!hidden, name + " hides NaN in " + fault, text(keys, dim));
      }
}

// Every number as large as it may be and of one sign: sums of words reach their bound, and must not pass it.
void check_saturated(const std::string& name, void (*kernel)(const AttentionArgs&)) {
  for (int64_t keys : {1, 255, 256, 257, 513})
    for (int64_t dim : {16, 17, 64, 256}) {
      Scene scene("int16", {keys, -1, 0}, dim, 1, 1.0f);
      for (int64_t i = 0; i < scene.q.n; ++i) scene.q[i] = 3.0f;
      auto *k = reinterpret_cast<int16_t*>(scene.k_bytes.data()), *v = reinterpret_cast<int16_t*>(scene.v_bytes.data());
      for (int64_t j = 0; j < keys; ++j) {
        scene.k_scale[j] = 1e-4f, scene.v_scale[j] = 2e-4f;
        for (int64_t i = 0; i < dim; ++i)
          k[k_place("int16", j, i, dim)] = v[v_place("int16", j, i, dim)] = static_cast<int16_t>(KV_WORD);
      }
      Array<float> out(scene.c.rows * scene.out_stride);
      AttentionArgs a = scene.args;
      a.out = out.data();
      kernel(a);
      const double truth = KV_WORD * 2e-4;
      double worst = 0;
      for (int64_t row = 0; row < keys; ++row)
        for (int64_t i = 0; i < dim; ++i) worst = std::max(worst, std::abs(out[row * scene.out_stride + i] / truth - 1));
      expect(worst <= 3e-4, name + " saturated", text(keys, dim), worst, 3e-4);  // 2^-12 of flat weights
    }
}

void check_attention(const std::string& name, const std::string& format, void (*kernel)(const AttentionArgs&)) {
  scenes(format, [&](Scene& scene, const std::string& sizes) {
    const int64_t queries = scene.c.rows * scene.heads, dim = scene.dim;
    Array<float> out(scene.c.rows * scene.out_stride), parts(out.n);
    AttentionArgs a = scene.args;
    a.out = out.data();
    kernel(a);
    double worst = 0, bound = 1;
    for (int64_t p = 0; p < queries; ++p) {
      const Scene::Truth t = scene.truth(p, 0, scene.keys, NAN);
      for (int64_t i = 0; i < dim; ++i) {
        const double truth = t.sum[static_cast<size_t>(i)] / t.total,
                     limit = (2 * t.error * t.size[static_cast<size_t>(i)] + 1.01 * t.rounding[static_cast<size_t>(i)]) / t.total +
                                 4 * UNIT * std::abs(truth) + TINY;
        const double off = std::abs(out[p / scene.heads * scene.out_stride + p % scene.heads * dim + i] - truth);
        if (!(off / limit <= worst / bound)) worst = off, bound = limit;
      }
    }
    expect(worst <= bound, name, sizes, worst, bound);
    a.out = parts.data();
    for (int64_t cut : {int64_t{0}, queries / 3, queries - 1}) a.first = cut, a.last = queries, kernel(a);
    a.first = 0, a.last = queries / 3, kernel(a);
    expect(std::memcmp(out.data(), parts.data(), static_cast<size_t>(out.n) * 4) == 0, name + " split", sizes);
    if (scene.c.past < 0) return;
    Array<float> alone(scene.out_stride);  // the last row as a call of its own, as decoding it would
    a.q += (scene.c.rows - 1) * scene.q_stride, a.out = alone.data();
    a.past += scene.c.rows - 1, a.first = 0, a.last = scene.heads;
    kernel(a);
    expect(std::memcmp(out.data() + (scene.c.rows - 1) * scene.out_stride, alone.data(),
                       static_cast<size_t>(scene.heads * dim) * 4) == 0,
           name + " a row alone", sizes);
  });
}

void check_span(const std::string& name, const std::string& format, void (*kernel)(const AttentionArgs&)) {
  scenes(format, [&](Scene& scene, const std::string& sizes) {
    const int64_t queries = scene.c.rows * scene.heads, width = scene.dim + 2;
    if (queries > 60) return;  // attention is these spans, merged: check_spans
    for (int64_t span = 0; span * SPAN < scene.keys; ++span) {
      Array<float> partial(queries * width), parts(queries * width);
      AttentionArgs a = scene.args;
      a.span = span, a.partial = partial.data();
      kernel(a);
      bool good = true;
      for (int64_t p = 0; p < queries; ++p) {
        const float* found = partial.data() + p * width;
        const Scene::Truth t = scene.truth(p, span * SPAN, std::min(scene.keys, (span + 1) * SPAN), found[0]);
        if (t.total == 0 && t.top == -INFINITY) {
          good &= found[0] == -INFINITY;
          for (int64_t i = 1; i < width; ++i) good &= found[i] == 0;
          continue;
        }
        good &= std::abs(found[0] - t.top) <= t.blur + 2 * UNIT * std::abs(t.top) + TINY;
        good &= std::abs(found[1] - t.total) <= t.error * t.total;
        for (int64_t i = 0; i < scene.dim; ++i)
          good &= std::abs(found[2 + i] - t.sum[static_cast<size_t>(i)]) <= t.error * t.size[static_cast<size_t>(i)] + TINY;
      }
      expect(good, name, sizes + text(span));
      a.first = queries / 3, a.partial = parts.data() + a.first * width, kernel(a);
      a.first = 0, a.last = queries / 3, a.partial = parts.data(), kernel(a);
      expect(std::memcmp(partial.data(), parts.data(), static_cast<size_t>(partial.n) * 4) == 0, name + " split",
             sizes + text(span));
    }
  });
}

}  // namespace

void check(const std::string& name, const std::string& format, void (*kernel)(const AttentionArgs&),
           void (*)(const AttentionArgs&)) {
  if (name.rfind("attention_span", 0) == 0) return check_span(name, format, kernel);
  check_attention(name, format, kernel);
  check_faults(name, format, kernel);
  if (format == "int16") check_saturated(name, kernel);
}

void check_spans(const std::string& isa, const Kernels& kernels) {
  struct Trio {
    const char* format;
    void (*attention)(const AttentionArgs&);
    void (*span)(const AttentionArgs&);
  };
  for (const Trio& trio : {Trio{"f32", kernels.attention_f32, kernels.attention_span_f32},
                           Trio{"f16", kernels.attention_f16, kernels.attention_span_f16},
                           Trio{"int8", kernels.attention_int8, kernels.attention_span_int8}})
    scenes(trio.format, [&](Scene& scene, const std::string& sizes) {
      const int64_t queries = scene.c.rows * scene.heads, width = scene.dim + 2, spans = (scene.keys + SPAN - 1) / SPAN;
      if (queries > 400) return;
      Array<float> whole(scene.c.rows * scene.out_stride), merged(whole.n), partial(spans * queries * width);
      AttentionArgs a = scene.args;
      a.out = whole.data();
      trio.attention(a);
      for (a.span = 0; a.span < spans; ++a.span) a.partial = partial.data() + a.span * queries * width, trio.span(a);
      for (int64_t p = 0; p < queries; ++p)
        kernels.merge_f32({partial.data() + p * width,
                           merged.data() + p / scene.heads * scene.out_stride + p % scene.heads * scene.dim, spans,
                           queries * width, scene.dim});
      expect(std::memcmp(whole.data(), merged.data(), static_cast<size_t>(whole.n) * 4) == 0,
             std::string("attention by spans ") + trio.format + " " + isa, sizes);
    });
}

void check(const std::string& name, const std::string&, void (*kernel)(const MergeArgs&), void (*)(const MergeArgs&)) {
  for (int64_t dim : {1, 3, 4, 7, 8, 9, 16, 20, 64, 65, 128, 256})
    for (int64_t spans : {1, 2, 5}) {
      const int64_t stride = dim + 7;
      Array<float> partial = random_floats(spans * stride), out(dim);
      for (int64_t s = 0; s < spans; ++s) {
        const bool none = s == 1 || s == 4;  // one in the middle and the last are empty
        partial[s * stride] = none ? -INFINITY : uniform(-20, 20), partial[s * stride + 1] = none ? 0 : uniform(1, 256);
        for (int64_t i = 0; none && i < dim; ++i) partial[s * stride + 2 + i] = 0;
      }
      kernel({partial.data(), out.data(), spans, stride, dim});
      double top = -INFINITY, total = 0;
      for (int64_t s = 0; s < spans; ++s) top = std::max(top, double(partial[s * stride]));
      for (int64_t s = 0; s < spans; ++s) total += partial[s * stride + 1] * std::exp(partial[s * stride] - top);
      const double n = static_cast<double>(spans), error = n * (EXP_ERROR + 40 * UNIT) + gamma(3 * n + 2);
      bool good = true;
      for (int64_t i = 0; i < dim; ++i) {
        double sum = 0, size = 0;
        for (int64_t s = 0; s < spans; ++s) {
          const double term = partial[s * stride + 2 + i] * std::exp(partial[s * stride] - top);
          sum += term, size += std::abs(term);
        }
        good &= std::abs(out[i] - sum / total) <= 2 * error * size / total + TINY;
      }
      expect(good, name, text(dim, spans));
    }
}

void check(const std::string& name, const std::string& format, void (*kernel)(const StoreArgs&),
           void (*)(const StoreArgs&)) {
  for (int64_t dim : {1, 3, 4, 7, 8, 9, 15, 16, 17, 64, 65, 128, 256})
    for (int64_t at : {0, 1, 15, 16, 30})
      for (int64_t rows : {1, 2, 16, 33}) {
        const int64_t room = up(at + rows), stride = 2 * dim + 3, item = item_of(format);
        Array<float> k = random_floats(rows * stride, -3, 3), v = random_floats(rows * stride, -3, 3);
        for (int64_t i = 0; i < rows * stride; ++i) v[i] = std::ldexp(v[i], static_cast<int>(rng() % 40) - 25);
        if (dim > 8) {
          const float edges[] = {INFINITY, 65519.9f, 65520.0f, 1.00048828125f, 0x1.8p-24f};
          if (format == "f16") std::memcpy(v.data(), edges, sizeof edges);
          k[2] = format[0] == 'i' ? NAN : k[2];
          if (rows > 1) std::memset(v.data() + stride, 0, static_cast<size_t>(dim) * 4);
        }
        const int64_t width = width_of(format, dim);
        Aligned<char> k_found(room * width * item), v_found(room * width * item);
        Aligned<float> k_scale(room), v_scale(room);
        std::vector<char> k_true(k_found.bytes, 0x55), v_true(v_found.bytes, 0x55);  // what is not stored stays
        std::memset(k_found.data(), 0x55, k_found.bytes), std::memset(v_found.data(), 0x55, v_found.bytes);
        kernel({k.data(), v.data(), {k_found.data(), v_found.data(), k_scale.data(), v_scale.data()}, stride, dim, at, rows});
        bool nearest = true, scales = true;
        for (int64_t r = 0; r < rows; ++r) {
          const float* pair[] = {k.data() + r * stride, v.data() + r * stride};
          for (int which = 0; which < 2; ++which) {
            const float* x = pair[which];
            char* to = (which ? v_true : k_true).data();
            float largest = 0;
            for (int64_t i = 0; i < dim; ++i) largest = std::isnan(x[i]) ? NAN : std::max(largest, std::abs(x[i]));
            for (int64_t i = 0; i < dim; ++i) largest = std::isnan(x[i]) ? NAN : largest;
            const float scale = std::isnan(largest) ? NAN : largest < 1e-30f ? 0.0f : largest / (paired(format) ? KV_WORD : 127);
            for (int64_t i = 0; i < dim; ++i) {
              const int64_t place = which ? v_place(format, at + r, i, dim) : k_place(format, at + r, i, dim);
              if (format == "f32") std::memcpy(to + place * 4, &x[i], 4);
              if (paired(format)) {
                const auto word = static_cast<int16_t>(scale > 0 ? std::nearbyint(x[i] * (1.0f / scale)) : 0.0f);
                std::memcpy(to + place * 2, &word, 2);
              }
              if (format == "int8")
                to[place] = static_cast<char>(static_cast<int>(scale > 0 ? std::nearbyint(x[i] * (1.0f / scale)) : 0.0f));
              if (format != "f16") continue;
              const uint16_t h = half_of_float(x[i]);
              std::memcpy(to + place * 2, &h, 2);
              if ((h & 0x7FFF) >= 0x7BFF || (h & 0x7FFF) == 0) continue;
              const double off = std::abs(double(float_of_half(h)) - x[i]);  // no other half is nearer
              nearest &= off <= std::abs(double(float_of_half(static_cast<uint16_t>(h + 1))) - x[i]) &&
                         off <= std::abs(double(float_of_half(static_cast<uint16_t>(h - 1))) - x[i]);
            }
            for (int64_t i = dim; i < width && !which; ++i) {  // what pads a key may be anything
              const int64_t place = k_place(format, at + r, i, dim) * item;
              std::memcpy(to + place, k_found.data() + place, static_cast<size_t>(item));
            }
            const float found = (which ? v_scale : k_scale)[at + r];
            scales &= format[0] != 'i' || found == scale || (std::isnan(found) && std::isnan(scale));
          }
        }
        const std::string sizes = text(dim, at, rows);
        expect(std::memcmp(k_found.data(), k_true.data(), k_true.size()) == 0, name + " keys", sizes);
        expect(std::memcmp(v_found.data(), v_true.data(), v_true.size()) == 0, name + " values", sizes);
        expect(nearest && scales, name, sizes);
      }
}

}  // namespace eyespot
