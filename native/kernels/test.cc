// test.cc: every kernel of kernels.inc, at sizes around each lane and tile boundary, on misaligned pointers. Float
// results are held against the same formula in double, within a bound derived from the length of the sum; integer and
// conversion results must equal the scalar kernel's bit for bit; results must not depend on how a call is split. An
// instruction set this machine lacks is reported as untested.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/half.h"
#include "kernels/kernels.h"

namespace eyespot {
namespace {

constexpr double UNIT = 0x1p-24;    // rounding unit of float32
constexpr double EXP_ERROR = 3e-7;  // relative, of any kernel's exp
constexpr double TINY = 1e-37;      // what underflow may lose

// Relative error of a sum of n products, in any order (Higham's gamma).
double gamma(double n) { return n * UNIT / (1 - n * UNIT); }

int passed = 0, failed = 0;

void expect(bool good, const std::string& name, const std::string& sizes, double found = 0, double bound = 0) {
  ++(good ? passed : failed);
  if (!good && failed <= 40)
    std::printf("FAIL %s %s: off by %g, bound %g\n", name.c_str(), sizes.c_str(), found, bound);
}

std::mt19937 rng(7);
float uniform(float low = -1, float high = 1) { return std::uniform_real_distribution<float>(low, high)(rng); }

// n elements that start one element past the allocation's own alignment and end with it, so that a sanitizer sees any
// step outside.
template <class T>
struct Array {
  explicit Array(int64_t n) : storage(new T[static_cast<size_t>(n) + 1]()), n(n) {}
  T* data() { return storage.get() + 1; }
  T& operator[](int64_t i) { return storage[static_cast<size_t>(i) + 1]; }
  std::unique_ptr<T[]> storage;
  int64_t n;
};

Array<float> random_floats(int64_t n, float low = -1, float high = 1) {
  Array<float> a(n);
  for (int64_t i = 0; i < n; ++i) a[i] = uniform(low, high);
  return a;
}

// check(name, format, kernel, scalar): one for each type of arguments, which is how main chooses it.

struct Work {
  void* data = std::aligned_alloc(64, WORK_BYTES);
  ~Work() { std::free(data); }
} work;

template <class... Sizes>
std::string text(Sizes... sizes) {
  std::string line;
  ((line += std::to_string(sizes) + " "), ...);
  return line;
}

// Weights of one format and the same numbers as float.
struct Weights {
  std::vector<uint8_t> bytes;
  Array<float> row_scale{0};
  Array<uint16_t> group_scale{0};
  const void *w = nullptr, *scale = nullptr;
  std::vector<double> dense;  // [m][k]
};

template <class T, class Make>
void fill(Weights& out, int64_t n, Make make) {
  out.bytes.resize(static_cast<size_t>(n + 1) * sizeof(T));  // one item in: misaligned for vectors
  T* at = reinterpret_cast<T*>(out.bytes.data()) + 1;
  for (int64_t i = 0; i < n; ++i) at[i] = make(i);
  out.w = at;
}

Weights make_weights(const std::string& format, int64_t m, int64_t k, int64_t shift) {
  Weights out;
  out.dense.resize(static_cast<size_t>(m * k));
  auto dense = [&](int64_t i) -> double& { return out.dense[static_cast<size_t>(i)]; };
  if (format == "f32")
    fill<float>(out, m * k, [&](int64_t i) {
      const float v = uniform();
      dense(i) = v;
      return v;
    });
  if (format == "f16")
    fill<uint16_t>(out, m * k, [&](int64_t i) {
      const uint16_t v = half_of_float(uniform());
      dense(i) = float_of_half(v);
      return v;
    });
  if (format == "bf16")
    fill<uint16_t>(out, m * k, [&](int64_t i) {
      const auto v = static_cast<uint16_t>(bits_of_float(uniform()) >> 16);
      dense(i) = float_of_bf16(v);
      return v;
    });
  if (format == "w8a16" || format == "w8a8") {
    out.row_scale = random_floats(m, 0.001f, 0.01f);
    fill<int8_t>(out, m * k, [&](int64_t i) {
      const auto v = static_cast<int8_t>(static_cast<int>(rng() % 255) - 127);
      dense(i) = double(v) * out.row_scale[i / k];
      return v;
    });
    out.scale = out.row_scale.data();
  }
  if (format == "w4a16") {
    const int64_t row = (k + 1) / 2, groups = (k + (1 << shift) - 1) >> shift;
    out.group_scale = Array<uint16_t>(m * groups);
    for (int64_t i = 0; i < m * groups; ++i) out.group_scale[i] = half_of_float(uniform(-0.1f, 0.1f));
    fill<uint8_t>(out, m * row, [&](int64_t i) {
      const auto v = static_cast<uint8_t>(rng());
      for (int64_t c = i % row * 2; c < std::min(k, i % row * 2 + 2); ++c)
        dense(i / row * k + c) =
            ((c % 2 ? v >> 4 : v & 15) - 8) * double(float_of_half(out.group_scale[i / row * groups + (c >> shift)]));
      return v;
    });
    out.scale = out.group_scale.data();
  }
  return out;
}

constexpr int64_t COLUMNS[] = {1,  2,  3,  5,   7,   8,   9,   15,  16,  17,  24,  31,  32,   33,
                               63, 64, 65, 100, 127, 128, 129, 200, 511, 512, 513, 530, 1025, 1100};
constexpr int64_t ROWS[] = {1, 2, 3, 4, 5, 6, 7};
constexpr int64_t OUTPUTS[] = {1, 3, 4, 5, 8, 9, 16, 17, 35};

void check(const std::string& name, const std::string& format, void (*kernel)(const LinearArgs&),
           void (*)(const LinearArgs&)) {
  for (int64_t k : COLUMNS)
    for (int64_t shift : {5, 6, 7}) {
      if (format != "w4a16" && shift != 5) continue;
      for (int64_t m : OUTPUTS)
        for (int64_t rows : ROWS) {
          Weights w = make_weights(format, m, k, shift);
          Array<float> x = random_floats(rows * k), bias = random_floats(m), y(rows * m), parts(rows * m);
          LinearArgs a{x.data(), w.w,   w.scale,  rows % 2 ? bias.data() : nullptr, y.data(), rows, k, m, 0,
                       m,        shift, work.data};
          kernel(a);
          double worst = 0, bound = 1;
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = 0; j < m; ++j) {
              double sum = a.bias ? double(bias[j]) : 0, size = std::abs(sum);
              for (int64_t c = 0; c < k; ++c) {
                const double term = double(x[r * k + c]) * w.dense[static_cast<size_t>(j * k + c)];
                sum += term, size += std::abs(term);
              }
              const double off = std::abs(y[r * m + j] - sum), limit = gamma(static_cast<double>(k) + 3) * size + TINY;
              if (!(off / limit <= worst / bound)) worst = off, bound = limit;
            }
          expect(worst <= bound, name, text(k, shift, m, rows), worst, bound);
          a.y = parts.data();
          const int64_t cut = m / 2;
          a.last = cut, kernel(a);
          a.first = cut, a.last = m, kernel(a);
          expect(std::memcmp(y.data(), parts.data(), static_cast<size_t>(rows * m) * 4) == 0,
                 name + " split by columns", text(k, shift, m, rows));
          Array<float> one(m);
          a.first = 0, a.rows = 1, a.x = x.data() + (rows - 1) * k, a.y = one.data();
          kernel(a);
          expect(std::memcmp(y.data() + (rows - 1) * m, one.data(), static_cast<size_t>(m) * 4) == 0,
                 name + " a row alone", text(k, shift, m, rows));
        }
    }
}

void check(const std::string& name, const std::string&, void (*kernel)(const LinearA8Args&),
           void (*scalar)(const LinearA8Args&)) {
  for (int64_t k : COLUMNS)
    for (int64_t m : OUTPUTS)
      for (int64_t rows : ROWS) {
        Weights w = make_weights("w8a8", m, k, 0);
        const bool extreme = rows == 3;  // the largest sums there are
        if (extreme) std::memset(const_cast<void*>(w.w), 0x81, static_cast<size_t>(m * k));
        const int64_t stride = (k + A8_ALIGN - 1) / A8_ALIGN * A8_ALIGN;
        Array<int8_t> x(rows * stride);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < k; ++c)
            x[r * stride + c] = static_cast<int8_t>(extreme ? -127 : static_cast<int>(rng() % 255) - 127);
        Array<float> scale = random_floats(rows, 0.001f, 0.1f), bias = random_floats(m), y(rows * m), truth(rows * m);
        LinearA8Args a{x.data(),
                       scale.data(),
                       static_cast<const int8_t*>(w.w),
                       static_cast<const float*>(w.scale),
                       rows % 2 ? bias.data() : nullptr,
                       truth.data(),
                       rows,
                       k,
                       m,
                       stride,
                       0,
                       m};
        scalar(a);
        a.y = y.data(), a.last = m / 2, kernel(a);
        a.first = m / 2, a.last = m, kernel(a);
        expect(std::memcmp(y.data(), truth.data(), static_cast<size_t>(rows * m) * 4) == 0, name, text(k, m, rows));
        int64_t sum = 0;
        for (int64_t c = 0; c < k; ++c) sum += int64_t{x[c]} * static_cast<const int8_t*>(w.w)[c];
        const float first =
            static_cast<float>(sum) * (scale[0] * static_cast<const float*>(w.scale)[0]) + (rows % 2 ? bias[0] : 0.0f);
        expect(y[0] == first, name + " exact", text(k, m, rows), y[0], first);
      }
}

