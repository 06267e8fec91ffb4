// scalar.cc: every kernel in plain C++: the meaning the vector kernels are tested against, and the engine of a machine
// without any of them. Knows no instruction set; written so that a compiler may vectorize the inner loops.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/half.h"
#include "kernels/kernels.h"
#include "kernels/scalar_packed.h"

namespace eyespot::scalar {
namespace {

constexpr int64_t BLOCK = 512;  // columns of a weight row unpacked at a time
constexpr int64_t LANES = 8;    // partial sums a row keeps

// What is stored, and how it becomes a float.
struct F32 {
  using T = float;
  static float widen(T v) { return v; }
};
struct F16 {
  using T = uint16_t;
  static float widen(T v) { return float_of_half(v); }
};
struct Bf16 {
  using T = uint16_t;
  static float widen(T v) { return float_of_bf16(v); }
};
struct Int8 {
  using T = int8_t;
  static constexpr int64_t MOST = 127;
  static float widen(T v) { return static_cast<float>(v); }
};
struct Int16 {
  using T = int16_t;
  static constexpr int64_t MOST = KV_WORD;
  static float widen(T v) { return static_cast<float>(v); }
};

float dot(const float* x, const float* w, int64_t n) {
  float lanes[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int64_t l = 0; l < LANES; ++l) lanes[l] += x[i + l] * w[i + l];
  for (int64_t l = 0; i + l < n; ++l) lanes[l] += x[i + l] * w[i + l];
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

template <class Format>
void linear(const LinearArgs& a) {
  float* row = static_cast<float*>(a.work);
  for (int64_t j = a.first; j < a.last; ++j) {
    const auto* w = static_cast<const typename Format::T*>(a.w) + j * a.k;
    for (int64_t at = 0; at < a.k; at += BLOCK) {
      const int64_t n = a.k - at < BLOCK ? a.k - at : BLOCK;
      for (int64_t i = 0; i < n; ++i) row[i] = Format::widen(w[at + i]);
      for (int64_t r = 0; r < a.rows; ++r) {
        float& y = a.y[r * a.m + j];
        y = (at ? y : 0.0f) + dot(a.x + r * a.k + at, row, n);
        if (a.bias && at + n == a.k) y += a.bias[j];
      }
    }
  }
}

template <class Format>
void widen(const WidenArgs& a) {
  for (int64_t i = 0; i < a.n; ++i) a.out[i] = Format::widen(static_cast<const typename Format::T*>(a.in)[i]);
}

// One group of n numbers, to -MOST..MOST. |x| / scale is at most MOST (1 + 2^-22), which rounds to MOST: no clamp.
template <class Format>
int32_t quantize_group(const float* x, int64_t n, typename Format::T* q, float& scale) {
  uint32_t largest = 0;  // |x| as bits: orders like the value, and NaN comes out on top
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t magnitude = bits_of_float(x[i]) & 0x7FFFFFFF;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float top = float_of_bits(largest);
  scale = largest >= 0x7F800000 ? NAN : top < 1e-30f ? 0.0f : top / Format::MOST;
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += q[i] = scale > 0 ? static_cast<typename Format::T>(std::nearbyint(x[i] * inverse)) : 0;
  return sum;
}

// Places of a cache: number i of a key's K and V.
template <class Format>
int64_t k_place(int64_t key, int64_t i, int64_t head_dim) {
  return (key / PANEL * head_dim + i) * PANEL + key % PANEL;
}
template <class Format>
int64_t v_place(int64_t key, int64_t i, int64_t head_dim) {
  return key * head_dim + i;
}
int64_t padded(int64_t head_dim) { return (head_dim + PANEL - 1) / PANEL * PANEL; }
template <>
int64_t k_place<Int16>(int64_t key, int64_t i, int64_t head_dim) {
  return 2 * ((key / PANEL * (padded(head_dim) / 2) + i / 2) * PANEL + key % PANEL) + i % 2;
}
template <>
int64_t v_place<Int16>(int64_t key, int64_t i, int64_t head_dim) {
  return 2 * (key / 2 * padded(head_dim) + i) + key % 2;
}

// One query's softmax over the keys of a span.
template <class Format>
void attend_span(const AttentionArgs& a, int64_t p, int64_t span, float& top, float& total, float* sums) {
  constexpr bool SCALED = std::is_same_v<Format, Int8> || std::is_same_v<Format, Int16>;
  const auto* k = static_cast<const typename Format::T*>(a.cache.k);
  const auto* v = static_cast<const typename Format::T*>(a.cache.v);
  const int64_t row = p / a.heads, head = p % a.heads;
  const float* q = a.q + row * a.q_stride + head * a.head_dim;
  int64_t start = 0, stop = a.past < 0 ? a.keys : a.past + row + 1;
  if (a.past >= 0 && a.window > 0 && stop > a.window) start = stop - a.window;
  start = start > span * SPAN ? start : span * SPAN;
  stop = stop < (span + 1) * SPAN ? stop : (span + 1) * SPAN;
  top = -INFINITY, total = 0;
  for (int64_t i = 0; i < a.head_dim; ++i) sums[i] = 0;
  float weights[SPAN];
  for (int64_t j = start; j < stop; ++j) {
    float score = 0;
    for (int64_t i = 0; i < a.head_dim; ++i) score += q[i] * Format::widen(k[k_place<Format>(j, i, a.head_dim)]);
    score *= SCALED ? a.scale * a.cache.k_scale[j] : a.scale;
    top = score > top ? score : top;
    weights[j - start] = score;
  }
  for (int64_t j = start; j < stop; ++j) {
    const float weight = std::exp(weights[j - start] - (top == -INFINITY ? 0.0f : top));
    const float scaled = SCALED ? weight * a.cache.v_scale[j] : weight;
    total += weight;
    for (int64_t i = 0; i < a.head_dim; ++i) sums[i] += scaled * Format::widen(v[v_place<Format>(j, i, a.head_dim)]);
  }
}

// Adds one span's softmax to that of the spans before it, which began as -Inf and zeros.
void add_span(float& top, float& total, float* sums, float span_top, float span_total, const float* span_sums,
              int64_t head_dim) {
  if (span_total == 0) return;  // no key was seen: a span whose scores are all NaN has top -Inf too, but a total of NaN
  const float next = span_top > top ? span_top : top, shrink = std::exp(top - next),
              span_shrink = std::exp(span_top - next);
  total = total * shrink + span_total * span_shrink;
  for (int64_t i = 0; i < head_dim; ++i) sums[i] = sums[i] * shrink + span_sums[i] * span_shrink;
  top = next;
}

template <class Format>
void attention(const AttentionArgs& a) {
  for (int64_t p = a.first; p < a.last; ++p) {
    const int64_t row = p / a.heads, stop = a.past < 0 ? a.keys : a.past + row + 1;
    float top = -INFINITY, total = 0, span_top, span_total;
    float* out = a.out + row * a.out_stride + p % a.heads * a.head_dim;
    float* sums = static_cast<float*>(a.work);
    for (int64_t i = 0; i < a.head_dim; ++i) out[i] = 0;
    for (int64_t span = 0; span * SPAN < stop; ++span) {
      attend_span<Format>(a, p, span, span_top, span_total, sums);
      add_span(top, total, out, span_top, span_total, sums, a.head_dim);
    }
    for (int64_t i = 0; i < a.head_dim; ++i) out[i] /= total;
  }
}

template <class Format>
void attention_span(const AttentionArgs& a) {
  float* partial = a.partial;
  for (int64_t p = a.first; p < a.last; ++p, partial += a.head_dim + 2)
    attend_span<Format>(a, p, a.span, partial[0], partial[1], partial + 2);
}

void linear_f32(const LinearArgs& a) { linear<F32>(a); }
void linear_f16(const LinearArgs& a) { linear<F16>(a); }
void linear_bf16(const LinearArgs& a) { linear<Bf16>(a); }

void quantize_int8(const QuantizeArgs& a) {
  const int64_t group = a.group ? a.group : a.k, groups = (a.k + group - 1) / group;
  for (int64_t r = 0; r < a.rows; ++r) {
    int8_t* q = a.q + r * a.stride;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = g * group, n = a.k - at < group ? a.k - at : group;
      const int32_t sum = quantize_group<Int8>(a.x + r * a.k + at, n, q + at, a.scale[r * groups + g]);
      if (a.sum) a.sum[r * groups + g] = sum;
    }
    std::memset(q + a.k, 0, static_cast<size_t>(a.stride - a.k));
  }
}

void widen_f32(const WidenArgs& a) { widen<F32>(a); }
void widen_f16(const WidenArgs& a) { widen<F16>(a); }
void widen_bf16(const WidenArgs& a) { widen<Bf16>(a); }

void rms_norm_f32(const NormArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.width;
    float* y = a.y + r * a.width;
    double squares = 0;
    for (int64_t i = 0; i < a.width; ++i) squares += static_cast<double>(x[i]) * x[i];
    const float factor = static_cast<float>(1 / std::sqrt(squares / static_cast<double>(a.width) + a.eps));
    for (int64_t i = 0; i < a.width; ++i) y[i] = x[i] * factor * a.weight[i];
  }
}

void layer_norm_f32(const NormArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.width;
    float* y = a.y + r * a.width;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < a.width; ++i) sum += x[i];
    const double mean = sum / static_cast<double>(a.width);
    for (int64_t i = 0; i < a.width; ++i) squares += (x[i] - mean) * (x[i] - mean);
    const double factor = 1 / std::sqrt(squares / static_cast<double>(a.width) + a.eps);
    for (int64_t i = 0; i < a.width; ++i) y[i] = static_cast<float>((x[i] - mean) * factor) * a.weight[i] + a.bias[i];
  }
}

