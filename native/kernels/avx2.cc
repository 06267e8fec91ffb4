// avx2.cc: every kernel for AVX2 with FMA and F16C. Needs no memory but what it is given. The order of each sum is
// fixed by its length: eight lanes over the columns, blocks of BLOCK columns added one after the other.
#include <immintrin.h>

#include <cstring>

#include "kernels/half.h"
#include "kernels/kernels.h"

namespace eyespot {
namespace {

constexpr int64_t BLOCK = 512;  // columns of a sum kept in one register: COLUMNS unpacked rows of these fit L1 beside x
constexpr int64_t COLUMNS = 16;  // output columns unpacked at a time
constexpr int64_t ROWS = 120;    // rows of x worked on at a time: BLOCK columns of them fit L2

inline int64_t min(int64_t a, int64_t b) {
  return a < b ? a : b;
}  // ours: std::min compiled here could serve other files

// Lanes below n, as maskload wants them.
inline __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline __m256 load_first(const float* p, int64_t n) {
  return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first_lanes(n));
}

inline void store_first(float* p, __m256 v, int64_t n) {
  if (n >= 8)
    _mm256_storeu_ps(p, v);
  else
    _mm256_maskstore_ps(p, first_lanes(n), v);
}

// The n < 16 bytes at p, then zeros.
inline __m128i load_bytes(const void* p, int64_t n) {
  alignas(16) unsigned char bytes[16] = {};
  std::memcpy(bytes, p, static_cast<size_t>(n));
  return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
}

// Sums of the lanes of four registers, each ((0+1)+(2+3)) + ((4+5)+(6+7)).
inline __m128 sum_lanes(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}
inline float sum_lanes(__m256 a) { return _mm_cvtss_f32(sum_lanes(a, a, a, a)); }

inline __m128i sum_lanes(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  return _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
}

inline float largest_lane(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// e^x to 2.5e-7 relative: x = n ln 2 + r, Taylor to r^7 (its remainder is below 6e-9 for |r| <= ln 2 / 2), the rest is
// rounding. 0 below -87.3, capped at e^88; NaN stays NaN (minps and maxps give their second operand then).
inline __m256 exp(__m256 x) {
  const __m256 low = _mm256_set1_ps(-87.3f);
  const __m256 tiny = _mm256_cmp_ps(x, low, _CMP_LT_OQ);
  const __m256 v = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(low, x));
  const __m256 n =
      _mm256_round_ps(_mm256_mul_ps(v, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), v);  // ln 2 in two parts, the first exact in ten bits
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.0f / 5040);
  for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_andnot_ps(tiny, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}

// 1 / (1 + e^-x)
inline __m256 sigmoid(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f);
  return _mm256_div_ps(one, _mm256_add_ps(one, exp(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

// x Phi(x). erfc(z) = t e^(P(t) - z^2) with z = |x| / sqrt 2, t = 1 / (1 + z/2); P is our own fit of degree 9 for z in
// 0..9.5, off by at most 3e-7 in float32. What is beyond has e^(-z^2) = 0.
inline __m256 gelu(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f), half = _mm256_set1_ps(0.5f);
  const __m256 z = _mm256_mul_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x), _mm256_set1_ps(0.70710678f));
  const __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(half, z, one));
  __m256 p = _mm256_set1_ps(0.14050713181495667f);
  for (float c :
       {-0.6566158533096313f, 1.0994384288787842f, -0.6195233464241028f, -0.1441735029220581f, 0.03546786308288574f,
        0.022874142974615097f, 0.38911715149879456f, 0.99834144115448f, -1.265433430671692f})
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(c));
  const __m256 tail =
      _mm256_mul_ps(_mm256_mul_ps(half, t), exp(_mm256_fnmadd_ps(_mm256_mul_ps(half, x), x, p)));  // Phi(-|x|)
  return _mm256_mul_ps(x, _mm256_blendv_ps(_mm256_sub_ps(one, tail), tail, x));                    // by the sign of x
}

inline __m256 gelu_tanh(__m256 x) {  // 0.5 (1 + tanh u) = sigmoid(2 u)
  const __m256 cubic = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_set1_ps(0.044715f), _mm256_mul_ps(x, x)), x, x);
  return _mm256_mul_ps(x, sigmoid(_mm256_mul_ps(_mm256_set1_ps(2 * 0.79788456f), cubic)));
}

// ---- linear ----

