// generic.h: what every kernel computes, whatever its instruction set: formula, units and preconditions of each
// argument record. Kernels know no engine: they may not allocate, call the system or hold globals. No float pointer
// need be aligned beyond its type. Arrays are row-major and do not overlap unless said. A sum's order depends on its
// length alone, never on how a call's rows and columns are shared out, so that any number of threads gives the same
// bits.
#ifndef EYESPOT_KERNELS_GENERIC_H_
#define EYESPOT_KERNELS_GENERIC_H_

#include <cstdint>

namespace eyespot {

constexpr int64_t WORK_BYTES = 256 << 10;  // scratch a thread brings to every call, 64-byte aligned: `work` below
constexpr int64_t HEAD_DIM = 256;          // longest attention head: what `work` has room for
constexpr int64_t A8_COLUMNS = 1 << 17;    // longest W8A8 row: 127 * 128 * 2^17 still fits an int32 sum
constexpr int64_t A8_ALIGN = 64;           // int8 rows are padded with zeros to a multiple of this

// y[r][j] = sum over c of x[r][c] * w[j][c], + bias[j] when bias is given; first <= j < last.
//   f32, f16, bf16: w [m][k] of that type.   w8a16: w int8 [m][k], times scale float[j].
//   w4a16: w [m][ceil(k/2)] bytes, low nibble = even column; w = (nibble - 8) * scale[j][c >> group_shift], scale f16
//   bits [m][ceil(k / 2^group_shift)], group_shift 5, 6 or 7; a short last group and an odd k are fine.
struct LinearArgs {
  const float* x;  // [rows][k]
  const void* w;
  const void* scale;
  const float* bias;  // [m] or null
  float* y;           // [rows][m]
  int64_t rows, k, m;
  int64_t first, last;
  int64_t group_shift;
  void* work;
};

// y[r][j] = float(sum over c of x[r][c] * w[j][c], exact in int32) * (x_scale[r] * w_scale[j]) + bias[j]; first <= j <
// last. k <= A8_COLUMNS; x_stride a multiple of A8_ALIGN; x is zero from column k to x_stride and never -128.
struct LinearA8Args {
  const int8_t* x;  // [rows][x_stride]
  const float* x_scale;
  const int8_t* w;  // [m][k]
  const float* w_scale;
  const float* bias;  // [m] or null
  float* y;           // [rows][m]
  int64_t rows, k, m, x_stride;
  int64_t first, last;
};

// scale[r] = max |x[r]| / 127; q = x / scale, round half to even, in -127..127; columns k..stride of q are zero.
// A row below 1e-30 throughout counts as zero: scale 0. A row with NaN or Inf gets scale NaN, so that the fault is not
// hidden.
struct QuantizeArgs {
  const float* x;  // [rows][k]
  int8_t* q;       // [rows][stride]
  float* scale;    // [rows]
  int64_t rows, k, stride;
};

// out[i] = in[i] as IEEE half, round half to even.
struct NarrowArgs {
  const float* in;
  uint16_t* out;
  int64_t n;
};

// out[i] = in[i] as float32, exact; in is f32, f16 or bf16. Embedding rows.
struct WidenArgs {
  const void* in;
  float* out;
  int64_t n;
};

// rms_norm:   y = x / sqrt(mean(x^2) + eps) * weight.   layer_norm: y = (x - mean) / sqrt(var + eps) * weight + bias.
// y may be x.
struct NormArgs {
  const float* x;  // [rows][width]
  float* y;
  const float* weight;  // [width]
  const float* bias;    // [width], layer_norm only
  int64_t rows, width;
  float eps;
};

// Rotates the pairs (i, i + rotary/2) of the first `heads` heads of each row; everything else is copied. y may be x.
struct RopeArgs {
  const float* x;  // [rows][width]
  float* y;
  const float *cos, *sin;  // [rows][rotary/2]
  int64_t rows, width, heads, head_dim, rotary;
};

// One key/value head and the `heads` query heads that share it. Query p = row * heads + head, first <= p < last:
//   out[row][head] = sum over j of softmax_j(scale * q[row][head] . k[j]) * v[j]
// over the keys j < keys that row sees: all when past < 0; else j <= past + row, and when window > 0 also j > past +
// row - window. Every row must see a key: keys >= 1, and keys > past + row where past >= 0. head_dim <= HEAD_DIM. k and
// v are f32, f16 or int8 with a scale a key. Strides count elements.
struct AttentionArgs {
  const float* q;                  // row r, head h at q + r * q_stride + h * head_dim
  const void *k, *v;               // key j at k + j * kv_stride
  const float *k_scale, *v_scale;  // [keys], int8 only
  float* out;                      // row r, head h at out + r * out_stride + h * head_dim
  int64_t q_stride, kv_stride, out_stride;
  int64_t heads, head_dim, keys;
  int64_t past, window;
  int64_t first, last;
  float scale;
  void* work;
};

// gelu: 0.5 x (1 + erf(x / sqrt 2)).   gelu_tanh: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). y may be x.
struct UnaryArgs {
  const float* x;
  float* y;
  int64_t n;
};

// y[r][i] = g * sigmoid(g) * x[r][width + i] with g = x[r][i].
struct SwigluArgs {
  const float* x;  // [rows][2 * width]
  float* y;        // [rows][width]
  int64_t rows, width;
};

// out = x + alpha * (y * scale[column]), scale 1 when null. out may be x.
struct AddArgs {
  const float *x, *y;  // [rows][width]
  const float* scale;  // [width] or null
  float* out;
  int64_t rows, width;
  float alpha;
};

}  // namespace eyespot

#endif
