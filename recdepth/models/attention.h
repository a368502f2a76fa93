// Attention of few queries to cached keys and values: every query reads the keys up to its own position, where they
// lie, and no mask. For torch's CPU compiler, with its vectors; see attention.py.

#ifndef RECDEPTH_ATTENTION
#define RECDEPTH_ATTENTION

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace recdepth {

// Sizes and strides, in elements; the last dimension of each is dense.
struct Shape {
  int64_t batch, heads, group;  // so many query heads share one head of keys
  int64_t q_batch, q_time, q_head, k_row, k_head, k_time, v_row, v_head, v_time;
};

// Softmax of a query's scores in place; those behind its keys become 0.
template <typename T>
inline Sum<T> softmax(Sum<T>* scores, int64_t keys, int64_t padded, Sum<T> scale) {
  using V = Vec<T>;
  constexpr int64_t lanes = V::size();
  std::fill(scores + keys, scores + padded, -std::numeric_limits<Sum<T>>::infinity());
  V most = V::loadu(scores);
  for (int64_t j = lanes; j < padded; j += lanes) most = at::vec::maximum(most, V::loadu(scores + j));
  const V top(at::vec::vec_reduce_all<Sum<T>>([](V& a, V& b) { return at::vec::maximum(a, b); }, most));
  V total(0);
  for (int64_t j = 0; j < padded; j += lanes) {
    const V e = ((V::loadu(scores + j) - top) * V(scale)).exp_u20();
    e.store(scores + j);
    total = total + e;
  }
  return at::vec::vec_reduce_all<Sum<T>>([](V& a, V& b) { return a + b; }, total);
}

// Bring a key or value near: no core guesses where the next head's lie, and with keys per depth they are far away.
template <typename T, int D>
inline void fetch(const T* from) {
  constexpr int line = 64;
  for (int byte = 0; byte < D * int(sizeof(T)); byte += line)
    __builtin_prefetch(reinterpret_cast<const char*>(from) + byte, 0, 2);  // the second cache waits for more at once
}

// `N` adjacent queries of one head on the same keys, `next_k` those to come. What comes out for each does not depend on
// the others.
template <typename T, int D, int N>
inline void attend_some(
    const T* q, int64_t q_time, const T* k, int64_t k_time, const T* v, int64_t v_time,
    const int64_t* positions, int64_t padded_most, Sum<T>* scores, T* out, int64_t out_time, const T* next_k) {
  using V = Vec<T>;
  constexpr int lanes = V::size(), parts = (D + lanes - 1) / lanes;
  constexpr auto filled = [](int part) { return std::min<int>(V::size(), D - part * V::size()); };
  constexpr int64_t ahead = (1 << 15) / (D * sizeof(T));  // further on, the core has understood
  const Sum<T> scale = 1 / std::sqrt(Sum<T>(D));
  int64_t keys[N], most = 1;
  for (int n = 0; n < N; ++n) {
    keys[n] = std::max<int64_t>(positions[n], 0) + 1;
    most = std::max(most, keys[n]);
  }
  const int64_t padded = (most + lanes - 1) / lanes * lanes;
  V query[N][parts];
  for (int n = 0; n < N; ++n)
    for (int p = 0; p < parts; ++p) query[n][p] = load(q + n * q_time + p * lanes, filled(p));
  for (int64_t j = 0; j < most; ++j) {
    if (j < ahead) fetch<T, D>(v + j * v_time);
    V sum[N];
    for (int p = 0; p < parts; ++p) {
      const V key = load(k + j * k_time + p * lanes, filled(p));
      for (int n = 0; n < N; ++n) sum[n] = p ? at::vec::fmadd(query[n][p], key, sum[n]) : query[n][p] * key;
    }
    for (int n = 0; n < N; ++n)
      scores[n * padded_most + j] =
          at::vec::vec_reduce_all<Sum<T>>([](V& a, V& b) { return a + b; }, sum[n]);
  }
  Sum<T> total[N];
  for (int n = 0; n < N; ++n) total[n] = softmax<T>(scores + n * padded_most, keys[n], padded, scale);
  constexpr int at_once = std::max(1, std::min(parts, 16 / N));  // as many sums as there are registers
  for (int first = 0; first < parts; first += at_once) {
    V sum[N][at_once];
    for (int n = 0; n < N; ++n)
      for (int p = 0; p < at_once; ++p) sum[n][p] = V(0);
    for (int64_t j = 0; j < most; ++j) {
      if (first == 0 && j < ahead) fetch<T, D>(next_k + j * k_time);
      for (int p = 0; p < at_once; ++p) {
        const int part = std::min(first + p, parts - 1);
        const V value = load(v + j * v_time + part * lanes, filled(part));
        for (int n = 0; n < N; ++n) sum[n][p] = at::vec::fmadd(V(scores[n * padded_most + j]), value, sum[n][p]);
      }
    }
    for (int n = 0; n < N; ++n)
      for (int p = 0; p < at_once && first + p < parts; ++p)
        store(out + n * out_time + (first + p) * lanes, sum[n][p] * V(1 / total[n]), filled(first + p));
  }
}

template <typename T, int D, int TIME>
void attend(const T* q, const T* k, const T* v, const int64_t* rows, const int64_t* positions, T* out, Shape s) {
  using V = Vec<T>;
  constexpr int lanes = V::size(), tile = D > 2 * lanes ? 4 : 8;  // as many queries as there are registers for
  // adjacent queries on the same row of keys go together
  std::vector<int64_t> begins;
  const int64_t queries = s.batch * TIME, out_time = s.heads * D;
  for (int64_t i = 0; i < queries; ++i)
    if (i % TIME == 0 || rows[i] != rows[i - 1]) begins.push_back(i);
  begins.push_back(queries);
  const int64_t runs = begins.size() - 1;
  const int64_t work = queries * s.heads * D * (*std::max_element(positions, positions + queries) + 1) * 4;
  const int64_t grain = std::max<int64_t>(1, runs * s.heads * 200000 / std::max<int64_t>(work, 1));
  at::parallel_for(0, runs * s.heads, grain, [&](int64_t from, int64_t to) {
    static thread_local std::vector<Sum<T>> scratch;
    for (int64_t item = from; item < to; ++item) {
      const int64_t begin = begins[item / s.heads], end = begins[item / s.heads + 1], head = item % s.heads;
      const int64_t most = std::max<int64_t>(*std::max_element(positions + begin, positions + end), 0) + 1;
      const int64_t padded = (most + lanes - 1) / lanes * lanes;
      scratch.resize(std::max<size_t>(scratch.size(), padded * tile));
      const T* keys = k + rows[begin] * s.k_row + head / s.group * s.k_head;
      const T* values = v + rows[begin] * s.v_row + head / s.group * s.v_head;
      const int64_t after = std::min(item + 1, to - 1);
      const T* next_k = k + rows[begins[after / s.heads]] * s.k_row + after % s.heads / s.group * s.k_head;
      Sum<T>* scores = scratch.data();
      for (int64_t i = begin; i < end;) {
        const T* query = q + i / TIME * s.q_batch + i % TIME * s.q_time + head * s.q_head;
        T* to_here = out + i * out_time + head * D;
        const auto some = [&](auto count) {
          attend_some<T, D, decltype(count)::value>(
              query, s.q_time, keys, s.k_time, values, s.v_time, positions + i, padded, scores, to_here,
              out_time, next_k);
          i += decltype(count)::value;
        };
        const int64_t left = end - i;
        if constexpr (TIME >= tile) {
          if (left >= tile) {
            some(std::integral_constant<int, tile>());
            continue;
          }
        }
        if constexpr (TIME >= 4 && tile > 4) {
          if (left >= 4) {
            some(std::integral_constant<int, 4>());
            continue;
          }
        }
        some(std::integral_constant<int, 1>());
      }
    }
  });
}

}  // namespace recdepth

#endif  // RECDEPTH_ATTENTION