// Weight formats. load: eight columns of row j from column c on. tail: the n < 8 last ones, then zeros.
struct F32 {
  static constexpr bool CHEAP =
      true;  // load costs little more than the multiplication: a few rows need no unpacked copy
  const float* w;
  int64_t k;
  explicit F32(const LinearArgs& a) : w(static_cast<const float*>(a.w)), k(a.k) {}
  __m256 load(int64_t j, int64_t c) const { return _mm256_loadu_ps(w + j * k + c); }
  __m256 tail(int64_t j, int64_t c, int64_t n) const { return _mm256_maskload_ps(w + j * k + c, first_lanes(n)); }
};

struct F16 {
  static constexpr bool CHEAP = true;
  const uint16_t* w;
  int64_t k;
  explicit F16(const LinearArgs& a) : w(static_cast<const uint16_t*>(a.w)), k(a.k) {}
  static __m256 widen(__m128i v) { return _mm256_cvtph_ps(v); }
  __m256 load(int64_t j, int64_t c) const {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + j * k + c)));
  }
  __m256 tail(int64_t j, int64_t c, int64_t n) const { return widen(load_bytes(w + j * k + c, 2 * n)); }
};

struct Bf16 {
  static constexpr bool CHEAP = true;
  const uint16_t* w;
  int64_t k;
  explicit Bf16(const LinearArgs& a) : w(static_cast<const uint16_t*>(a.w)), k(a.k) {}
  static __m256 widen(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
  __m256 load(int64_t j, int64_t c) const {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + j * k + c)));
  }
  __m256 tail(int64_t j, int64_t c, int64_t n) const { return widen(load_bytes(w + j * k + c, 2 * n)); }
};

struct W8 {
  static constexpr bool CHEAP = true;
  const int8_t* w;
  int64_t k;
  explicit W8(const LinearArgs& a) : w(static_cast<const int8_t*>(a.w)), k(a.k) {}
  static __m256 widen(__m128i v) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)); }
  __m256 load(int64_t j, int64_t c) const {
    return widen(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w + j * k + c)));
  }
  __m256 tail(int64_t j, int64_t c, int64_t n) const { return widen(load_bytes(w + j * k + c, n)); }
};

struct W4 {
  static constexpr bool CHEAP = false;
  const uint8_t* w;
  const uint16_t* scale;
  int64_t row_bytes, groups, shift;
  explicit W4(const LinearArgs& a)
      : w(static_cast<const uint8_t*>(a.w)), scale(static_cast<const uint16_t*>(a.scale)), row_bytes((a.k + 1) / 2),
        groups((a.k + (int64_t{1} << a.group_shift) - 1) >> a.group_shift), shift(a.group_shift) {}
  __m256 group(int64_t j, int64_t c) const {
    return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(scale[j * groups + (c >> shift)])));
  }
  // (nibble - 8) * scale is exact in float32: four bits times eleven.
  __m256 widen(uint32_t nibbles, int64_t j, int64_t c) const {
    const __m256i all =
        _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(nibbles)), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    const __m256 q = _mm256_cvtepi32_ps(_mm256_and_si256(all, _mm256_set1_epi32(15)));
    return _mm256_mul_ps(_mm256_sub_ps(q, _mm256_set1_ps(8.0f)), group(j, c));
  }
  __m256 load(int64_t j, int64_t c) const {
    uint32_t nibbles;
    std::memcpy(&nibbles, w + j * row_bytes + c / 2, sizeof nibbles);
    return widen(nibbles, j, c);
  }
  __m256 tail(int64_t j, int64_t c, int64_t n) const {
    uint32_t nibbles = 0;
    std::memcpy(&nibbles, w + j * row_bytes + c / 2, static_cast<size_t>((n + 1) / 2));
    return _mm256_and_ps(widen(nibbles, j, c), _mm256_castsi256_ps(first_lanes(n)));
  }
};

// Rows [first, first + COLUMNS) unpacked, columns [at, at + BLOCK), padded with zeros.
struct Panel {
  const float* w;
  int64_t first, at;
  __m256 load(int64_t j, int64_t c) const { return _mm256_loadu_ps(w + (j - first) * BLOCK + c - at); }
  __m256 tail(int64_t j, int64_t c, int64_t) const { return load(j, c); }
};

template <class Format>
inline void unpack(const Format& format, int64_t j, int64_t at, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, format.load(j, at + i));
  if (i < n) _mm256_storeu_ps(out + i, format.tail(j, at + i, n - i));
}

