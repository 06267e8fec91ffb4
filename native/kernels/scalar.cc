// scalar.cc: every kernel in plain C++: the meaning the vector kernels are tested against, and the engine of a machine
// without any of them. Knows no instruction set; written so that a compiler may vectorize the inner loops.
#include <cmath>
#include <cstring>

#include "kernels/half.h"
#include "kernels/kernels.h"

namespace eyespot {
namespace {

constexpr int64_t BLOCK = 512;  // columns of a weight row unpacked at a time
constexpr int64_t LANES = 8;    // partial sums a row keeps

// Unpackers: columns [at, at + n) of weight row j as float32, the per-row scale left out.
struct F32 {
  static void unpack(const LinearArgs& a, int64_t j, int64_t at, int64_t n, float* out) {
    std::memcpy(out, static_cast<const float*>(a.w) + j * a.k + at, static_cast<size_t>(n) * sizeof(float));
  }
  static float row_scale(const LinearArgs&, int64_t) { return 1.0f; }
};

struct F16 : F32 {
  static void unpack(const LinearArgs& a, int64_t j, int64_t at, int64_t n, float* out) {
    const uint16_t* row = static_cast<const uint16_t*>(a.w) + j * a.k + at;
    for (int64_t i = 0; i < n; ++i) out[i] = float_of_half(row[i]);
  }
};

struct Bf16 : F32 {
  static void unpack(const LinearArgs& a, int64_t j, int64_t at, int64_t n, float* out) {
    const uint16_t* row = static_cast<const uint16_t*>(a.w) + j * a.k + at;
    for (int64_t i = 0; i < n; ++i) out[i] = float_of_bf16(row[i]);
  }
};

struct W8 {
  static void unpack(const LinearArgs& a, int64_t j, int64_t at, int64_t n, float* out) {
    const int8_t* row = static_cast<const int8_t*>(a.w) + j * a.k + at;
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(row[i]);
  }
  static float row_scale(const LinearArgs& a, int64_t j) { return static_cast<const float*>(a.scale)[j]; }
};

struct W4 : F32 {
  static void unpack(const LinearArgs& a, int64_t j, int64_t at, int64_t n, float* out) {
    const int64_t groups = (a.k + (int64_t{1} << a.group_shift) - 1) >> a.group_shift;
    const uint8_t* row = static_cast<const uint8_t*>(a.w) + j * ((a.k + 1) / 2);
    const uint16_t* scale = static_cast<const uint16_t*>(a.scale) + j * groups;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t c = at + i;
      const int nibble = c % 2 ? row[c / 2] >> 4 : row[c / 2] & 15;
      out[i] = static_cast<float>(nibble - 8) * float_of_half(scale[c >> a.group_shift]);
    }
  }
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
  float* panel = static_cast<float*>(a.work);
  for (int64_t j = a.first; j < a.last; ++j) {
    for (int64_t at = 0; at < a.k; at += BLOCK) {
      const int64_t n = a.k - at < BLOCK ? a.k - at : BLOCK;
      Format::unpack(a, j, at, n, panel);
      for (int64_t r = 0; r < a.rows; ++r) {
        const float sum = dot(a.x + r * a.k + at, panel, n);
        float& y = a.y[r * a.m + j];
        y = at ? y + sum : sum;
      }
    }
    for (int64_t r = 0; r < a.rows; ++r) {
      float& y = a.y[r * a.m + j];
      y = y * Format::row_scale(a, j) + (a.bias ? a.bias[j] : 0.0f);
    }
  }
}

// Elements of a cache as float32, times the key's scale.
struct CacheF32 {
  static float at(const void* base, const float*, int64_t key, int64_t stride, int64_t i) {
    return static_cast<const float*>(base)[key * stride + i];
  }
};
struct CacheF16 {
  static float at(const void* base, const float*, int64_t key, int64_t stride, int64_t i) {
    return float_of_half(static_cast<const uint16_t*>(base)[key * stride + i]);
  }
};
struct CacheInt8 {
  static float at(const void* base, const float* scale, int64_t key, int64_t stride, int64_t i) {
    return static_cast<float>(static_cast<const int8_t*>(base)[key * stride + i]) * scale[key];
  }
};

template <class Cache>
void attention(const AttentionArgs& a) {
  float* sum = static_cast<float*>(a.work);
  for (int64_t p = a.first; p < a.last; ++p) {
    const int64_t row = p / a.heads, head = p % a.heads;
    const float* q = a.q + row * a.q_stride + head * a.head_dim;
    const int64_t stop = a.past < 0 ? a.keys : a.past + row + 1;
    const int64_t start = a.past >= 0 && a.window > 0 && stop > a.window ? stop - a.window : 0;
    for (int64_t i = 0; i < a.head_dim; ++i) sum[i] = 0;
    float top = -INFINITY, total = 0;
    for (int64_t j = start; j < stop; ++j) {  // online: sums are rescaled whenever a larger score comes
      float score = 0;
      for (int64_t i = 0; i < a.head_dim; ++i) score += q[i] * Cache::at(a.k, a.k_scale, j, a.kv_stride, i);
      score *= a.scale;
      if (score > top) {
        const float shrink = std::exp(top - score);
        total *= shrink;
        for (int64_t i = 0; i < a.head_dim; ++i) sum[i] *= shrink;
        top = score;
      }
      const float weight = std::exp(score - top);
      total += weight;
      for (int64_t i = 0; i < a.head_dim; ++i) sum[i] += weight * Cache::at(a.v, a.v_scale, j, a.kv_stride, i);
    }
    float* out = a.out + row * a.out_stride + head * a.head_dim;
    for (int64_t i = 0; i < a.head_dim; ++i) out[i] = sum[i] / total;
  }
}

}  // namespace