void check(const std::string& name, const std::string&, void (*kernel)(const QuantizeArgs&),
           void (*scalar)(const QuantizeArgs&)) {
  for (int64_t k : COLUMNS)
    for (int64_t stride : {k, (k + 63) / 64 * 64}) {
      const int64_t rows = 9;
      Array<float> x = random_floats(rows * k, -3, 3);
      const float lift = 127.0f / 2;  // row 1: halves, to be rounded to even
      for (int64_t c = 0; c < k; ++c) {
        x[k + c] = c == 0 ? 127.0f : std::floor(uniform(-lift, lift)) + 0.5f;
        x[2 * k + c] = 0, x[3 * k + c] = 1e-33f, x[6 * k + c] = -127.0f;
      }
      x[4 * k + k / 2] = NAN, x[5 * k + k - 1] = -INFINITY, x[7 * k] = 3e38f;
      Array<int8_t> q(rows * stride), truth(rows * stride);
      Array<float> scale(rows), truth_scale(rows);
      std::memset(q.data(), 1, static_cast<size_t>(rows * stride));
      kernel({x.data(), q.data(), scale.data(), rows, k, stride});
      scalar({x.data(), truth.data(), truth_scale.data(), rows, k, stride});
      expect(std::memcmp(q.data(), truth.data(), static_cast<size_t>(rows * stride)) == 0, name, text(k, stride));
      bool scales = true;
      for (int64_t r = 0; r < rows; ++r)
        scales &= scale[r] == truth_scale[r] || (std::isnan(scale[r]) && std::isnan(truth_scale[r]));
      expect(
          scales && std::isnan(scale[4]) && std::isnan(scale[5]) && scale[2] == 0 && scale[3] == 0 && scale[1] == 1.0f,
          name + " scales", text(k, stride));
      if (k > 1)
        expect(q[stride + 1] == static_cast<int8_t>(std::nearbyint(x[k + 1])), name + " half to even", text(k, stride));
    }
}