// Four bits: 32 columns, which share a scale, at a time.
inline void unpack(const W4& format, int64_t j, int64_t at, int64_t n, float* out) {
  const __m128i low = _mm_set1_epi8(15), middle = _mm_set1_epi8(8);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m128i bytes =
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(format.w + j * format.row_bytes + (at + i) / 2));
    const __m128i even = _mm_and_si128(bytes, low), odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), low);
    const __m256 scale = format.group(j, at + i);
    __m128i q[2] = {_mm_sub_epi8(_mm_unpacklo_epi8(even, odd), middle),
                    _mm_sub_epi8(_mm_unpackhi_epi8(even, odd), middle)};
    for (int64_t half = 0; half < 2; ++half) {
      float* to = out + i + 16 * half;
      _mm256_storeu_ps(to, _mm256_mul_ps(W8::widen(q[half]), scale));
      _mm256_storeu_ps(to + 8, _mm256_mul_ps(W8::widen(_mm_unpackhi_epi64(q[half], q[half])), scale));
    }
  }
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, format.load(j, at + i));
  if (i < n) _mm256_storeu_ps(out + i, format.tail(j, at + i, n - i));
}

// sums[r][c] = x[r] . w[j + c] over columns [at, at + n).
template <int R, int C, class Weights>
inline void dot_tile(const float* x, int64_t stride, const Weights& w, int64_t j, int64_t at, int64_t n,
                     __m256 (&sums)[R][C]) {
  for (auto& row : sums)
    for (auto& sum : row) sum = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 values[R];
    for (int r = 0; r < R; ++r) values[r] = _mm256_loadu_ps(x + r * stride + i);
    for (int c = 0; c < C; ++c) {
      const __m256 weight = w.load(j + c, at + i);
      for (int r = 0; r < R; ++r) sums[r][c] = _mm256_fmadd_ps(values[r], weight, sums[r][c]);
    }
  }
  if (i == n) return;
  __m256 values[R];
  for (int r = 0; r < R; ++r) values[r] = _mm256_maskload_ps(x + r * stride + i, first_lanes(n - i));
  for (int c = 0; c < C; ++c) {
    const __m256 weight = w.tail(j + c, at + i, n - i);
    for (int r = 0; r < R; ++r) sums[r][c] = _mm256_fmadd_ps(values[r], weight, sums[r][c]);
  }
}

// One block of columns of y[r][j .. j + C): adds to what earlier blocks left, and finishes after the last.
template <int R, int C, class Weights>
inline void linear_tile(const LinearArgs& a, const float* row_scale, const Weights& w, int64_t r, int64_t j, int64_t at,
                        int64_t n) {
  __m256 sums[R][C];
  dot_tile<R, C>(a.x + r * a.k + at, a.k, w, j, at, n, sums);
  const bool begin = at == 0, end = at + n == a.k;
  for (int i = 0; i < R; ++i) {
    float* y = a.y + (r + i) * a.m + j;
    if constexpr (C % 4 == 0) {
      for (int c = 0; c < C; c += 4) {
        __m128 v = sum_lanes(sums[i][c], sums[i][c + 1], sums[i][c + 2], sums[i][c + 3]);
        if (!begin) v = _mm_add_ps(_mm_loadu_ps(y + c), v);
        if (end && row_scale) v = _mm_mul_ps(v, _mm_loadu_ps(row_scale + j + c));
        if (end && a.bias) v = _mm_add_ps(v, _mm_loadu_ps(a.bias + j + c));
        _mm_storeu_ps(y + c, v);
      }
    } else {
      for (int c = 0; c < C; ++c) {
        float v = sum_lanes(sums[i][c]);
        if (!begin) v = y[c] + v;
        if (end && row_scale) v = v * row_scale[j + c];
        if (end && a.bias) v = v + a.bias[j + c];
        y[c] = v;
      }
    }
  }
}

template <int R, class Weights>
inline void linear_rows(const LinearArgs& a, const float* row_scale, const Weights& w, int64_t r, int64_t j,
                        int64_t stop, int64_t at, int64_t n) {
  constexpr int C = R == 1 ? 8 : 4;
  for (; j + C <= stop; j += C) linear_tile<R, C>(a, row_scale, w, r, j, at, n);
  for (; j < stop; ++j) linear_tile<R, 1>(a, row_scale, w, r, j, at, n);
}

template <class Weights>
inline void linear_block(const LinearArgs& a, const float* row_scale, const Weights& w, int64_t r, int64_t r_stop,
                         int64_t j, int64_t stop, int64_t at, int64_t n) {
  for (; r + 3 <= r_stop; r += 3) linear_rows<3>(a, row_scale, w, r, j, stop, at, n);
  if (r_stop - r == 2) linear_rows<2>(a, row_scale, w, r, j, stop, at, n);
  if (r_stop - r == 1) linear_rows<1>(a, row_scale, w, r, j, stop, at, n);
}

