// linear_float.h: the linears over row-major f32, f16 and bf16 weights, for any vector of vector_*.h. Lanes lie along the
// columns of a sum; blocks of RUN columns are summed apart and added one after the other.
#ifndef EYESPOT_KERNELS_LINEAR_FLOAT_H_
#define EYESPOT_KERNELS_LINEAR_FLOAT_H_

#include "kernels/elementwise.h"
#include "kernels/generic.h"

namespace eyespot {
namespace {

constexpr int64_t RUN = 512;      // columns of a sum kept in one register
constexpr int64_t UNPACKED = 16;  // rows of weights made float at a time: RUN columns of these fit L1 beside x
constexpr int64_t X_ROWS = 120;   // rows of x worked on at a time: RUN columns of them fit L2
static_assert(UNPACKED * RUN * static_cast<int64_t>(sizeof(float)) <= WORK_BYTES);

// Rows of weights from `row`, columns from `column`: all of them in their own format, or a block made float.
template <class Format>
struct Matrix {
  const typename Format::T* data;
  int64_t stride, row, column;
  const typename Format::T* at(int64_t j, int64_t c) const { return data + (j - row) * stride + c - column; }
};

// Columns [at, at + n) of y[r .. r + R)[j .. j + C): added to what earlier blocks left; the bias comes with the last.
template <int R, int C, class Format>
[[gnu::noinline]] void dense_tile(const LinearArgs& a, const Matrix<Format>& w, int64_t r, int64_t j, int64_t at, int64_t n) {
  F sums[R][C];
  for (auto& row : sums)
    for (auto& sum : row) sum = all(0.0f);
  const float* x = a.x + r * a.k + at;
  each(n, [&](int64_t i, auto lanes) {
    F values[R];
    for (int v = 0; v < R; ++v) values[v] = lanes.load(x + v * a.k + i);
    for (int c = 0; c < C; ++c) {
      const F weight = lanes.template load<Format>(w.at(j + c, at + i));
      for (int v = 0; v < R; ++v) sums[v][c] = fma(values[v], weight, sums[v][c]);
    }
  });
  const float* bias = at + n == a.k ? a.bias : nullptr;
  for (int v = 0; v < R; ++v)
    for (int c = 0; c < C; c += 4) {
      F four[4];
      for (int e = 0; e < 4; ++e) four[e] = sums[v][C == 1 ? 0 : c + e];
      float parts[4];
      sum_lanes(four, parts);
      float* y = a.y + (r + v) * a.m + j + c;
      for (int e = 0; e < (C == 1 ? 1 : 4); ++e) {
        const float sum = at ? y[e] + parts[e] : parts[e];
        y[e] = bias ? sum + bias[j + c + e] : sum;
      }
    }
}

template <int R, class Format>
inline void dense_rows(const LinearArgs& a, const Matrix<Format>& w, int64_t r, int64_t j, int64_t stop, int64_t at,
                       int64_t n) {
  constexpr int C = R == 1 ? 8 : 4;
  for (; j + C <= stop; j += C) dense_tile<R, C>(a, w, r, j, at, n);
  for (; j < stop; ++j) dense_tile<R, 1>(a, w, r, j, at, n);
}

template <class Format>
inline void dense_block(const LinearArgs& a, const Matrix<Format>& w, int64_t r, int64_t r_stop, int64_t j, int64_t stop,
                        int64_t at, int64_t n) {
  for (; r + 3 <= r_stop; r += 3) dense_rows<3>(a, w, r, j, stop, at, n);
  if (r_stop - r == 2) dense_rows<2>(a, w, r, j, stop, at, n);
  if (r_stop - r == 1) dense_rows<1>(a, w, r, j, stop, at, n);
}

template <class Format>
inline void linear_dense(const LinearArgs& a) {
  const auto smaller = [](int64_t p, int64_t q) { return p < q ? p : q; };
  const Matrix<Format> w{static_cast<const typename Format::T*>(a.w), a.k, 0, 0};
  if (a.rows <= 3) {  // the weights are used where they are, row after row
    for (int64_t j = a.first; j < a.last; j += 8)
      for (int64_t at = 0; at < a.k; at += RUN)
        dense_block(a, w, 0, a.rows, j, smaller(j + 8, a.last), at, smaller(RUN, a.k - at));
    return;
  }
  float* panel = static_cast<float*>(a.work);  // a block of x stays in L2 while panel after panel passes over it
  for (int64_t r = 0; r < a.rows; r += X_ROWS)
    for (int64_t at = 0; at < a.k; at += RUN)
      for (int64_t j = a.first; j < a.last; j += UNPACKED) {
        const int64_t n = smaller(RUN, a.k - at), stop = smaller(j + UNPACKED, a.last);
        for (int64_t i = j; i < stop; ++i)
          each(n, [&](int64_t c, auto lanes) {
            lanes.store(panel + (i - j) * RUN + c, lanes.template load<Format>(w.at(i, at + c)));
          });
        dense_block(a, Matrix<F32>{panel, RUN, j, at}, r, smaller(r + X_ROWS, a.rows), j, stop, at, n);
      }
}

void linear_f32(const LinearArgs& a) { linear_dense<F32>(a); }
void linear_f16(const LinearArgs& a) { linear_dense<F16>(a); }
void linear_bf16(const LinearArgs& a) { linear_dense<Bf16>(a); }

}  // namespace
}  // namespace eyespot

#endif