void check(const std::string& name, const std::string&, void (*kernel)(const NarrowArgs&),
           void (*scalar)(const NarrowArgs&)) {
  for (int64_t n : {1, 7, 8, 9, 1000}) {
    Array<float> in(n);
    for (int64_t i = 0; i < n; ++i) in[i] = std::ldexp(uniform(), static_cast<int>(rng() % 50) - 30);
    if (n > 8) in[3] = INFINITY, in[4] = 65519.9f, in[5] = 65520.0f, in[6] = 1.00048828125f, in[7] = 0x1.8p-24f;
    Array<uint16_t> out(n), truth(n);
    kernel({in.data(), out.data(), n});
    scalar({in.data(), truth.data(), n});
    expect(std::memcmp(out.data(), truth.data(), static_cast<size_t>(n) * 2) == 0, name, text(n));
    bool nearest = true;  // no other half is nearer
    for (int64_t i = 0; i < n; ++i) {
      const uint16_t h = out[i];
      if ((h & 0x7FFF) >= 0x7BFF || (h & 0x7FFF) == 0) continue;
      const double off = std::abs(double(float_of_half(h)) - in[i]);
      nearest &= off <= std::abs(double(float_of_half(static_cast<uint16_t>(h + 1))) - in[i]) &&
                 off <= std::abs(double(float_of_half(static_cast<uint16_t>(h - 1))) - in[i]);
    }
    expect(nearest, name + " nearest", text(n));
  }
}