// Many rows: a block of x stays in L2 while panel after panel of weights, unpacked into L1, passes over it.
template <class Format>
inline void linear_panels(const LinearArgs& a, const float* row_scale, const Format& format) {
  float* panel = static_cast<float*>(a.work);
  for (int64_t r = 0; r < a.rows; r += ROWS)
    for (int64_t at = 0; at < a.k; at += BLOCK)
      for (int64_t j = a.first; j < a.last; j += COLUMNS) {
        const int64_t n = min(BLOCK, a.k - at), stop = min(j + COLUMNS, a.last);
        for (int64_t i = j; i < stop; ++i) unpack(format, i, at, n, panel + (i - j) * BLOCK);
        linear_block(a, row_scale, Panel{panel, j, at}, r, min(r + ROWS, a.rows), j, stop, at, n);
      }
}

template <class Format>
void linear(const LinearArgs& a, const float* row_scale) {
  const Format format(a);
  if (!Format::CHEAP || a.rows > 3) return linear_panels(a, row_scale, format);
  for (int64_t j = a.first; j < a.last; j += 8)
    for (int64_t at = 0; at < a.k; at += BLOCK)
      linear_block(a, row_scale, format, 0, a.rows, j, min(j + 8, a.last), at, min(BLOCK, a.k - at));
}

// int8 rows: bytes widened to 16 bits, so that a product of two pairs fits 32 and nothing saturates.
template <int R, int C>
inline void a8_tile(const LinearA8Args& a, int64_t r, int64_t j) {
  __m256i sums[R][C];
  for (auto& row : sums)
    for (auto& sum : row) sum = _mm256_setzero_si256();
  const int8_t *x = a.x + r * a.x_stride, *w = a.w + j * a.k;
  auto add = [&](int64_t at, auto weight) __attribute__((always_inline)) {
    __m256i values[R];
    for (int i = 0; i < R; ++i)
      values[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i * a.x_stride + at)));
    for (int c = 0; c < C; ++c) {
      const __m256i v = _mm256_cvtepi8_epi16(weight(w + c * a.k + at));
      for (int i = 0; i < R; ++i) sums[i][c] = _mm256_add_epi32(sums[i][c], _mm256_madd_epi16(values[i], v));
    }
  };
  int64_t at = 0;
  for (; at + 16 <= a.k; at += 16)
    add(at, [](const int8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); });
  if (at < a.k) add(at, [&](const int8_t* p) { return load_bytes(p, a.k - at); });  // x is padded with zeros
  for (int i = 0; i < R; ++i) {
    float* y = a.y + (r + i) * a.m + j;
    const float scale = a.x_scale[r + i];
    if constexpr (C % 4 == 0) {
      for (int c = 0; c < C; c += 4) {
        const __m128 sum = _mm_cvtepi32_ps(sum_lanes(sums[i][c], sums[i][c + 1], sums[i][c + 2], sums[i][c + 3]));
        __m128 v = _mm_mul_ps(sum, _mm_mul_ps(_mm_set1_ps(scale), _mm_loadu_ps(a.w_scale + j + c)));
        if (a.bias) v = _mm_add_ps(v, _mm_loadu_ps(a.bias + j + c));
        _mm_storeu_ps(y + c, v);
      }
    } else {
      for (int c = 0; c < C; ++c) {
        const int32_t sum = _mm_cvtsi128_si32(sum_lanes(sums[i][c], sums[i][c], sums[i][c], sums[i][c]));
        y[c] = static_cast<float>(sum) * (scale * a.w_scale[j + c]) + (a.bias ? a.bias[j + c] : 0.0f);
      }
    }
  }
}

template <int R>
inline void a8_rows(const LinearA8Args& a, int64_t r, int64_t j, int64_t stop) {
  constexpr int C = R == 1 ? 8 : 4;
  for (; j + C <= stop; j += C) a8_tile<R, C>(a, r, j);
  for (; j < stop; ++j) a8_tile<R, 1>(a, r, j);
}

// ---- attention ----

constexpr int64_t KEYS = 64;     // keys unpacked at a time
constexpr int64_t QUERIES = 96;  // queries that share one unpacking
constexpr int64_t STRIP = 6;     // queries in registers

