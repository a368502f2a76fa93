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
  constexpr int at_once = most == 1 ? 8 : most < 6 ? std::min(4, sums / most) : sums / most, wide = at_once * lanes;
  const int64_t whole = columns / wide, single = (columns - whole * wide + lanes - 1) / lanes;
  const int64_t grain = std::max<int64_t>(1, 200000 / (ROWS * inner * lanes));
  at::parallel_for(0, whole + single, grain, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t column = i < whole ? i * wide : whole * wide + (i - whole) * lanes;
      const int filled = std::min<int64_t>(lanes, columns - column);
      const auto block = [&](auto rows, int64_t row) {
        const T* from_here = x + row * inner;
        T* to_here = y + row * columns + column;
        constexpr int M = decltype(rows)::value;
        if (i < whole) multiply<T, M, at_once>(from_here, inner, weight + column, columns, to_here, lanes);
        else multiply<T, M, 1, false>(from_here, inner, weight + column, columns, to_here, filled);
      };
      // a strip of the weight stays in the cache while all rows take it
      if constexpr (ROWS >= tile)
        for (int64_t row = 0; row + tile <= ROWS; row += tile) block(std::integral_constant<int, tile>(), row);
      if constexpr (rest > 0) block(std::integral_constant<int, rest>(), ROWS - rest);
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
  const int64_t strips = (columns + strip - 1) / strip;
  const int64_t grain = std::max<int64_t>(1, 200000 / (ROWS * inner * strip));
  at::parallel_for(0, strips, grain, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t end = std::min(columns, (i + 1) * strip);
      const auto block = [&](auto rows, int64_t row) {
        constexpr int M = decltype(rows)::value;
        const T* from_here = x + row * inner;
        int64_t column = i * strip;
        for (; column + tile <= end; column += tile)
          multiply_plain<T, M, tile>(from_here, inner, weight + column * inner, y + row * columns + column, columns);
        for (; column < end; ++column)
          multiply_plain<T, M, 1>(from_here, inner, weight + column * inner, y + row * columns + column, columns);
      };
      if constexpr (ROWS >= tile)
        for (int64_t row = 0; row + tile <= ROWS; row += tile) block(std::integral_constant<int, tile>(), row);
      if constexpr (rest > 0) block(std::integral_constant<int, rest>(), ROWS - rest);
    }
  });
}

}  // namespace recdepth

#endif  // RECDEPTH_PRODUCT
