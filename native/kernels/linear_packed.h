// linear_packed.h: the linears over packed weights, for any vector of vector_*.h. A panel's 16 rows are lanes, so a tile of y
// is R rows of x by P panels, each weight is loaded once for R rows, each number of x once for P panels, and no sum ever
// crosses lanes. Rows of x are worked on in blocks that stay in the second-level cache while the panels stream past.
#ifndef EYESPOT_KERNELS_LINEAR_PACKED_H_
#define EYESPOT_KERNELS_LINEAR_PACKED_H_

#include "kernels/generic.h"

namespace eyespot {
namespace {

constexpr int64_t ACROSS = PANEL / W;            // vectors across a panel
constexpr int PAIR = ACROSS == 1 ? 2 : 1;        // panels of a tile: at least two vectors across
constexpr int64_t ROW_BYTES = 384 << 10;         // of x worked on at a time
constexpr int64_t QUAD = PANEL * 4;              // bytes of [16 rows][4 columns]

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// How the numbers of a format lie in a group, and what makes them floats.
template <int Bits, bool Whole, bool Minimum>
struct Format {
  static constexpr int64_t CHUNK_BYTES = CHUNK * PANEL * Bits / 8;
  static constexpr int64_t SCALE_BYTES = PANEL * (Whole ? 4 : 2), HEAD = SCALE_BYTES + (Minimum ? PANEL * 2 : 0);

  struct Walk {  // sizes of one matrix
    int64_t chunks, groups, group_bytes, panel_bytes;
    explicit Walk(const Packed& w)
        : chunks(Whole ? (w.k + CHUNK - 1) / CHUNK : w.group / CHUNK), groups(Whole ? 1 : (w.k + w.group - 1) / w.group),
          group_bytes(HEAD + chunks * CHUNK_BYTES), panel_bytes(groups * group_bytes) {}
  };

  static F scale(const uint8_t* group, int64_t v) {
    return Whole ? load(reinterpret_cast<const float*>(group) + v * W)
                 : load_half(reinterpret_cast<const uint16_t*>(group) + v * W);
  }
  static F minimum(const uint8_t* group, int64_t v) {
    return load_half(reinterpret_cast<const uint16_t*>(group + SCALE_BYTES) + v * W);
  }

  // dots[i][v] += the chunk's numbers times x, row i of x at x + i * stride.
  template <int R, int C>
  static void dot(const uint8_t* (&at)[C / ACROSS], int64_t offset, const int8_t* x, int64_t stride, I (&dots)[R][C]) {
    if constexpr (Bits == 8) {
#pragma GCC unroll 8
      for (int64_t q = 0; q < 8; ++q) {
        W8 w[C];
        for (int c = 0; c < C; ++c)
          w[c] = weights8(load_bytes(at[c / ACROSS] + offset + q * QUAD + c % ACROSS * W * 4));
        for (int i = 0; i < R; ++i) {
          const I four_columns = four(x + i * stride + 4 * q);
          for (int c = 0; c < C; ++c) dots[i][c] = dot8(dots[i][c], w[c], four_columns);
        }
      }
    } else {
      Sum4 sums[R][C];
      for (auto& row : sums)
        for (auto& sum : row) sum = zero4();
#pragma GCC unroll 4
      for (int64_t q = 0; q < 4; ++q) {
        I both[C];
        for (int c = 0; c < C; ++c) both[c] = load_bytes(at[c / ACROSS] + offset + q * QUAD + c % ACROSS * W * 4);
        I w[C];
        for (int c = 0; c < C; ++c) w[c] = low4(both[c]);
        for (int i = 0; i < R; ++i) {
          const I four_columns = four(x + i * stride + 8 * q);
          for (int c = 0; c < C; ++c) sums[i][c] = dot4(sums[i][c], w[c], four_columns);
        }
        for (int c = 0; c < C; ++c) w[c] = high4(both[c]);
        for (int i = 0; i < R; ++i) {
          const I four_columns = four(x + i * stride + 8 * q + 4);
          for (int c = 0; c < C; ++c) sums[i][c] = dot4(sums[i][c], w[c], four_columns);
        }
      }
      for (int i = 0; i < R; ++i)
        for (int c = 0; c < C; ++c) dots[i][c] = total4(sums[i][c], dots[i][c]);
    }
  }