void check(const std::string& name, const std::string& format, void (*kernel)(const WidenArgs&),
           void (*)(const WidenArgs&)) {
  for (int64_t n : {1, 7, 8, 9, 15, 16, 17, 1000}) {
    Weights w = make_weights(format, 1, n, 0);
    Array<float> out(n);
    kernel({w.w, out.data(), n});
    bool equal = true;
    for (int64_t i = 0; i < n; ++i) equal &= out[i] == w.dense[static_cast<size_t>(i)];
    expect(equal, name, text(n));
  }
}

void check(const std::string& name, const std::string&, void (*kernel)(const NormArgs&), void (*)(const NormArgs&)) {
  const bool layer = name.rfind("layer", 0) == 0;
  for (int64_t width : COLUMNS)
    for (float shift : {0.0f, 3.0f}) {
      const int64_t rows = 3;
      const double n = static_cast<double>(width);
      Array<float> x = random_floats(rows * width, shift - 1, shift + 1), weight = random_floats(width),
                   bias = random_floats(width), y(rows * width);
      kernel({x.data(), y.data(), weight.data(), layer ? bias.data() : nullptr, rows, width, 1e-3f});
      double worst = 0, bound = 1;
      for (int64_t r = 0; r < rows; ++r) {
        double mean = 0, size = 0, squares = 0;
        for (int64_t i = 0; i < width; ++i) mean += x[r * width + i] / n, size += std::abs(x[r * width + i]) / n;
        if (!layer) mean = 0;
        for (int64_t i = 0; i < width; ++i) squares += (x[r * width + i] - mean) * (x[r * width + i] - mean);
        const double factor = 1 / std::sqrt(squares / n + double(1e-3f));
        const double shifted = layer ? gamma(n + 1) * size : 0;  // error of the mean
        for (int64_t i = 0; i < width; ++i) {
          const double v = x[r * width + i], w = weight[i], scaled = (v - mean) * factor * w,
                       b = layer ? double(bias[i]) : 0;
          // The mean's error moves the variance by its square, and each rounded difference by a unit of |x - mean|.
          const double variance = (shifted * shifted + 2 * shifted * UNIT * size) * factor * factor;
          const double limit = factor * std::abs(w) * (shifted + UNIT * std::abs(v - mean)) +
                               (gamma(n + 8) + variance) * std::abs(scaled) +
                               2 * UNIT * (std::abs(scaled) + std::abs(b)) + TINY;
          const double off = std::abs(y[r * width + i] - (scaled + b));
          if (!(off / limit <= worst / bound)) worst = off, bound = limit;
        }
      }
      expect(worst <= bound, name, text(width, shift), worst, bound);
      Array<float> same(rows * width);
      std::memcpy(same.data(), x.data(), static_cast<size_t>(rows * width) * 4);
      kernel({same.data(), same.data(), weight.data(), layer ? bias.data() : nullptr, rows, width, 1e-3f});
      expect(std::memcmp(same.data(), y.data(), static_cast<size_t>(rows * width) * 4) == 0, name + " in place",
             text(width));
    }
}