void rope_f32(const RopeArgs& a) {
  const int64_t half = a.rotary / 2;
  for (int64_t r = 0; r < a.rows; ++r) {
    const float *x = a.x + r * a.width, *cos = a.cos + r * half, *sin = a.sin + r * half;
    float* y = a.y + r * a.width;
    if (x != y) std::memcpy(y, x, static_cast<size_t>(a.width) * sizeof(float));
    for (int64_t h = 0; h < a.heads; ++h, y += a.head_dim)
      for (int64_t i = 0; i < half; ++i) {
        const float left = y[i], right = y[i + half];
        y[i] = left * cos[i] - right * sin[i];
        y[i + half] = right * cos[i] + left * sin[i];
      }
  }
}

void store_f32(const StoreArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t i = 0; i < a.head_dim; ++i) {
      static_cast<float*>(a.cache.k)[k_place<F32>(a.at + r, i, a.head_dim)] = a.k[r * a.stride + i];
      static_cast<float*>(a.cache.v)[v_place<F32>(a.at + r, i, a.head_dim)] = a.v[r * a.stride + i];
    }
}

void store_f16(const StoreArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t i = 0; i < a.head_dim; ++i) {
      static_cast<uint16_t*>(a.cache.k)[k_place<F16>(a.at + r, i, a.head_dim)] = half_of_float(a.k[r * a.stride + i]);
      static_cast<uint16_t*>(a.cache.v)[v_place<F16>(a.at + r, i, a.head_dim)] = half_of_float(a.v[r * a.stride + i]);
    }
}

