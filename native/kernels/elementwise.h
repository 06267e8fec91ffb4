// elementwise.h: norms, rope, activations, add, widen and quantize, for any vector of vector_*.h; and the loop over a row
// that the other bodies share. The order of each sum is fixed by its length: lanes over the columns, then pairwise.
#ifndef EYESPOT_KERNELS_ELEMENTWISE_H_
#define EYESPOT_KERNELS_ELEMENTWISE_H_

#include <cstring>
#include <initializer_list>

#include "kernels/generic.h"
#include "kernels/half.h"

namespace eyespot {
namespace {

// ---- rows of numbers ----

// What is stored and how W of it, or the first n, become floats.
struct F32 {
  using T = float;
  static F load(const T* p) { return eyespot::load(p); }
  static F load_first(const T* p, int64_t n) { return eyespot::load_first(p, n); }
};
struct F16 {
  using T = uint16_t;
  static F load(const T* p) { return load_half(p); }
  static F load_first(const T* p, int64_t n) { return load_half_first(p, n); }
};
struct Bf16 {
  using T = uint16_t;
  static F load(const T* p) { return load_bf16(p); }
  static F load_first(const T* p, int64_t n) { return load_bf16_first(p, n); }
};
struct Int8 {
  using T = int8_t;
  static F load(const T* p) { return load_int8(p); }
  static F load_first(const T* p, int64_t n) { return load_int8_first(p, n); }
};
struct Int16 {};  // pairs of words: attention.h

// Which lanes a step of a row works on: all W, or the n < W that are left.
struct Full {
  template <class Format = F32>
  F load(const typename Format::T* p) const { return Format::load(p); }
  F keep(F v) const { return v; }
  void store(float* p, F v) const { eyespot::store(p, v); }
  void store(uint16_t* p, F v) const { store_half(p, v); }
  void store(int8_t* p, I v) const { store_int8(p, v); }
  void store(int16_t* p, I v) const { store_int16(p, v); }
};
struct Part {
  int64_t n;
  template <class Format = F32>
  F load(const typename Format::T* p) const { return Format::load_first(p, n); }
  F keep(F v) const { return choose(first(n), v, all(0.0f)); }
  void store(float* p, F v) const { store_first(p, v, n); }
  void store(uint16_t* p, F v) const { store_half_first(p, v, n); }
  void store(int8_t* p, I v) const { store_int8_first(p, v, n); }
  void store(int16_t* p, I v) const { store_int16_first(p, v, n); }
};

// step(i, lanes) for a row of n numbers, W at a time.
template <class Step>
inline void each(int64_t n, const Step& step) {
  int64_t i = 0;
  for (; i + W <= n; i += W) step(i, Full{});
  if (i < n) step(i, Part{n - i});
}

// The sum of term(sum, i, lanes), which adds a vector of terms to a sum: four sums, so that none waits for another.
template <class Term>
inline float sum_of(int64_t n, const Term& term) {
  F sums[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (int s = 0; s < 4; ++s) sums[s] = term(sums[s], i + s * W, Full{});
  each(n - i, [&](int64_t at, auto lanes) { sums[0] = term(sums[0], i + at, lanes); });
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// ---- functions of a vector ----

// e^x of -88.03 <= x <= 88 to 1e-7 relative; 0 below -87.69; NaN of NaN. x = n ln 2 + r; our own fit of degree 6 to e^r, off
// by 2e-9 for |r| <= ln 2 / 2, the rest is rounding. The sum with 1.5 * 2^23 rounds to whole numbers, and its last bits are
// n + 127: an exponent.
inline F exp_within(F x) {
  const F magic = all(0x1.8p23f + 127), v = fma(x, all(1.44269504f), magic), n = v - magic;
  F r = fnma(n, all(0.693359375f), x);  // ln 2 in two parts, the first exact in ten bits
  r = fnma(n, all(-2.12194440e-4f), r);
  F p = all(0.0013843607157468796f);
  for (float c : {0.008374195545911789f, 0.04166800528764725f, 0.16666430234909058f, 0.4999999403953552f, 1.0f, 1.0f})
    p = fma(p, r, all(c));
  return p * power_of_two(v);
}

inline F exp_below(F x) { return exp_within(max(all(-88.03f), x)); }  // of x <= 88; max gives its second operand for NaN
inline F exp(F x) { return exp_below(min(all(88.0f), x)); }           // as min does

// The same to 4e-6 relative, for weights that are rounded to words: degree 4, ln 2 in one part.
inline F exp_roughly(F x) {
  x = max(all(-88.03f), x);
  const F magic = all(0x1.8p23f + 127), v = fma(x, all(1.44269504f), magic), r = fnma(v - magic, all(0.69314718f), x);
  F p = all(0.0414586067199707f);
  for (float c : {0.16790907084941864f, 0.5000435709953308f, 0.9999634027481079f, 0.9999992847442627f})
    p = fma(p, r, all(c));
  return p * power_of_two(v);
}

// 1 / (1 + e^-x)
inline F sigmoid(F x) { return all(1.0f) / (all(1.0f) + exp(all(0.0f) - x)); }

// x Phi(x). erfc(z) = t e^(P(t) - z^2) with z = |x| / sqrt 2, t = 1 / (1 + z/2); P is our own fit of degree 9 for z in
// 0..9.5, off by at most 3e-7 in float32. What is beyond has e^(-z^2) = 0.
inline F gelu(F x) {
  const F one = all(1.0f), half = all(0.5f);
  const F t = one / fma(half, magnitude(x) * all(0.70710678f), one);
  F p = all(0.14050713181495667f);
  for (float c :
       {-0.6566158533096313f, 1.0994384288787842f, -0.6195233464241028f, -0.1441735029220581f, 0.03546786308288574f,
        0.022874142974615097f, 0.38911715149879456f, 0.99834144115448f, -1.265433430671692f})
    p = fma(p, t, all(c));
  const F tail = half * t * exp(fnma(half * x, x, p));  // Phi(-|x|)
  return x * choose(less(x, all(0.0f)), tail, one - tail);
}

inline F gelu_tanh(F x) {  // 0.5 (1 + tanh u) = sigmoid(2 u)
  const F cubic = fma(all(0.044715f) * (x * x), x, x);
  return x * sigmoid(all(2 * 0.79788456f) * cubic);
}

// ---- kernels ----

void rms_norm_f32(const NormArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.width;
    float* y = a.y + r * a.width;
    const float squares = sum_of(a.width, [&](F sum, int64_t i, auto lanes) {
      const F v = lanes.load(x + i);
      return fma(v, v, sum);
    });
    const F factor = all(1.0f / __builtin_sqrtf(squares / static_cast<float>(a.width) + a.eps));
    each(a.width, [&](int64_t i, auto lanes) {
      lanes.store(y + i, lanes.load(x + i) * factor * lanes.load(a.weight + i));
    });
  }
}

void layer_norm_f32(const NormArgs& a) {
  const float width = static_cast<float>(a.width);
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.width;
    float* y = a.y + r * a.width;
    const float sum = sum_of(a.width, [&](F sum, int64_t i, auto lanes) { return sum + lanes.load(x + i); });
    const F mean = all(sum / width);
    const float squares = sum_of(a.width, [&](F sum, int64_t i, auto lanes) {
      const F off = lanes.keep(lanes.load(x + i) - mean);
      return fma(off, off, sum);
    });
    const F factor = all(1.0f / __builtin_sqrtf(squares / width + a.eps));
    each(a.width, [&](int64_t i, auto lanes) {
      lanes.store(y + i, fma((lanes.load(x + i) - mean) * factor, lanes.load(a.weight + i), lanes.load(a.bias + i)));
    });
  }
}

void rope_f32(const RopeArgs& a) {
  const int64_t half = a.rotary / 2;
  for (int64_t r = 0; r < a.rows; ++r) {
    const float *x = a.x + r * a.width, *cos = a.cos + r * half, *sin = a.sin + r * half;
    float* y = a.y + r * a.width;
    if (x != y) std::memcpy(y, x, static_cast<size_t>(a.width) * sizeof(float));
    for (int64_t h = 0; h < a.heads; ++h, y += a.head_dim)
      each(half, [&](int64_t i, auto lanes) {
        const F left = lanes.load(y + i), right = lanes.load(y + half + i);
        const F c = lanes.load(cos + i), s = lanes.load(sin + i);
        lanes.store(y + i, fnma(right, s, left * c));
        lanes.store(y + half + i, fma(right, c, left * s));
      });
  }
}

void gelu_f32(const UnaryArgs& a) {
  each(a.n, [&](int64_t i, auto lanes) { lanes.store(a.y + i, gelu(lanes.load(a.x + i))); });
}

void gelu_tanh_f32(const UnaryArgs& a) {
  each(a.n, [&](int64_t i, auto lanes) { lanes.store(a.y + i, gelu_tanh(lanes.load(a.x + i))); });
}

void swiglu_f32(const SwigluArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float *gate = a.x + r * 2 * a.width, *up = gate + a.width;
    float* y = a.y + r * a.width;
    each(a.width, [&](int64_t i, auto lanes) {
      const F g = lanes.load(gate + i);
      lanes.store(y + i, g * sigmoid(g) * lanes.load(up + i));
    });
  }
}

void add_f32(const AddArgs& a) {
  const F alpha = all(a.alpha);
  for (int64_t r = 0; r < a.rows; ++r) {
    const float *x = a.x + r * a.width, *y = a.y + r * a.width;
    float* out = a.out + r * a.width;
    if (a.scale)
      each(a.width, [&](int64_t i, auto lanes) {
        lanes.store(out + i, fma(alpha, lanes.load(y + i) * lanes.load(a.scale + i), lanes.load(x + i)));
      });
    else
      each(a.width, [&](int64_t i, auto lanes) {
        lanes.store(out + i, fma(alpha, lanes.load(y + i), lanes.load(x + i)));
      });
  }
}

template <class Format>
inline void widen(const WidenArgs& a) {
  const auto* in = static_cast<const typename Format::T*>(a.in);
  each(a.n, [&](int64_t i, auto lanes) { lanes.store(a.out + i, lanes.template load<Format>(in + i)); });
}

void widen_f32(const WidenArgs& a) { widen<F32>(a); }
void widen_f16(const WidenArgs& a) { widen<F16>(a); }
void widen_bf16(const WidenArgs& a) { widen<Bf16>(a); }

// One group of n numbers, to -most..most. |x| / scale is at most most (1 + 2^-22), which rounds to most: no clamp.
template <class T>
[[gnu::always_inline]] inline void quantize_group(const float* x, int64_t n, float most, T* q, float& scale, int32_t& sum) {
  I top = all(0);  // |x| as bits: orders like the value, and NaN comes out on top
  each(n, [&](int64_t i, auto lanes) { top = max(top, bits(magnitude(lanes.load(x + i)))); });
  const float largest = float_of_bits(static_cast<uint32_t>(largest_lane(top)));
  const bool finite = largest < __builtin_inff();
  scale = !finite ? __builtin_nanf("") : largest < 1e-30f ? 0.0f : largest / most;
  I total = all(0);
  if (scale > 0) {
    const F inverse = all(1.0f / scale);
    each(n, [&](int64_t i, auto lanes) {
      const I v = to_int(lanes.load(x + i) * inverse);
      total = add(total, v);
      lanes.store(q + i, v);
    });
  } else {
    std::memset(q, 0, static_cast<size_t>(n) * sizeof *q);
  }
  sum = sum_lanes(total);
}

void quantize_int8(const QuantizeArgs& a) {
  const int64_t group = a.group ? a.group : a.k, groups = (a.k + group - 1) / group;
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.k;
    int8_t* q = a.q + r * a.stride;
    for (int64_t g = 0; g < groups; ++g, x += group, q += group) {
      const int64_t n = a.k - g * group < group ? a.k - g * group : group;
      float& scale = a.scale[r * groups + g];
      int32_t sum;
      if (n == 32)  // known lengths: the loops unroll, the group stays in registers
        quantize_group(x, 32, 127, q, scale, sum);
      else if (n == 64)
        quantize_group(x, 64, 127, q, scale, sum);
      else
        quantize_group(x, n, 127, q, scale, sum);
      if (a.sum) a.sum[r * groups + g] = sum;
    }
    std::memset(a.q + r * a.stride + a.k, 0, static_cast<size_t>(a.stride - a.k));
  }
}

}  // namespace
}  // namespace eyespot

#endif