  // Calls use(column, v, numbers) for every column of the chunk in order: numbers are w / scale, with Minimum w itself.
  template <class Use>
  static void widen(const uint8_t* chunk, const F (&scales)[ACROSS], const F (&minima)[ACROSS], const Use& use) {
    if constexpr (Bits == 8) {
#pragma GCC unroll 8
      for (int64_t q = 0; q < 8; ++q)
        for (int64_t v = 0; v < ACROSS; ++v) {
          const I raw = load_bytes(chunk + q * QUAD + v * W * 4);
          use(4 * q, v, column<0>(raw));
          use(4 * q + 1, v, column<1>(raw));
          use(4 * q + 2, v, column<2>(raw));
          use(4 * q + 3, v, column<3>(raw));
        }
    } else {
      const auto value = [&](F q, int64_t v) { return Minimum ? fma(q, scales[v], minima[v]) : q - all(8.0f); };
#pragma GCC unroll 4
      for (int64_t q = 0; q < 4; ++q)
        for (int64_t v = 0; v < ACROSS; ++v) {
          const I raw = load_bytes(chunk + q * QUAD + v * W * 4);
          use(8 * q, v, value(nibble<0>(raw), v));
          use(8 * q + 1, v, value(nibble<2>(raw), v));
          use(8 * q + 2, v, value(nibble<4>(raw), v));
          use(8 * q + 3, v, value(nibble<6>(raw), v));
          use(8 * q + 4, v, value(nibble<1>(raw), v));
          use(8 * q + 5, v, value(nibble<3>(raw), v));
          use(8 * q + 6, v, value(nibble<5>(raw), v));
          use(8 * q + 7, v, value(nibble<7>(raw), v));
        }
    }
  }

  // What a chunk's numbers times x add to a sum.
  static F finish(F chunk, F scale, F sum) { return Minimum ? sum + chunk : fma(chunk, scale, sum); }
};

inline void put(float* y, F sum, const float* bias, int64_t n) {
  if (n <= 0) return;
  store_first(y, bias ? sum + load_first(bias, n) : sum, n);
}

// ---- int8 rows ----

template <int Bits, bool Whole, bool Minimum>
struct A8 {
  using Form = Format<Bits, Whole, Minimum>;
  // What dot() takes every stored number for too much: sums begin with it taken off.
  static constexpr int32_t EXCESS = Bits == 8 ? OFFSET8 : Minimum ? 0 : 8;
  static constexpr int ROWS = Whole ? 6 : 4;  // of a tile; measured. A sum without groups needs no float beside it.

  template <int R, int P>
  static void tile(const LinearA8Args& a, const typename Form::Walk& walk, int64_t r, int64_t panel) {
    constexpr int C = P * ACROSS;
    const uint8_t* at[P];
    for (int p = 0; p < P; ++p) at[p] = a.w.data + (panel + p) * walk.panel_bytes;
    F sums[R][C];
    for (auto& row : sums)
      for (auto& sum : row) sum = all(0.0f);
    const int8_t* x = a.x + r * a.x_stride;
    const float* x_scale = a.x_scale + r * walk.groups;
    const int32_t* x_sum = a.x_sum + r * walk.groups;
    for (int64_t g = 0; g < walk.groups; ++g) {
      I dots[R][C];
      for (int i = 0; i < R; ++i) {
        const I begin = all(EXCESS ? -EXCESS * x_sum[i * walk.groups + g] : 0);
        for (int c = 0; c < C; ++c) dots[i][c] = begin;
      }
      for (int64_t chunk = 0; chunk < walk.chunks; ++chunk, x += CHUNK)
        Form::template dot<R, C>(at, Form::HEAD + chunk * Form::CHUNK_BYTES, x, a.x_stride, dots);
      F scales[C];
      for (int c = 0; c < C; ++c) scales[c] = Form::scale(at[c / ACROSS], c % ACROSS);
      for (int i = 0; i < R; ++i) {
        const F factor = all(x_scale[i * walk.groups + g]);
        for (int c = 0; c < C; ++c) sums[i][c] = fma(to_float(dots[i][c]), factor * scales[c], sums[i][c]);
      }
      if constexpr (Minimum)
        for (int c = 0; c < C; ++c) {
          const F least_value = Form::minimum(at[c / ACROSS], c % ACROSS);
          for (int i = 0; i < R; ++i) {
            const float total = x_scale[i * walk.groups + g] * static_cast<float>(x_sum[i * walk.groups + g]);
            sums[i][c] = fma(all(total), least_value, sums[i][c]);
          }
        }
      for (int p = 0; p < P; ++p) at[p] += walk.group_bytes;
    }
    for (int i = 0; i < R; ++i)
      for (int c = 0; c < C; ++c) {
        const int64_t j = panel * PANEL + c * W;
        put(a.y + (r + i) * a.w.m + j, sums[i][c], a.bias ? a.bias + j : nullptr, a.w.m - j);
      }
  }

  template <int P>
  static void strips(const LinearA8Args& a, const typename Form::Walk& walk, int64_t r, int64_t stop, int64_t panel) {
    for (; r + ROWS <= stop; r += ROWS) tile<ROWS, P>(a, walk, r, panel);
    if constexpr (ROWS > 4)
      if (stop - r >= 4) tile<4, P>(a, walk, r, panel), r += 4;
    if (stop - r == 3) tile<3, P>(a, walk, r, panel);
    if (stop - r == 2) tile<2, P>(a, walk, r, panel);
    if (stop - r == 1) tile<1, P>(a, walk, r, panel);
  }