template <class Format>
void store_scaled(const StoreArgs& a) {
  using T = typename Format::T;
  T *k = static_cast<T*>(a.cache.k), *v = static_cast<T*>(a.cache.v), row[HEAD_DIM];
  for (int64_t r = 0; r < a.rows; ++r) {
    const int64_t key = a.at + r;
    quantize_group<Format>(a.k + r * a.stride, a.head_dim, row, a.cache.k_scale[key]);
    for (int64_t i = 0; i < a.head_dim; ++i) k[k_place<Format>(key, i, a.head_dim)] = row[i];
    quantize_group<Format>(a.v + r * a.stride, a.head_dim, row, a.cache.v_scale[key]);
    for (int64_t i = 0; i < a.head_dim; ++i) v[v_place<Format>(key, i, a.head_dim)] = row[i];
  }
}

void store_int8(const StoreArgs& a) { store_scaled<Int8>(a); }
void store_int16(const StoreArgs& a) { store_scaled<Int16>(a); }

void attention_f32(const AttentionArgs& a) { attention<F32>(a); }
void attention_f16(const AttentionArgs& a) { attention<F16>(a); }
void attention_int8(const AttentionArgs& a) { attention<Int8>(a); }
void attention_int16(const AttentionArgs& a) { attention<Int16>(a); }
void attention_span_f32(const AttentionArgs& a) { attention_span<F32>(a); }
void attention_span_f16(const AttentionArgs& a) { attention_span<F16>(a); }
void attention_span_int8(const AttentionArgs& a) { attention_span<Int8>(a); }

void merge_f32(const MergeArgs& a) {
  float top = -INFINITY, total = 0;
  for (int64_t i = 0; i < a.head_dim; ++i) a.out[i] = 0;
  for (int64_t s = 0; s < a.spans; ++s) {
    const float* partial = a.partial + s * a.stride;
    add_span(top, total, a.out, partial[0], partial[1], partial + 2, a.head_dim);
  }
  for (int64_t i = 0; i < a.head_dim; ++i) a.out[i] /= total;
}

void gelu_f32(const UnaryArgs& a) {
  for (int64_t i = 0; i < a.n; ++i) a.y[i] = 0.5f * a.x[i] * std::erfc(a.x[i] * -0.70710678118654752f);
}

void gelu_tanh_f32(const UnaryArgs& a) {
  for (int64_t i = 0; i < a.n; ++i) {
    const float x = a.x[i];
    a.y[i] = 0.5f * x * (1 + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
  }
}

void swiglu_f32(const SwigluArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float *gate = a.x + r * 2 * a.width, *up = gate + a.width;
    float* y = a.y + r * a.width;
    for (int64_t i = 0; i < a.width; ++i) y[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  }
}

void add_f32(const AddArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t i = 0; i < a.width; ++i) {
      const int64_t at = r * a.width + i;
      a.out[at] = a.x[at] + a.alpha * (a.scale ? a.y[at] * a.scale[i] : a.y[at]);
    }
}

}  // namespace

const Kernels KERNELS = {
#define KERNEL(op, format, type) op##_##format,
#include "kernels/kernels.inc"
#undef KERNEL
};

}  // namespace eyespot::scalar