void check(const std::string& name, const std::string&, void (*kernel)(const RopeArgs&), void (*)(const RopeArgs&)) {
  for (int64_t half : {1, 3, 7, 8, 9, 16, 20, 33})
    for (int64_t rest : {0, 5}) {
      const int64_t rows = 3, heads = 3, dim = 2 * half + rest, width = heads * dim + 11;
      Array<float> x = random_floats(rows * width), cos = random_floats(rows * half), sin = random_floats(rows * half),
                   y(rows * width);
      kernel({x.data(), y.data(), cos.data(), sin.data(), rows, width, heads, dim, 2 * half});
      bool good = true;
      for (int64_t i = 0; i < rows * width; ++i) {
        const int64_t r = i / width, c = i % width, at = c % dim;
        double value = x[i], limit = 0;
        if (c < heads * dim && at < 2 * half) {
          const int64_t pair = at % half, other = at < half ? i + half : i - half;
          const double a = x[i] * double(cos[r * half + pair]), b = x[other] * double(sin[r * half + pair]);
          value = at < half ? a - b : a + b, limit = gamma(3) * (std::abs(a) + std::abs(b)) + TINY;
        }
        good &= std::abs(y[i] - value) <= limit;
      }
      expect(good, name, text(half, rest));
      kernel({x.data(), x.data(), cos.data(), sin.data(), rows, width, heads, dim, 2 * half});
      expect(std::memcmp(x.data(), y.data(), static_cast<size_t>(rows * width) * 4) == 0, name + " in place",
             text(half, rest));
    }
}

