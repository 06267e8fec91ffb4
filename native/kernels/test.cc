// test.cc: every kernel of kernels.inc of every instruction set that runs here, at sizes around each lane and tile boundary,
// on misaligned pointers. Float results are held against the same formula in double, within a bound derived from the length
// of the sum; integer and conversion results must equal the scalar kernel's bit for bit; results must not depend on how a
// call is split. An instruction set this machine lacks is reported as untested. Arguments, if any, are the sets to run.
#include "kernels/test.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/half.h"
#include "kernels/kernels.h"
#include "kernels/test_attention.h"
#include "kernels/test_packed.h"

namespace eyespot {
namespace {

// check(name, format, kernel, scalar): one for each type of arguments, which is how main chooses it.

// Numbers of one format, misaligned for vectors, and the same as double.
struct Numbers {
  std::vector<uint8_t> bytes;
  const void* data = nullptr;
  std::vector<double> dense;
};

template <class T, class Make>
Numbers fill(int64_t n, Make make) {
  Numbers out;
  out.bytes.resize(static_cast<size_t>(n + 1) * sizeof(T));
  T* at = reinterpret_cast<T*>(out.bytes.data()) + 1;
  for (int64_t i = 0; i < n; ++i) out.dense.push_back(make(at[i]));
  out.data = at;
  return out;
}

Numbers make_numbers(const std::string& format, int64_t n) {
  if (format == "f16") return fill<uint16_t>(n, [](uint16_t& v) { return float_of_half(v = half_of_float(uniform())); });
  if (format == "bf16")
    return fill<uint16_t>(n, [](uint16_t& v) {
      return float_of_bf16(v = static_cast<uint16_t>(bits_of_float(uniform()) >> 16));
    });
  return fill<float>(n, [](float& v) { return v = uniform(); });
}

void check(const std::string& name, const std::string& format, void (*kernel)(const LinearArgs&),
           void (*)(const LinearArgs&)) {
  for (int64_t k : COLUMNS)
    for (int64_t m : OUTPUTS)
      for (int64_t rows : ROWS) {
        const Numbers w = make_numbers(format, m * k);
        Array<float> x = random_floats(rows * k), bias = random_floats(m), y(rows * m), parts(rows * m);
        LinearArgs a{x.data(), w.data, rows % 2 ? bias.data() : nullptr, y.data(), rows, k, m, 0, m, work.data};
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
        expect(worst <= bound, name, text(k, m, rows), worst, bound);
        a.y = parts.data();
        const int64_t cut = m / 2;
        a.last = cut, kernel(a);
        a.first = cut, a.last = m, kernel(a);
        expect(std::memcmp(y.data(), parts.data(), static_cast<size_t>(rows * m) * 4) == 0, name + " split by columns",
               text(k, m, rows));
        Array<float> one(m);
        a.first = 0, a.rows = 1, a.x = x.data() + (rows - 1) * k, a.y = one.data();
        kernel(a);
        expect(std::memcmp(y.data() + (rows - 1) * m, one.data(), static_cast<size_t>(m) * 4) == 0,
               name + " a row alone", text(k, m, rows));
      }
}

void check(const std::string& name, const std::string&, void (*kernel)(const QuantizeArgs&),
           void (*scalar)(const QuantizeArgs&)) {
  for (int64_t k : COLUMNS)
    for (int64_t group : {0, 32, 64, 128})
      for (int64_t stride : {k, (k + A8_ALIGN - 1) / A8_ALIGN * A8_ALIGN}) {
        const int64_t rows = 9, groups = group ? (k + group - 1) / group : 1;
        Array<float> x = random_floats(rows * k, -3, 3);
        const float lift = 127.0f / 2;  // row 1: halves, to be rounded to even
        for (int64_t c = 0; c < k; ++c) {
          x[k + c] = c == 0 ? 127.0f : std::floor(uniform(-lift, lift)) + 0.5f;
          x[2 * k + c] = 0, x[3 * k + c] = 1e-33f, x[6 * k + c] = -127.0f;
        }
        x[4 * k + k / 2] = NAN, x[5 * k + k - 1] = -INFINITY, x[7 * k] = 3e38f;
        Array<int8_t> q(rows * stride), truth(rows * stride);
        Array<float> scale(rows * groups), true_scale(rows * groups);
        Array<int32_t> sum(rows * groups), true_sum(rows * groups);
        std::memset(q.data(), 1, static_cast<size_t>(rows * stride));
        kernel({x.data(), q.data(), scale.data(), sum.data(), rows, k, stride, group});
        scalar({x.data(), truth.data(), true_scale.data(), true_sum.data(), rows, k, stride, group});
        const std::string sizes = text(k, group, stride);
        expect(std::memcmp(q.data(), truth.data(), static_cast<size_t>(rows * stride)) == 0, name, sizes);
        bool scales = true, sums = true;
        for (int64_t i = 0; i < rows * groups; ++i) {
          const int64_t r = i / groups, from = i % groups * group, to = group ? std::min(k, from + group) : k;
          scales &= scale[i] == true_scale[i] || (std::isnan(scale[i]) && std::isnan(true_scale[i]));
          bool finite = true;
          int32_t total = 0;
          for (int64_t c = from; c < to; ++c) finite &= std::isfinite(x[r * k + c]), total += q[r * stride + c];
          scales &= std::isnan(scale[i]) == !finite && (scale[i] == 0) == (r == 2 || r == 3);
          sums &= sum[i] == true_sum[i] && sum[i] == total;
        }
        expect(scales && scale[groups] == 1.0f, name + " scales", sizes);
        expect(sums, name + " sums", sizes);
        if (k > 1)
          expect(q[stride + 1] == static_cast<int8_t>(std::nearbyint(x[k + 1])), name + " half to even", sizes);
        std::memset(q.data(), 1, static_cast<size_t>(rows * stride));
        kernel({x.data(), q.data(), scale.data(), nullptr, rows, k, stride, group});
        expect(std::memcmp(q.data(), truth.data(), static_cast<size_t>(rows * stride)) == 0, name + " without sums", sizes);
      }
}

void check(const std::string& name, const std::string& format, void (*kernel)(const WidenArgs&),
           void (*)(const WidenArgs&)) {
  for (int64_t n : {1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 1000}) {
    const Numbers in = make_numbers(format, n);
    Array<float> out(n);
    kernel({in.data, out.data(), n});
    bool equal = true;
    for (int64_t i = 0; i < n; ++i) equal &= out[i] == in.dense[static_cast<size_t>(i)];
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

int main(int count, char** names) {
  using namespace eyespot;
  for (Isa isa : ISAS) {
    const char* name = isa_name(isa);
    const bool runs = isa_runs_here(isa);
    const auto named = [&](const char* argument) { return std::strcmp(argument, name) == 0; };
    const bool wanted = count < 2 || std::any_of(names + 1, names + count, named);
    std::printf("%s: %s\n", name,
                !runs     ? "untested: this machine lacks it"
                : !wanted ? "untested: not asked for"
                          : "executed");
    std::fflush(stdout);
    if (!runs || !wanted) continue;
    const Kernels& kernels = kernels_for(isa);
    const std::string suffix = std::string("_") + name;
#define KERNEL(op, format, type) \
  check(#op "_" #format + suffix, #format, kernels.op##_##format, scalar::KERNELS.op##_##format);
#include "kernels/kernels.inc"
#undef KERNEL
    check_spans(name, kernels);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