void linear_f32_scalar(const LinearArgs& a) { linear<F32>(a); }
void linear_f16_scalar(const LinearArgs& a) { linear<F16>(a); }
void linear_bf16_scalar(const LinearArgs& a) { linear<Bf16>(a); }
void linear_w8a16_scalar(const LinearArgs& a) { linear<W8>(a); }
void linear_w4a16_scalar(const LinearArgs& a) { linear<W4>(a); }

void linear_w8a8_scalar(const LinearA8Args& a) {
  for (int64_t j = a.first; j < a.last; ++j) {
    const int8_t* w = a.w + j * a.k;
    for (int64_t r = 0; r < a.rows; ++r) {
      const int8_t* x = a.x + r * a.x_stride;
      int32_t sum = 0;
      for (int64_t c = 0; c < a.k; ++c) sum += x[c] * w[c];
      a.y[r * a.m + j] = static_cast<float>(sum) * (a.x_scale[r] * a.w_scale[j]) + (a.bias ? a.bias[j] : 0.0f);
    }
  }
}

void quantize_int8_scalar(const QuantizeArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.k;
    int8_t* q = a.q + r * a.stride;
    uint32_t largest = 0;  // |x| as bits: orders like the value, and NaN comes out on top
    for (int64_t i = 0; i < a.k; ++i) {
      const uint32_t magnitude = bits_of_float(x[i]) & 0x7FFFFFFF;
      largest = magnitude > largest ? magnitude : largest;
    }
    std::memset(q, 0, static_cast<size_t>(a.stride));
    const float top = float_of_bits(largest);
    a.scale[r] = largest >= 0x7F800000 ? NAN : top < 1e-30f ? 0.0f : top / 127.0f;
    if (!(a.scale[r] > 0)) continue;
    const float inverse = 1.0f / a.scale[r];
    for (int64_t i = 0; i < a.k; ++i) {
      const float rounded = std::nearbyint(x[i] * inverse);
      q[i] = static_cast<int8_t>(rounded > 127 ? 127 : rounded < -127 ? -127 : rounded);
    }
  }
}

void narrow_f16_scalar(const NarrowArgs& a) {
  for (int64_t i = 0; i < a.n; ++i) a.out[i] = half_of_float(a.in[i]);
}

void widen_f32_scalar(const WidenArgs& a) { std::memcpy(a.out, a.in, static_cast<size_t>(a.n) * sizeof(float)); }

void widen_f16_scalar(const WidenArgs& a) {
  for (int64_t i = 0; i < a.n; ++i) a.out[i] = float_of_half(static_cast<const uint16_t*>(a.in)[i]);
}

void widen_bf16_scalar(const WidenArgs& a) {
  for (int64_t i = 0; i < a.n; ++i) a.out[i] = float_of_bf16(static_cast<const uint16_t*>(a.in)[i]);
}

void rms_norm_f32_scalar(const NormArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.width;
    float* y = a.y + r * a.width;
    double squares = 0;
    for (int64_t i = 0; i < a.width; ++i) squares += static_cast<double>(x[i]) * x[i];
    const float factor = static_cast<float>(1 / std::sqrt(squares / static_cast<double>(a.width) + a.eps));
    for (int64_t i = 0; i < a.width; ++i) y[i] = x[i] * factor * a.weight[i];
  }
}

void layer_norm_f32_scalar(const NormArgs& a) {
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

void rope_f32_scalar(const RopeArgs& a) {
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

void attention_f32_scalar(const AttentionArgs& a) { attention<CacheF32>(a); }
void attention_f16_scalar(const AttentionArgs& a) { attention<CacheF16>(a); }
void attention_int8_scalar(const AttentionArgs& a) { attention<CacheInt8>(a); }

void gelu_f32_scalar(const UnaryArgs& a) {
  for (int64_t i = 0; i < a.n; ++i) a.y[i] = 0.5f * a.x[i] * std::erfc(a.x[i] * -0.70710678118654752f);
}

void gelu_tanh_f32_scalar(const UnaryArgs& a) {
  for (int64_t i = 0; i < a.n; ++i) {
    const float x = a.x[i];
    a.y[i] = 0.5f * x * (1 + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
  }
}

void swiglu_f32_scalar(const SwigluArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float *gate = a.x + r * 2 * a.width, *up = gate + a.width;
    float* y = a.y + r * a.width;
    for (int64_t i = 0; i < a.width; ++i) y[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  }
}

void add_f32_scalar(const AddArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t i = 0; i < a.width; ++i) {
      const int64_t at = r * a.width + i;
      a.out[at] = a.x[at] + a.alpha * (a.scale ? a.y[at] * a.scale[i] : a.y[at]);
    }
}

}  // namespace eyespot
