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
constexpr int64_t PANEL = 16;              // rows of packed weights, and keys of a cache, that lie side by side
constexpr int64_t CHUNK = 32;              // columns of packed weights are stored in multiples of these
constexpr int64_t A8_COLUMNS = 1 << 17;    // longest W8A8 row: 127 * 127 * 2^17 still fits an int32 sum
constexpr int64_t A8_ALIGN = 128;          // int8 rows are padded with zeros to a multiple of this: the largest group
constexpr int64_t SPAN = 256;              // keys whose softmax is summed apart, then merged in order
constexpr int64_t KV_WORD = 4095;          // largest number of an int16 cache
constexpr int64_t WORDS = INT32_MAX / KV_WORD - SPAN;  // most that a span's softmax weights sum to in words: see AttentionArgs

// y[r][j] = sum over c of x[r][c] * w[j][c], + bias[j] when bias is given; first <= j < last. w [m][k] of f32, f16 or bf16.
struct LinearArgs {
  const float* x;  // [rows][k]
  const void* w;
  const float* bias;  // [m] or null
  float* y;           // [rows][m]
  int64_t rows, k, m;
  int64_t first, last;
  void* work;
};

// Packed weights, layout r16q4: ceil(m / 16) panels of 16 rows, one after the other; a panel is its groups of columns,
// one after the other; a group is
//   scale: 16 x f16 (16 x f32 when group is 0: one group, the whole row), a row each
//   minimum: 16 x f16, only when `minimum`
//   numbers: for every 32 columns, w8: 8 x [16 rows][4 columns] int8; w4: 4 x [16 rows][4 columns] bytes, whose low
//   nibbles are columns 8 i .. 8 i + 3 and whose high nibbles are columns 8 i + 4 .. 8 i + 7.
// w = q * scale (w8, q -127..127), (q - 8) * scale (w4, q 0..15), q * scale + minimum (w4 with minimum). Rows past m and
// columns past k are there to fill panels and groups and never reach a result. Data is aligned to 32 bytes.
struct Packed {
  const uint8_t* data;
  int64_t m, k;
  int64_t group;  // columns that share a scale: 32, 64, 128; 0: all
  bool minimum;   // w4 alone
};

// w8a16, w4a16. y[r][j] = sum over c of x[r][c] * w[j][c], + bias[j]; first <= j < last; first is a multiple of PANEL,
// last is one too or m. 32 columns at a time are summed from nothing, in order, with fused multiply-add, then added.
struct LinearA16Args {
  const float* x;  // [rows][k]
  Packed w;
  const float* bias;  // [m] or null
  float* y;           // [rows][m]
  int64_t rows, first, last;
  void* work;
};

// w8a8, w4a8. For each group g in order, with q the stored integers less what stands for zero (0, 8; 0 with minimum):
//   sum = fma(float(sum over c of g of x[r][c] * q[j][c], exact in int32), x_scale[r][g] * scale[j][g], sum)
//   with minimum also sum = fma(x_scale[r][g] * float(x_sum[r][g]), minimum[j][g], sum)
// y[r][j] = sum + bias[j]. The same bits for every instruction set. first, last as above. x is as quantize leaves it, with
// w.group for its groups.
struct LinearA8Args {
  const int8_t* x;       // [rows][x_stride]
  const float* x_scale;  // [rows][groups]
  const int32_t* x_sum;  // [rows][groups]
  Packed w;
  const float* bias;  // [m] or null
  float* y;           // [rows][m]
  int64_t rows, x_stride, first, last;
  void* work;
};

// For each group of `group` columns (0: the whole row; the last may be short): scale = max |x| / 127; q = x / scale, round
// half to even, in -127..127; sum = sum of q. Columns k..stride of q are zero. A group below 1e-30 throughout counts as zero:
// scale 0. One with NaN or Inf gets scale NaN and q 0, so that the fault is not hidden.
struct QuantizeArgs {
  const float* x;  // [rows][k]
  int8_t* q;       // [rows][stride]
  float* scale;    // [rows][groups]
  int32_t* sum;    // [rows][groups] or null
  int64_t rows, k, stride, group;
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

// One key/value head's cache: K in blocks of PANEL keys, [block][head_dim][PANEL]; V [key][head_dim]; for int8 a float scale
// a key for each, and for int16, which lies in pairs: K [block][width / 2][PANEL][2], V [key / 2][width][2], with width =
// head_dim rounded up to PANEL. Both have room for whole blocks; what stands where nothing was stored never reaches a result, be it NaN.
struct Cache {
  void *k, *v;
  float *k_scale, *v_scale;  // [keys], int8 and int16 alone
};

// store: keys at .. at + rows of the cache = rows of k and v, rounded to the cache's type (int8, int16: scale = max |x| / 127
// or KV_WORD of a key's vector, as quantize).
struct StoreArgs {
  const float *k, *v;  // row r at k + r * stride
  Cache cache;
  int64_t stride, head_dim, at, rows;
};

// One key/value head and the `heads` query heads that share it. Query p = row * heads + head, first <= p < last:
//   out[row][head] = sum over j of softmax_j(scale * q[row][head] . k[j]) * v[j]
// over the keys j < keys that row sees: all when past < 0; else j <= past + row, and when window > 0 also j > past +
// row - window. Every row must see a key: keys >= 1, and keys > past + row where past >= 0. head_dim <= HEAD_DIM.
// Keys are summed in spans [SPAN * s, SPAN * (s + 1)), each from nothing: top = largest score, total = sum of e^(score -
// top), sums = the same weights times v; spans are then merged in order, so it does not matter who summed them.
// On an int16 cache a vector kernel also rounds q, to max |q| / min(32767, (2^31 - 1) / (KV_WORD head_dim)), and the weights
// w of a span, times v_scale, to max(max w / 32767, sum of w / WORDS): so both products are sums of int16 products that int32
// holds, for rounding adds half a word to each of at most SPAN weights.
//   attention: all spans, merged, divided by the total, into out.
//   attention_span: span `span` alone, into partial[(p - first) * (head_dim + 2)]: top, total, sums. A query that sees
//   none of its keys gets top -Inf and zeros.
struct AttentionArgs {
  const float* q;  // row r, head h at q + r * q_stride + h * head_dim
  Cache cache;
  float* out;  // row r, head h at out + r * out_stride + h * head_dim
  int64_t q_stride, out_stride;
  int64_t heads, head_dim, keys;
  int64_t past, window;
  int64_t first, last;
  float scale;
  int64_t span;
  float* partial;
  void* work;
};

// out of the `spans` partials of a query, merged in order; partial[s * stride]: top, total, sums.
struct MergeArgs {
  const float* partial;
  float* out;  // [head_dim]
  int64_t spans, stride, head_dim;
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