  static void run(const LinearA8Args& a) {
    const typename Form::Walk walk(a.w);
    const int64_t begin = a.first / PANEL, end = (a.last + PANEL - 1) / PANEL;
    if (a.rows == 1) {  // one panel at a time reads memory strictly forward
      for (int64_t panel = begin; panel < end; ++panel) tile<1, 1>(a, walk, 0, panel);
      return;
    }
    const int64_t block = ROW_BYTES / a.x_stride / ROWS * ROWS, rows = block < 8 * ROWS ? 8 * ROWS : block;
    for (int64_t r = 0; r < a.rows; r += rows) {
      const int64_t stop = least(r + rows, a.rows);
      int64_t panel = begin;
      for (; panel + PAIR <= end; panel += PAIR) strips<PAIR>(a, walk, r, stop, panel);
      for (; panel < end; ++panel) strips<1>(a, walk, r, stop, panel);
    }
  }
};

// ---- float rows ----

constexpr int64_t BLOCK = 256;  // columns of a tile's weights widened at a time: with x they fit the first-level cache

template <int Bits, bool Whole, bool Minimum>
struct A16 {
  using Form = Format<Bits, Whole, Minimum>;

  // The weights of a chunk of P panels as floats, and their scales.
  template <int P>
  struct Wide {
    float numbers[CHUNK][P * PANEL], scales[P * PANEL];
  };

  template <int P>
  static void widen(const LinearA16Args& a, const typename Form::Walk& walk, int64_t panel, int64_t chunk,
                    Wide<P>& wide) {
    for (int p = 0; p < P; ++p) {
      const uint8_t* group =
          a.w.data + (panel + p) * walk.panel_bytes + chunk / walk.chunks * walk.group_bytes;
      F scales[ACROSS], minima[ACROSS];
      for (int64_t v = 0; v < ACROSS; ++v) {
        scales[v] = Form::scale(group, v);
        if constexpr (Minimum) minima[v] = Form::minimum(group, v);
        store(&wide.scales[p * PANEL + v * W], scales[v]);
      }
      Form::widen(group + Form::HEAD + chunk % walk.chunks * Form::CHUNK_BYTES, scales, minima,
                  [&](int64_t column, int64_t v, F w) { store(&wide.numbers[column][p * PANEL + v * W], w); });
    }
  }

  // Adds n columns of x, R rows, to sums.
  template <int R, int P>
  static void add(const Wide<P>& wide, const float* x, int64_t stride, int64_t n, F (&sums)[R][P * ACROSS]) {
    constexpr int C = P * ACROSS;
    F chunk[R][C];
    for (auto& row : chunk)
      for (auto& sum : row) sum = all(0.0f);
    for (int64_t column = 0; column < n; ++column) {
      F w[C];
      for (int c = 0; c < C; ++c) w[c] = load(&wide.numbers[column][c * W]);
      for (int i = 0; i < R; ++i) {
        const F value = all(x[i * stride + column]);
        for (int c = 0; c < C; ++c) chunk[i][c] = fma(value, w[c], chunk[i][c]);
      }
    }
    for (int c = 0; c < C; ++c) {
      const F scale = load(&wide.scales[c * W]);
      for (int i = 0; i < R; ++i) sums[i][c] = Form::finish(chunk[i][c], scale, sums[i][c]);
    }
  }

  template <int R, int C>
  static void write(const LinearA16Args& a, int64_t r, int64_t panel, bool last, const F (&sums)[R][C]) {
    for (int i = 0; i < R; ++i)
      for (int c = 0; c < C; ++c) {
        const int64_t j = panel * PANEL + c * W;
        put(a.y + (r + i) * a.w.m + j, sums[i][c], last && a.bias ? a.bias + j : nullptr, a.w.m - j);
      }
  }