struct CacheF32 {
  static __m256 load(const void* base, const float*, int64_t key, int64_t stride, int64_t i, int64_t n) {
    return load_first(static_cast<const float*>(base) + key * stride + i, n);
  }
};
struct CacheF16 {
  static __m256 load(const void* base, const float*, int64_t key, int64_t stride, int64_t i, int64_t n) {
    const uint16_t* p = static_cast<const uint16_t*>(base) + key * stride + i;
    return _mm256_cvtph_ps(n >= 8 ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)) : load_bytes(p, 2 * n));
  }
};
struct CacheInt8 {
  static __m256 load(const void* base, const float* scale, int64_t key, int64_t stride, int64_t i, int64_t n) {
    const int8_t* p = static_cast<const int8_t*>(base) + key * stride + i;
    return _mm256_mul_ps(W8::widen(n >= 8 ? _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)) : load_bytes(p, n)),
                         _mm256_set1_ps(scale[key]));
  }
};

inline void transpose(__m256 (&v)[8]) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int half = 0; half < 2; ++half) {
      u[i + 2 * half] = _mm256_shuffle_ps(t[i + half], t[i + 2 + half], 0x44);
      u[i + 2 * half + 1] = _mm256_shuffle_ps(t[i + half], t[i + 2 + half], 0xEE);
    }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

// What one call keeps in its scratch.
struct Desk {
  float keys[HEAD_DIM][KEYS];    // K of the block, a column a key
  float values[KEYS][HEAD_DIM];  // V of the block
  float out[QUERIES][HEAD_DIM];  // sums, not yet divided by `total`
  float scores[STRIP][KEYS];
  float top[QUERIES], total[QUERIES];
};
static_assert(sizeof(Desk) <= WORK_BYTES);

template <class Cache>
inline void unpack_keys(const AttentionArgs& a, int64_t first, int64_t n, Desk& desk) {
  for (int64_t j = 0; j < n; j += 8)
    for (int64_t i = 0; i < a.head_dim; i += 8) {
      __m256 v[8];
      for (int r = 0; r < 8; ++r)
        v[r] = j + r < n ? Cache::load(a.k, a.k_scale, first + j + r, a.kv_stride, i, a.head_dim - i)
                         : _mm256_setzero_ps();
      transpose(v);
      for (int r = 0; r < 8 && i + r < a.head_dim; ++r) _mm256_store_ps(&desk.keys[i + r][j], v[r]);
    }
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = 0; i < a.head_dim; i += 8)
      _mm256_store_ps(&desk.values[j][i], Cache::load(a.v, a.v_scale, first + j, a.kv_stride, i, a.head_dim - i));
}

