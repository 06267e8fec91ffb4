// test_packed.cc: the linears over packed weights: each against the same formula in double and against the scalar kernel
// (int8 rows: bit for bit), for every kind of groups, all tails of rows, columns and panels, and any split of the work.
#include "kernels/test_packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/half.h"
#include "kernels/test.h"

namespace eyespot {
namespace {

// Packed weights that end with their allocation, and the same numbers as double [m][k].
struct Weights {
  Aligned<uint8_t> bytes;
  Packed packed;
  std::vector<double> dense, size;  // size: |w|, with minimum the sum of both parts
};

Weights make(int bits, int64_t m, int64_t k, int64_t group, bool minimum, bool extreme) {
  const int64_t width = group ? group : (k + CHUNK - 1) / CHUNK * CHUNK, groups = (k + width - 1) / width;
  const int64_t head = PANEL * (group ? 2 : 4) + (minimum ? PANEL * 2 : 0), numbers = width * PANEL * bits / 8;
  const int64_t panels = (m + PANEL - 1) / PANEL, panel_bytes = groups * (head + numbers);
  Weights out{Aligned<uint8_t>(panels * panel_bytes), {}, {}, {}};
  out.dense.resize(static_cast<size_t>(m * k)), out.size = out.dense;
  for (int64_t panel = 0; panel < panels; ++panel)
    for (int64_t g = 0; g < groups; ++g) {
      uint8_t* at = out.bytes.data() + panel * panel_bytes + g * (head + numbers);
      for (int64_t i = 0; i < numbers; ++i) {
        at[head + i] = static_cast<uint8_t>(extreme ? bits == 8 ? 0x81 : 0x0F : rng());
        if (bits == 8 && at[head + i] == 0x80) at[head + i] = 0;  // -128 does not occur
      }
      for (int64_t lane = 0; lane < PANEL; ++lane) {
        double scale, low = 0;
        if (group == 0) {
          const float value = uniform(0.001f, 0.01f);
          std::memcpy(at + 4 * lane, &value, 4), scale = value;
        } else {
          const uint16_t value = half_of_float(uniform(-0.1f, 0.1f));
          std::memcpy(at + 2 * lane, &value, 2), scale = float_of_half(value);
        }
        if (minimum) {
          const uint16_t value = half_of_float(uniform(-0.5f, 0.5f));
          std::memcpy(at + 2 * PANEL + 2 * lane, &value, 2), low = float_of_half(value);
        }
        const int64_t j = panel * PANEL + lane;
        for (int64_t c = g * width; c < std::min(k, (g + 1) * width) && j < m; ++c) {
          const int64_t within = c - g * width;
          int q;
          if (bits == 8) {
            q = static_cast<int8_t>(at[head + within / 4 * 64 + lane * 4 + within % 4]);
          } else {
            const uint8_t both = at[head + within / 8 * 64 + lane * 4 + within % 4];
            q = (within % 8 < 4 ? both & 15 : both >> 4) - (minimum ? 0 : 8);
          }
          out.dense[static_cast<size_t>(j * k + c)] = q * scale + low;
          out.size[static_cast<size_t>(j * k + c)] = std::abs(q * scale) + std::abs(low);
        }
      }
    }
  out.packed = {out.bytes.data(), m, k, group, minimum};
  return out;
}

// Calls body(m, k, group, minimum, rows) for sizes around each boundary; a few large ones for blocks of rows and columns.
template <class Body>
void for_sizes(int bits, const Body& body) {
  for (int64_t group : {0, 32, 64, 128})
    for (bool minimum : {false, true}) {
      if (bits == 4 ? group == 0 : minimum) continue;
      for (int64_t k : {1, 4, 9, 31, 32, 33, 65, 100, 128, 129, 161, 257})
        for (int64_t m : {1, 15, 16, 17, 33})
          for (int64_t rows : {1, 2, 3, 4, 5, 7, 9}) body(m, k, group, minimum, rows);
      for (int64_t rows : {1, 40, 53}) body(35, 12345, group, minimum, rows);
    }
}

bool equal(Array<float>& a, Array<float>& b, int64_t n) {
  return std::memcmp(a.data(), b.data(), static_cast<size_t>(n) * sizeof(float)) == 0;
}

// The kernel's y in parts must be the whole one's: by panels, and the last row alone.
template <class Args, class Rows>
void check_splits(const std::string& name, const std::string& sizes, void (*kernel)(const Args&), Args a,
                  const Rows& last_row, Array<float>& y) {
  const int64_t m = a.w.m, rows = a.rows, cut = m / 2 / PANEL * PANEL;
  Array<float> parts(rows * m), one(m);
  a.y = parts.data(), a.first = 0, a.last = cut;
  if (cut > 0) kernel(a);
  a.first = cut, a.last = m, kernel(a);
  expect(equal(y, parts, rows * m), name + " split by panels", sizes);
  a = last_row(a), a.rows = 1, a.y = one.data(), a.first = 0;
  kernel(a);
  expect(std::memcmp(y.data() + (rows - 1) * m, one.data(), static_cast<size_t>(m) * 4) == 0, name + " a row alone", sizes);
}

}  // namespace

void check(const std::string& name, const std::string& format, void (*kernel)(const LinearA16Args&),
           void (*)(const LinearA16Args&)) {
  const int bits = format[1] - '0';
  for_sizes(bits, [&](int64_t m, int64_t k, int64_t group, bool minimum, int64_t rows) {
    const std::string sizes = text(m, k, group, minimum, rows);
    Weights w = make(bits, m, k, group, minimum, false);
    Array<float> x = random_floats(rows * k), bias = random_floats(m), y(rows * m);
    LinearA16Args a{x.data(), w.packed, rows % 2 ? bias.data() : nullptr, y.data(), rows, 0, m, work.data};
    kernel(a);
    double worst = 0, bound = 1;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < m; ++j) {
        double sum = a.bias ? double(bias[j]) : 0, size = std::abs(sum);
        for (int64_t c = 0; c < k; ++c) {
          const size_t at = static_cast<size_t>(j * k + c);
          sum += double(x[r * k + c]) * w.dense[at], size += std::abs(double(x[r * k + c])) * w.size[at];
        }
        const double off = std::abs(y[r * m + j] - sum), limit = gamma(static_cast<double>(k) + 4) * size + TINY;
        if (!(off / limit <= worst / bound)) worst = off, bound = limit;
      }
    expect(worst <= bound, name, sizes, worst, bound);
    check_splits(name, sizes, kernel, a, [&](LinearA16Args b) { return b.x += (rows - 1) * k, b; }, y);
  });
}

