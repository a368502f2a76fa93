// Products of few rows for torch's CPU compiler, with its vectors; see products.py. Every element is added up in the same
// order whatever the number of rows.

#ifndef RECDEPTH_PRODUCT
#define RECDEPTH_PRODUCT

#include <algorithm>

namespace recdepth {

// `M` rows times `C` vectors of columns, or one that is not all `filled`.
template <typename T, int M, int C, bool WHOLE = true>
inline void multiply(const T* x, int64_t inner, const T* weight, int64_t columns, T* y, int filled) {
  using V = Vec<T>;
  constexpr int lanes = V::size();
  V sum[M][C];
  for (int m = 0; m < M; ++m)
    for (int c = 0; c < C; ++c) sum[m][c] = V(0);
  for (int64_t k = 0; k < inner; ++k) {
    V w[C];
    for (int c = 0; c < C; ++c) {
      const T* from = weight + k * columns + c * lanes;
      w[c] = load(from, WHOLE ? lanes : filled);
    }
    for (int m = 0; m < M; ++m) {
      const V factor(Sum<T>(x[m * inner + k]));
      for (int c = 0; c < C; ++c) sum[m][c] = at::vec::fmadd(factor, w[c], sum[m][c]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int c = 0; c < C; ++c) store(y + m * columns + c * lanes, sum[m][c], WHOLE ? lanes : filled);
}

// Give every thread its part: of the rows, a whole number of tiles, where that is fair and every core can hold the weight,
// else of the columns. `work` is called with the rows [row, end) and the units of columns [first, last), `cost`
// multiply-adds each for every row.
template <typename F>
void share_out(int64_t rows, int64_t tile, int64_t units, int64_t cost, const F& work) {
  constexpr int64_t least = 200000, held = 1 << 18;  // multiply-adds of a part, numbers of a weight
  const int64_t tiles = (rows + tile - 1) / tile, threads = at::get_num_threads();
  if (units * cost <= held && (tiles % threads == 0 || tiles >= 4 * threads)) {
    at::parallel_for(0, tiles, std::max<int64_t>(1, least / (tile * units * cost)), [&](int64_t from, int64_t to) {
      work(from * tile, std::min(rows, to * tile), 0, units);
    });
  } else {
    at::parallel_for(0, units, std::max<int64_t>(1, least / (rows * cost)), [&](int64_t from, int64_t to) {
      work(0, rows, from, to);
    });
  }
}

// y [ROWS, columns] = x [ROWS, inner] times the weight, which lies as its transpose: [inner, columns] in memory.
template <typename T, int ROWS>
void product(const T* x, const T* weight, T* y, int64_t inner, int64_t columns) {
  constexpr int lanes = Vec<T>::size();
#if defined(CPU_CAPABILITY_AVX2)
  constexpr int tile = 4, sums = 12;  // of 16 registers
#else
  constexpr int tile = 8, sums = 24;  // of 32
#endif
  constexpr int rest = ROWS % tile, most = std::min(ROWS, tile);
  constexpr int at_once = most == 1 ? 8 : most < 6 ? std::min(4, sums / most) : sums / most;
  const int64_t vectors = (columns + lanes - 1) / lanes;
  share_out(ROWS, tile, vectors, inner * lanes, [&](int64_t row, int64_t end, int64_t vector, int64_t last) {
    while (vector < last) {
      const int64_t column = vector * lanes, full = std::min(last, columns / lanes) - vector;
      const int filled = std::min<int64_t>(lanes, columns - column);
      const auto strip = [&](auto width) {
        constexpr int C = decltype(width)::value;
        const auto block = [&](auto rows, int64_t row) {
          multiply<T, decltype(rows)::value, C, (C > 1)>(
              x + row * inner, inner, weight + column, columns, y + row * columns + column, filled);
        };
        // a strip of the weight stays in the cache while all rows take it
        if constexpr (ROWS >= tile)
          for (int64_t i = row; i + tile <= end; i += tile) block(std::integral_constant<int, tile>(), i);
        if constexpr (rest > 0)
          if (end == ROWS) block(std::integral_constant<int, rest>(), ROWS - rest);
        vector += C;
      };
      // a strip of one vector takes nearly as long as one of three: of four left, two and two
      if (full >= at_once && (at_once != 3 || full != 4)) strip(std::integral_constant<int, at_once>());
      else if (full >= 2) strip(std::integral_constant<int, 2>());
      else strip(std::integral_constant<int, 1>());
    }
  });
}

// `M` rows times `N` columns of a weight that is [columns, inner] in memory.
template <typename T, int M, int N>
inline void multiply_plain(const T* x, int64_t inner, const T* weight, T* y, int64_t columns) {
  using V = Vec<T>;
  constexpr int lanes = V::size();
  V sum[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sum[m][n] = V(0);
  for (int64_t k = 0; k < inner; k += lanes) {
    const int filled = std::min<int64_t>(lanes, inner - k);
    V w[N];
    for (int n = 0; n < N; ++n) w[n] = load(weight + n * inner + k, filled);
    for (int m = 0; m < M; ++m) {
      const V factor = load(x + m * inner + k, filled);
      for (int n = 0; n < N; ++n) sum[m][n] = at::vec::fmadd(factor, w[n], sum[m][n]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n)
      y[m * columns + n] = T(at::vec::vec_reduce_all<Sum<T>>([](V& a, V& b) { return a + b; }, sum[m][n]));
}

// The same as `product` with a weight that is [columns, inner] in memory.
template <typename T, int ROWS>
void product_plain(const T* x, const T* weight, T* y, int64_t inner, int64_t columns) {
  constexpr int tile = 4, strip = 64, rest = ROWS % tile;
  share_out(ROWS, tile, columns, inner, [&](int64_t row, int64_t end, int64_t first, int64_t last) {
    for (; first < last; first += strip) {
      const int64_t stop = std::min(last, first + strip);
      const auto block = [&](auto rows, int64_t row) {
        constexpr int M = decltype(rows)::value;
        const T* from = x + row * inner;
        int64_t column = first;
        for (; column + tile <= stop; column += tile)
          multiply_plain<T, M, tile>(from, inner, weight + column * inner, y + row * columns + column, columns);
        for (; column < stop; ++column)
          multiply_plain<T, M, 1>(from, inner, weight + column * inner, y + row * columns + column, columns);
      };
      if constexpr (ROWS >= tile)
        for (int64_t i = row; i + tile <= end; i += tile) block(std::integral_constant<int, tile>(), i);
      if constexpr (rest > 0)
        if (end == ROWS) block(std::integral_constant<int, rest>(), ROWS - rest);
    }
  });
}

}  // namespace recdepth

#endif  // RECDEPTH_PRODUCT