// c[r][0..8*V) = (add ? c : 0) + sum over i < n of a[r][i] * b[i][..]
template <int R, int V>
inline void outer_tile(const float* const* a, const float* b, int64_t b_stride, float* c, int64_t c_stride, int64_t n,
                       bool add) {
  __m256 sums[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sums[r][v] = add ? _mm256_load_ps(c + r * c_stride + 8 * v) : _mm256_setzero_ps();
  for (int64_t i = 0; i < n; ++i) {
    __m256 row[V];
    for (int v = 0; v < V; ++v) row[v] = _mm256_load_ps(b + i * b_stride + 8 * v);
    for (int r = 0; r < R; ++r) {
      const __m256 x = _mm256_broadcast_ss(a[r] + i);
      for (int v = 0; v < V; ++v) sums[r][v] = _mm256_fmadd_ps(x, row[v], sums[r][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) _mm256_store_ps(c + r * c_stride + 8 * v, sums[r][v]);
}

template <int R>
inline void outer(const float* const* a, const float* b, int64_t b_stride, float* c, int64_t c_stride, int64_t n,
                  int64_t columns, bool add) {
  int64_t j = 0;
  for (; j + 8 < columns; j += 16) outer_tile<R, 2>(a, b + j, b_stride, c + j, c_stride, n, add);
  if (j < columns) outer_tile<R, 1>(a, b + j, b_stride, c + j, c_stride, n, add);
}

// Keys that query p sees, as [start, stop).
struct Sight {
  int64_t start, stop;
  Sight(const AttentionArgs& a, int64_t p) : start(0), stop(a.keys) {
    if (a.past < 0) return;
    stop = a.past + p / a.heads + 1;
    if (a.window > 0 && stop > a.window) start = stop - a.window;
  }
};

// Queries [p, p + R) against the block of keys [first, first + n): online softmax.
template <int R>
inline void attend_strip(const AttentionArgs& a, int64_t p, int64_t slot, int64_t first, int64_t n, Desk& desk) {
  const float* q[R];
  const float* scores[R];
  int64_t start[R], stop[R], most = 0;
  bool any = false;
  for (int r = 0; r < R; ++r) {
    q[r] = a.q + (p + r) / a.heads * a.q_stride + (p + r) % a.heads * a.head_dim;
    scores[r] = desk.scores[r];
    const Sight sight(a, p + r);
    start[r] = sight.start > first ? sight.start - first : 0;
    stop[r] = min(sight.stop - first, n);
    any |= start[r] < stop[r];
    most = stop[r] > most ? stop[r] : most;
  }
  if (!any) return;
  outer<R>(q, &desk.keys[0][0], KEYS, &desk.scores[0][0], KEYS, a.head_dim, most, false);
  const __m256 scale = _mm256_set1_ps(a.scale), hidden = _mm256_set1_ps(-__builtin_inff());
  for (int r = 0; r < R; ++r) {
    float* row = desk.scores[r];
    __m256 best = hidden;
    for (int64_t j = 0; j < most; j += 8) {
      __m256 s = _mm256_mul_ps(_mm256_load_ps(row + j), scale);
      if (j < start[r]) s = _mm256_blendv_ps(s, hidden, _mm256_castsi256_ps(first_lanes(start[r] - j)));
      if (j + 8 > stop[r]) s = _mm256_blendv_ps(hidden, s, _mm256_castsi256_ps(first_lanes(stop[r] - j)));
      best = _mm256_max_ps(best, s);
      _mm256_store_ps(row + j, s);
    }
    float& top = desk.top[slot + r];
    const float block_top = largest_lane(best), next = block_top > top ? block_top : top;
    const __m256 base = _mm256_set1_ps(next == -__builtin_inff() ? 0.0f : next);  // nothing seen yet: all weights are 0
    __m256 sum = _mm256_setzero_ps();
    for (int64_t j = 0; j < most; j += 8) {
      const __m256 weight = exp(_mm256_sub_ps(_mm256_load_ps(row + j), base));
      sum = _mm256_add_ps(sum, weight);
      _mm256_store_ps(row + j, weight);
    }
    const __m256 shrink = exp(_mm256_sub_ps(_mm256_set1_ps(top), base));
    desk.total[slot + r] = desk.total[slot + r] * _mm256_cvtss_f32(shrink) + sum_lanes(sum);
    if (next != top)
      for (int64_t i = 0; i < a.head_dim; i += 8)
        _mm256_store_ps(&desk.out[slot + r][i], _mm256_mul_ps(_mm256_load_ps(&desk.out[slot + r][i]), shrink));
    top = next;
  }
  outer<R>(scores, &desk.values[0][0], HEAD_DIM, &desk.out[slot][0], HEAD_DIM, most, a.head_dim, true);
}

template <class Cache>
void attention(const AttentionArgs& a) {
  Desk& desk = *static_cast<Desk*>(a.work);
  for (int64_t tile = a.first; tile < a.last; tile += QUERIES) {
    const int64_t count = min(QUERIES, a.last - tile);
    for (int64_t i = 0; i < count; ++i) {
      desk.top[i] = -__builtin_inff(), desk.total[i] = 0;
      std::memset(desk.out[i], 0, sizeof desk.out[i]);
    }
    const int64_t stop = Sight(a, tile + count - 1).stop;
    for (int64_t first = Sight(a, tile).start / KEYS * KEYS; first < stop; first += KEYS) {
      const int64_t n = min(KEYS, stop - first);
      unpack_keys<Cache>(a, first, n, desk);
      int64_t i = 0;
      for (; i + STRIP <= count; i += STRIP) attend_strip<STRIP>(a, tile + i, i, first, n, desk);
      switch (count - i) {
        case 5: attend_strip<5>(a, tile + i, i, first, n, desk); break;
        case 4: attend_strip<4>(a, tile + i, i, first, n, desk); break;
        case 3: attend_strip<3>(a, tile + i, i, first, n, desk); break;
        case 2: attend_strip<2>(a, tile + i, i, first, n, desk); break;
        case 1: attend_strip<1>(a, tile + i, i, first, n, desk); break;
        default: break;
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      float* out = a.out + (tile + i) / a.heads * a.out_stride + (tile + i) % a.heads * a.head_dim;
      const __m256 total = _mm256_set1_ps(desk.total[i]);
      for (int64_t c = 0; c < a.head_dim; c += 8)
        store_first(out + c, _mm256_div_ps(_mm256_load_ps(&desk.out[i][c]), total), a.head_dim - c);
    }
  }
}

template <__m256 (*F)(__m256)>
inline void map(const UnaryArgs& a) {
  for (int64_t i = 0; i < a.n; i += 8) store_first(a.y + i, F(load_first(a.x + i, a.n - i)), a.n - i);
}

inline __m256 sum_of_squares(__m256 sum, __m256 v) { return _mm256_fmadd_ps(v, v, sum); }

}  // namespace

void linear_f32_avx2(const LinearArgs& a) { linear<F32>(a, nullptr); }
void linear_f16_avx2(const LinearArgs& a) { linear<F16>(a, nullptr); }
void linear_bf16_avx2(const LinearArgs& a) { linear<Bf16>(a, nullptr); }
void linear_w8a16_avx2(const LinearArgs& a) { linear<W8>(a, static_cast<const float*>(a.scale)); }
void linear_w4a16_avx2(const LinearArgs& a) { linear<W4>(a, nullptr); }

void linear_w8a8_avx2(const LinearA8Args& a) {
  for (int64_t from = 0; from < a.rows; from += ROWS)
    for (int64_t j = a.first; j < a.last; j += COLUMNS) {
      const int64_t stop = min(j + COLUMNS, a.last), r_stop = min(from + ROWS, a.rows);
      int64_t r = from;
      for (; r + 3 <= r_stop; r += 3) a8_rows<3>(a, r, j, stop);
      if (r_stop - r == 2) a8_rows<2>(a, r, j, stop);
      if (r_stop - r == 1) a8_rows<1>(a, r, j, stop);
    }
}

void quantize_int8_avx2(const QuantizeArgs& a) {
  const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.k;
    int8_t* q = a.q + r * a.stride;
    __m256i top = _mm256_setzero_si256();  // |x| as bits: orders like the value, and NaN comes out on top
    for (int64_t i = 0; i < a.k; i += 8)
      top = _mm256_max_epi32(top, _mm256_and_si256(_mm256_castps_si256(load_first(x + i, a.k - i)), magnitude));
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), top);
    int32_t largest = 0;
    for (int32_t lane : lanes) largest = lane > largest ? lane : largest;
    const float value = float_of_bits(static_cast<uint32_t>(largest));
    a.scale[r] = largest >= 0x7F800000 ? __builtin_nanf("") : value < 1e-30f ? 0.0f : value / 127.0f;
    int64_t i = 0;
    if (a.scale[r] > 0) {
      const __m256 inverse = _mm256_set1_ps(1.0f / a.scale[r]);
      for (; i < a.k; i += 8) {
        __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(load_first(x + i, a.k - i), inverse));  // half to even
        v = _mm256_max_epi32(_mm256_min_epi32(v, _mm256_set1_epi32(127)), _mm256_set1_epi32(-127));
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
        alignas(16) int8_t bytes[16];
        _mm_store_si128(reinterpret_cast<__m128i*>(bytes), _mm_packs_epi16(words, words));
        std::memcpy(q + i, bytes, static_cast<size_t>(min(8, a.stride - i)));  // lanes past k are zeros
      }
    }
    i = min(i, a.stride);
    std::memset(q + i, 0, static_cast<size_t>(a.stride - i));
  }
}