  // Few rows: weights go from memory into the product.
  template <int R>
  static void direct(const LinearA16Args& a, const typename Form::Walk& walk, int64_t r, int64_t panel) {
    const float* x = a.x + r * a.w.k;
    F sums[R][ACROSS];
    for (auto& row : sums)
      for (auto& sum : row) sum = all(0.0f);
    const uint8_t* group = a.w.data + panel * walk.panel_bytes;
    for (int64_t g = 0, left = a.w.k; g < walk.groups; ++g, group += walk.group_bytes) {
      F scales[ACROSS], minima[ACROSS];
      for (int64_t v = 0; v < ACROSS; ++v) {
        scales[v] = Form::scale(group, v);
        if constexpr (Minimum) minima[v] = Form::minimum(group, v);
      }
      for (int64_t chunk = 0; chunk < walk.chunks && left > 0; ++chunk, x += CHUNK, left -= CHUNK) {
        if (left < CHUNK) {  // the row ends inside the chunk
          Wide<1> wide;
          widen<1>(a, walk, panel, g * walk.chunks + chunk, wide);
          add<R, 1>(wide, x, a.w.k, left, sums);
          continue;
        }
        F products[R][ACROSS];
        for (auto& row : products)
          for (auto& product : row) product = all(0.0f);
        Form::widen(group + Form::HEAD + chunk * Form::CHUNK_BYTES, scales, minima,
                    [&](int64_t column, int64_t v, F w) {
                      for (int i = 0; i < R; ++i) products[i][v] = fma(all(x[i * a.w.k + column]), w, products[i][v]);
                    });
        for (int i = 0; i < R; ++i)
          for (int64_t v = 0; v < ACROSS; ++v) sums[i][v] = Form::finish(products[i][v], scales[v], sums[i][v]);
      }
    }
    write<R, ACROSS>(a, r, panel, true, sums);
  }

  // Columns [from, from + n) of R rows, added to what stands in y.
  template <int R, int P>
  static void tile(const LinearA16Args& a, const Wide<P>* wide, int64_t r, int64_t panel, int64_t from, int64_t n) {
    constexpr int C = P * ACROSS;
    F sums[R][C];
    for (int i = 0; i < R; ++i)
      for (int c = 0; c < C; ++c) {
        const int64_t j = panel * PANEL + c * W;
        sums[i][c] = from ? load_first(a.y + (r + i) * a.w.m + j, a.w.m - j) : all(0.0f);
      }
    for (int64_t at = 0; at < n; at += CHUNK)
      add<R, P>(wide[at / CHUNK], a.x + r * a.w.k + from + at, a.w.k, least(CHUNK, n - at), sums);
    write<R, C>(a, r, panel, from + n == a.w.k, sums);
  }

  template <int P>
  static void strips(const LinearA16Args& a, const typename Form::Walk& walk, int64_t r, int64_t stop, int64_t panel) {
    Wide<P>* wide = static_cast<Wide<P>*>(a.work);
    static_assert(sizeof(Wide<P>) * (BLOCK / CHUNK) <= WORK_BYTES);
    for (int64_t from = 0; from < a.w.k; from += BLOCK) {
      const int64_t n = least(BLOCK, a.w.k - from);
      for (int64_t at = 0; at < n; at += CHUNK) widen<P>(a, walk, panel, (from + at) / CHUNK, wide[at / CHUNK]);
      int64_t i = r;
      for (; i + 6 <= stop; i += 6) tile<6, P>(a, wide, i, panel, from, n);
      switch (stop - i) {
        case 5: tile<5, P>(a, wide, i, panel, from, n); break;
        case 4: tile<4, P>(a, wide, i, panel, from, n); break;
        case 3: tile<3, P>(a, wide, i, panel, from, n); break;
        case 2: tile<2, P>(a, wide, i, panel, from, n); break;
        case 1: tile<1, P>(a, wide, i, panel, from, n); break;
        default: break;
      }
    }
  }

  static void run(const LinearA16Args& a) {
    const typename Form::Walk walk(a.w);
    const int64_t begin = a.first / PANEL, end = (a.last + PANEL - 1) / PANEL;
    const int64_t block = ROW_BYTES / (4 * a.w.k) / 6 * 6, rows = block < 24 ? 24 : block;
    for (int64_t r = 0; r < a.rows; r += rows) {
      const int64_t stop = least(r + rows, a.rows);
      for (int64_t panel = begin; panel < end; ++panel) {
        if (stop - r == 1)
          direct<1>(a, walk, r, panel);
        else if (stop - r == 2)
          direct<2>(a, walk, r, panel);
        else if (stop - r == 3)
          direct<3>(a, walk, r, panel);
        else if (panel + PAIR <= end)
          strips<PAIR>(a, walk, r, stop, panel), panel += PAIR - 1;
        else
          strips<1>(a, walk, r, stop, panel);
      }
    }
  }
};

void linear_w8a16(const LinearA16Args& a) { a.w.group ? A16<8, false, false>::run(a) : A16<8, true, false>::run(a); }
void linear_w4a16(const LinearA16Args& a) { a.w.minimum ? A16<4, false, true>::run(a) : A16<4, false, false>::run(a); }
void linear_w8a8(const LinearA8Args& a) { a.w.group ? A8<8, false, false>::run(a) : A8<8, true, false>::run(a); }
void linear_w4a8(const LinearA8Args& a) { a.w.minimum ? A8<4, false, true>::run(a) : A8<4, false, false>::run(a); }

}  // namespace
}  // namespace eyespot

#endif