void check(const std::string& name, const std::string& format, void (*kernel)(const LinearA8Args&),
           void (*scalar)(const LinearA8Args&)) {
  const int bits = format[1] - '0';
  for_sizes(bits, [&](int64_t m, int64_t k, int64_t group, bool minimum, int64_t rows) {
    const std::string sizes = text(m, k, group, minimum, rows);
    const bool extreme = rows == 3;  // the largest sums there are
    Weights w = make(bits, m, k, group, minimum, extreme);
    const int64_t stride = (k + A8_ALIGN - 1) / A8_ALIGN * A8_ALIGN, width = group ? group : stride;
    const int64_t groups = (k + width - 1) / width;
    Array<int8_t> x(rows * stride);
    Array<float> scale = random_floats(rows * groups, 0.001f, 0.1f), bias = random_floats(m), y(rows * m);
    Array<int32_t> sum(rows * groups);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < k; ++c) {
        const int q = extreme ? (r == 0 ? 127 : -127) : static_cast<int>(rng() % 255) - 127;
        x[r * stride + c] = static_cast<int8_t>(q), sum[r * groups + c / width] += q;
      }
    LinearA8Args a{x.data(), scale.data(), sum.data(), w.packed,  rows % 2 ? bias.data() : nullptr, y.data(), rows,
                   stride,   0,            m,          work.data};
    kernel(a);
    double worst = 0, bound = 1;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < m; ++j) {
        double truth = a.bias ? double(bias[j]) : 0, size = std::abs(truth);
        for (int64_t c = 0; c < k; ++c) {
          const size_t at = static_cast<size_t>(j * k + c);
          const double v = x[r * stride + c] * double(scale[r * groups + c / width]);
          truth += v * w.dense[at], size += std::abs(v) * w.size[at];
        }
        const double off = std::abs(y[r * m + j] - truth);
        const double limit = gamma(2 * static_cast<double>(groups) + 5) * size + TINY;
        if (!(off / limit <= worst / bound)) worst = off, bound = limit;
      }
    expect(worst <= bound, name, sizes, worst, bound);
    Array<float> truth(rows * m);
    LinearA8Args b = a;
    b.y = truth.data(), scalar(b);
    expect(equal(y, truth, rows * m), name + " equals scalar", sizes);
    check_splits(
        name, sizes, kernel, a,
        [&](LinearA8Args c) {
          c.x += (rows - 1) * stride, c.x_scale += (rows - 1) * groups, c.x_sum += (rows - 1) * groups;
          return c;
        },
        y);
  });
}

}  // namespace eyespot