void narrow_f16_avx2(const NarrowArgs& a) {
  int64_t i = 0;
  for (; i + 8 <= a.n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(a.out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(a.in + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < a.n; ++i) a.out[i] = half_of_float(a.in[i]);
}

void widen_f32_avx2(const WidenArgs& a) { std::memcpy(a.out, a.in, static_cast<size_t>(a.n) * sizeof(float)); }

template <class Format>
inline void widen(const WidenArgs& a) {
  const uint16_t* in = static_cast<const uint16_t*>(a.in);
  int64_t i = 0;
  for (; i + 8 <= a.n; i += 8)
    _mm256_storeu_ps(a.out + i, Format::widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  if (i < a.n) store_first(a.out + i, Format::widen(load_bytes(in + i, 2 * (a.n - i))), a.n - i);
}

void widen_f16_avx2(const WidenArgs& a) { widen<F16>(a); }
void widen_bf16_avx2(const WidenArgs& a) { widen<Bf16>(a); }

void rms_norm_f32_avx2(const NormArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.width;
    float* y = a.y + r * a.width;
    __m256 squares = _mm256_setzero_ps();
    for (int64_t i = 0; i < a.width; i += 8) squares = sum_of_squares(squares, load_first(x + i, a.width - i));
    const float mean = sum_lanes(squares) / static_cast<float>(a.width);
    const __m256 factor = _mm256_set1_ps(1.0f / __builtin_sqrtf(mean + a.eps));
    for (int64_t i = 0; i < a.width; i += 8) {
      const int64_t n = a.width - i;
      store_first(y + i, _mm256_mul_ps(_mm256_mul_ps(load_first(x + i, n), factor), load_first(a.weight + i, n)), n);
    }
  }
}

void layer_norm_f32_avx2(const NormArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.width;
    float* y = a.y + r * a.width;
    __m256 sum = _mm256_setzero_ps(), squares = _mm256_setzero_ps();
    for (int64_t i = 0; i < a.width; i += 8) sum = _mm256_add_ps(sum, load_first(x + i, a.width - i));
    const __m256 mean = _mm256_set1_ps(sum_lanes(sum) / static_cast<float>(a.width));
    for (int64_t i = 0; i < a.width; i += 8) {
      const __m256 off = _mm256_sub_ps(load_first(x + i, a.width - i), mean);
      const __m256i lanes = first_lanes(a.width - i < 8 ? a.width - i : 8);
      squares = sum_of_squares(squares, _mm256_and_ps(off, _mm256_castsi256_ps(lanes)));
    }
    const float variance = sum_lanes(squares) / static_cast<float>(a.width);
    const __m256 factor = _mm256_set1_ps(1.0f / __builtin_sqrtf(variance + a.eps));
    for (int64_t i = 0; i < a.width; i += 8) {
      const int64_t n = a.width - i;
      const __m256 v = _mm256_mul_ps(_mm256_sub_ps(load_first(x + i, n), mean), factor);
      store_first(y + i, _mm256_fmadd_ps(v, load_first(a.weight + i, n), load_first(a.bias + i, n)), n);
    }
  }
}

void rope_f32_avx2(const RopeArgs& a) {
  const int64_t half = a.rotary / 2;
  for (int64_t r = 0; r < a.rows; ++r) {
    const float *x = a.x + r * a.width, *cos = a.cos + r * half, *sin = a.sin + r * half;
    float* y = a.y + r * a.width;
    if (x != y) std::memcpy(y, x, static_cast<size_t>(a.width) * sizeof(float));
    for (int64_t h = 0; h < a.heads; ++h, y += a.head_dim)
      for (int64_t i = 0; i < half; i += 8) {
        const int64_t n = half - i;
        const __m256 left = load_first(y + i, n), right = load_first(y + half + i, n);
        const __m256 c = load_first(cos + i, n), s = load_first(sin + i, n);
        store_first(y + i, _mm256_fmsub_ps(left, c, _mm256_mul_ps(right, s)), n);
        store_first(y + half + i, _mm256_fmadd_ps(right, c, _mm256_mul_ps(left, s)), n);
      }
  }
}

void attention_f32_avx2(const AttentionArgs& a) { attention<CacheF32>(a); }
void attention_f16_avx2(const AttentionArgs& a) { attention<CacheF16>(a); }
void attention_int8_avx2(const AttentionArgs& a) { attention<CacheInt8>(a); }

void gelu_f32_avx2(const UnaryArgs& a) { map<gelu>(a); }
void gelu_tanh_f32_avx2(const UnaryArgs& a) { map<gelu_tanh>(a); }

void swiglu_f32_avx2(const SwigluArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float *gate = a.x + r * 2 * a.width, *up = gate + a.width;
    float* y = a.y + r * a.width;
    for (int64_t i = 0; i < a.width; i += 8) {
      const int64_t n = a.width - i;
      const __m256 g = load_first(gate + i, n);
      store_first(y + i, _mm256_mul_ps(_mm256_mul_ps(g, sigmoid(g)), load_first(up + i, n)), n);
    }
  }
}

void add_f32_avx2(const AddArgs& a) {
  const __m256 alpha = _mm256_set1_ps(a.alpha);
  for (int64_t r = 0; r < a.rows; ++r) {
    const float *x = a.x + r * a.width, *y = a.y + r * a.width;
    float* out = a.out + r * a.width;
    for (int64_t i = 0; i < a.width; i += 8) {
      const int64_t n = a.width - i;
      __m256 v = load_first(y + i, n);
      if (a.scale) v = _mm256_mul_ps(v, load_first(a.scale + i, n));
      store_first(out + i, _mm256_add_ps(load_first(x + i, n), _mm256_mul_ps(alpha, v)), n);
    }
  }
}

}  // namespace eyespot