void check(const std::string& name, const std::string& format, void (*kernel)(const AttentionArgs&),
           void (*)(const AttentionArgs&)) {
  struct Case {
    int64_t rows, past, window;
  };  // past -1: every row sees every key
  const Case cases[] = {{1, 0, 0},   {1, 63, 0},   {1, 64, 0},  {1, 200, 0}, {7, 0, 0},
                        {70, 0, 0},  {33, 60, 0},  {130, 5, 0}, {65, 70, 1}, {40, 100, 9},
                        {50, 0, 64}, {3, 130, 65}, {1, -1, 0},  {65, -1, 0}, {101, -1, 0}};
  for (const Case& c : cases)
    for (int64_t dim : {1, 7, 8, 9, 16, 20, 64, 72, 128, 256})
      for (int64_t heads : {1, 3}) {
        const int64_t keys = c.past < 0 ? c.rows : c.past + c.rows, stride = dim + 3, q_stride = heads * dim + 5,
                      out_stride = heads * dim + 1;
        Array<float> q = random_floats(c.rows * q_stride), out(c.rows * out_stride), parts(c.rows * out_stride);
        const std::string stored = format == "int8" ? "w8a16" : format;
        Weights k = make_weights(stored, keys, stride, 0), v = make_weights(stored, keys, stride, 0);
        const float scale = 1 / std::sqrt(static_cast<float>(dim));
        AttentionArgs a{q.data(),
                        k.w,
                        v.w,
                        static_cast<const float*>(k.scale),
                        static_cast<const float*>(v.scale),
                        out.data(),
                        q_stride,
                        stride,
                        out_stride,
                        heads,
                        dim,
                        keys,
                        c.past,
                        c.window,
                        0,
                        c.rows * heads,
                        scale,
                        work.data};
        kernel(a);
        double worst = 0, bound = 1;
        std::vector<double> score(static_cast<size_t>(keys)), sum(static_cast<size_t>(dim)),
            size(static_cast<size_t>(dim));
        for (int64_t p = 0; p < c.rows * heads; ++p) {
          const int64_t row = p / heads, head = p % heads, stop = c.past < 0 ? keys : c.past + row + 1;
          const int64_t start = c.past >= 0 && c.window > 0 ? std::max<int64_t>(0, stop - c.window) : 0;
          double top = -INFINITY, blur = 0, reach = 0, total = 0;
          for (int64_t j = start; j < stop; ++j) {
            double s = 0, spread = 0;
            for (int64_t i = 0; i < dim; ++i) {
              const double term = q[row * q_stride + head * dim + i] * k.dense[static_cast<size_t>(j * stride + i)];
              s += term, spread += std::abs(term);
            }
            score[static_cast<size_t>(j)] = s * scale;
            top = std::max(top, s * scale), reach = std::max(reach, std::abs(s * scale));
            blur = std::max(blur, gamma(static_cast<double>(dim) + 2) * spread * scale);
          }
          std::fill(sum.begin(), sum.end(), 0), std::fill(size.begin(), size.end(), 0);
          for (int64_t j = start; j < stop; ++j) {
            const double weight = std::exp(score[static_cast<size_t>(j)] - top);
            total += weight;
            for (size_t i = 0; i < sum.size(); ++i) {
              const double term = weight * v.dense[static_cast<size_t>(j * stride) + i];
              sum[i] += term, size[i] += std::abs(term);
            }
          }
          // Each weight is off by its score's error, the rounding of score - top, exp's own error and that of each
          // rescaling; then come the sums above and below the line.
          const double blocks = static_cast<double>(stop - start);
          const double weights =
              2 * (blur + 2 * UNIT * reach) + (2 + blocks / 8) * EXP_ERROR + 2 * gamma(2 * blocks + 4);
          for (int64_t i = 0; i < dim; ++i) {
            const double truth = sum[static_cast<size_t>(i)] / total,
                         limit = 2 * weights * size[static_cast<size_t>(i)] / total + 4 * UNIT * std::abs(truth) + TINY;
            const double off = std::abs(out[row * out_stride + head * dim + i] - truth);
            if (!(off / limit <= worst / bound)) worst = off, bound = limit;
          }
        }
        expect(worst <= bound, name, text(c.rows, c.past, c.window, dim, heads), worst, bound);
        a.out = parts.data();
        for (int64_t cut : {int64_t{0}, c.rows * heads / 3, c.rows * heads - 1})
          a.first = cut, a.last = c.rows * heads, kernel(a);
        a.first = 0, a.last = c.rows * heads / 3, kernel(a);
        expect(std::memcmp(out.data(), parts.data(), static_cast<size_t>(out.n) * 4) == 0, name + " split",
               text(c.rows, c.past, c.window, dim, heads));
      }
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Error of a sigmoid made of exp: its own slope times exp's error and the rounding of its argument.
double sigmoid_error(double x) {
  return sigmoid(x) * sigmoid(-x) * (EXP_ERROR + 8 * UNIT * std::abs(x)) + 4 * UNIT * sigmoid(x) + 1e-38;
}

void check(const std::string& name, const std::string&, void (*kernel)(const UnaryArgs&), void (*)(const UnaryArgs&)) {
  const bool tanh = name.find("tanh") != name.npos;
  for (int64_t n : {1, 7, 8, 9, 31, 100000}) {
    Array<float> x(n), y(n);
    for (int64_t i = 0; i < n; ++i)
      x[i] = n < 100 ? uniform(-3, 3) : -14 + 28 * static_cast<float>(i) / static_cast<float>(n);
    kernel({x.data(), y.data(), n});
    double worst = 0, bound = 1;
    for (int64_t i = 0; i < n; ++i) {
      const double v = x[i];
      double truth, limit;
      if (tanh) {
        const double u = 2 * std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v);
        truth = v * sigmoid(u), limit = std::abs(v) * (sigmoid_error(u) + 2 * UNIT) + TINY;
      } else {
        const double tail = 0.5 * std::erfc(std::abs(v) * std::sqrt(0.5));
        truth =
            v * (v < 0 ? tail
                       : 1 - tail);  // the fit's and exp's errors, the rounding of x^2 / 2 and of the argument of erfc
        limit = std::abs(v) * (tail * (3e-7 + EXP_ERROR + UNIT * (8 + 3 * v * v)) + (v < 0 ? 0 : 3 * UNIT)) +
                2 * UNIT * std::abs(truth) + TINY;
      }
      const double off = std::abs(y[i] - truth);
      if (!(off / limit <= worst / bound)) worst = off, bound = limit;
    }
    expect(worst <= bound, name, text(n), worst, bound);
  }
  Array<float> x(9), y(9);
  for (int64_t i = 0; i < 9; ++i) x[i] = 0;
  x[2] = NAN;
  kernel({x.data(), y.data(), 9});
  expect(std::isnan(y[2]) && y[1] == 0 && y[8] == 0, name + " NaN stays, 0 stays", "");
}

