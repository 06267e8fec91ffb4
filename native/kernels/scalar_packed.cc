// scalar_packed.cc: the linears over packed weights, number by number as generic.h describes the layout: what the vector
// kernels are tested against, and shares no code with them.
#include "kernels/scalar_packed.h"

#include <cmath>
#include <cstring>

#include "kernels/half.h"

namespace eyespot::scalar {
namespace {

// Reads one row of packed weights.
class Row {
 public:
  Row(const Packed& w, int bits, int64_t j)
      : bits_(bits), minimum_(w.minimum), group_(w.group ? w.group : (w.k + CHUNK - 1) / CHUNK * CHUNK),
        whole_(w.group == 0), lane_(j % PANEL) {
    head_ = PANEL * (whole_ ? 4 : 2) + (minimum_ ? PANEL * 2 : 0);
    group_bytes_ = head_ + group_ * PANEL * bits / 8;
    groups = (w.k + group_ - 1) / group_;
    panel_ = w.data + j / PANEL * groups * group_bytes_;
  }

  int64_t groups;
  int64_t group() const { return group_; }

  float scale(int64_t g) const {
    const uint8_t* at = panel_ + g * group_bytes_;
    return whole_ ? item<float>(at, lane_) : float_of_half(item<uint16_t>(at, lane_));
  }
  float minimum(int64_t g) const {
    return float_of_half(item<uint16_t>(panel_ + g * group_bytes_ + PANEL * 2, lane_));
  }
  int number(int64_t c) const {  // less what stands for zero
    const int64_t within = c % group_, chunk = within / CHUNK, at = within % CHUNK;
    const uint8_t* numbers = panel_ + c / group_ * group_bytes_ + head_ + chunk * CHUNK * PANEL * bits_ / 8;
    if (bits_ == 8) return static_cast<int8_t>(numbers[at / 4 * PANEL * 4 + lane_ * 4 + at % 4]);
    const uint8_t both = numbers[at / 8 * PANEL * 4 + lane_ * 4 + at % 4];
    return (at % 8 < 4 ? both & 15 : both >> 4) - (minimum_ ? 0 : 8);
  }

 private:
  template <class T>
  static T item(const uint8_t* at, int64_t i) {
    T value;
    std::memcpy(&value, at + i * static_cast<int64_t>(sizeof value), sizeof value);
    return value;
  }
  const int bits_;
  const bool minimum_;
  const int64_t group_;
  const bool whole_;
  const int64_t lane_;
  int64_t head_, group_bytes_;
  const uint8_t* panel_;
};

void float_rows(const LinearA16Args& a, int bits) {
  for (int64_t j = a.first; j < a.last; ++j) {
    const Row row(a.w, bits, j);
    for (int64_t r = 0; r < a.rows; ++r) {
      const float* x = a.x + r * a.w.k;
      float sum = 0;
      for (int64_t from = 0; from < a.w.k; from += CHUNK) {
        const int64_t g = from / row.group(), stop = from + CHUNK < a.w.k ? from + CHUNK : a.w.k;
        const float scale = row.scale(g), minimum = a.w.minimum ? row.minimum(g) : 0;
        float chunk = 0;
        for (int64_t c = from; c < stop; ++c) {
          const float q = static_cast<float>(row.number(c));
          chunk = std::fma(x[c], a.w.minimum ? std::fma(q, scale, minimum) : q, chunk);
        }
        sum = a.w.minimum ? sum + chunk : std::fma(chunk, scale, sum);
      }
      a.y[r * a.w.m + j] = a.bias ? sum + a.bias[j] : sum;
    }
  }
}

void int8_rows(const LinearA8Args& a, int bits) {
  for (int64_t j = a.first; j < a.last; ++j) {
    const Row row(a.w, bits, j);
    for (int64_t r = 0; r < a.rows; ++r) {
      float sum = 0;
      for (int64_t g = 0; g < row.groups; ++g) {
        const int64_t from = g * row.group(), stop = from + row.group() < a.w.k ? from + row.group() : a.w.k;
        int32_t dot = 0;
        for (int64_t c = from; c < stop; ++c) dot += a.x[r * a.x_stride + c] * row.number(c);
        const float x_scale = a.x_scale[r * row.groups + g];
        sum = std::fma(static_cast<float>(dot), x_scale * row.scale(g), sum);
        if (a.w.minimum)
          sum = std::fma(x_scale * static_cast<float>(a.x_sum[r * row.groups + g]), row.minimum(g), sum);
      }
      a.y[r * a.w.m + j] = a.bias ? sum + a.bias[j] : sum;
    }
  }
}

}  // namespace

void linear_w8a16(const LinearA16Args& a) { float_rows(a, 8); }
void linear_w4a16(const LinearA16Args& a) { float_rows(a, 4); }
void linear_w8a8(const LinearA8Args& a) { int8_rows(a, 8); }
void linear_w4a8(const LinearA8Args& a) { int8_rows(a, 4); }

}  // namespace eyespot::scalar