void check(const std::string& name, const std::string&, void (*kernel)(const SwigluArgs&),
           void (*)(const SwigluArgs&)) {
  for (int64_t width : COLUMNS) {
    const int64_t rows = 3;
    Array<float> x = random_floats(rows * 2 * width, -9, 9), y(rows * width);
    x[0] = -120, x[2 * width] = 120;
    kernel({x.data(), y.data(), rows, width});
    bool good = true;
    for (int64_t i = 0; i < rows * width; ++i) {
      const double g = x[i / width * 2 * width + i % width], up = x[i / width * 2 * width + width + i % width];
      good &= std::abs(y[i] - g * sigmoid(g) * up) <= std::abs(g * up) * sigmoid_error(g) + TINY;
    }
    expect(good, name, text(width));
  }
}

void check(const std::string& name, const std::string&, void (*kernel)(const AddArgs&), void (*)(const AddArgs&)) {
  for (int64_t width : COLUMNS)
    for (bool scaled : {false, true}) {
      const int64_t rows = 3;
      Array<float> x = random_floats(rows * width), y = random_floats(rows * width), scale = random_floats(width),
                   out(rows * width);
      kernel({x.data(), y.data(), scaled ? scale.data() : nullptr, out.data(), rows, width, 0.3f});
      bool good = true;
      for (int64_t i = 0; i < rows * width; ++i) {
        const double term = double(0.3f) * (scaled ? double(scale[i % width]) : 1) * y[i];
        good &= std::abs(out[i] - (x[i] + term)) <= gamma(3) * (std::abs(x[i]) + std::abs(term)) + TINY;
      }
      expect(good, name, text(width, scaled));
      kernel({x.data(), y.data(), scaled ? scale.data() : nullptr, x.data(), rows, width, 0.3f});
      expect(std::memcmp(x.data(), out.data(), static_cast<size_t>(rows * width) * 4) == 0, name + " in place",
             text(width, scaled));
    }
}

}  // namespace
}  // namespace eyespot

int main() {
  using namespace eyespot;
  for (Isa isa : ISAS)
    std::printf("%s: %s\n", isa_name(isa),
                isa_runs_here(isa) ? "executed" : "untested: this machine or build lacks it");
#define KERNEL(op, format, isa, type) \
  if (isa_runs_here(Isa::isa)) check(#op "_" #format "_" #isa, #format, op##_##format##_##isa, op##_##format##_scalar);
#include "kernels/kernels.inc"
#undef KERNEL
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
