// What our functions for torch's CPU compiler share: numbers as its vectors, loaded and stored.

#ifndef RECDEPTH_VECTORS
#define RECDEPTH_VECTORS

#include <ATen/Parallel.h>

#include <type_traits>

namespace recdepth {

// float16 and bfloat16 are summed in float32
template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <typename T>
using Vec = at::vec::Vectorized<Sum<T>>;

template <typename T>
inline Vec<T> load(const T* from, int count) {
  using From = at::vec::Vectorized<T>;
  if constexpr (std::is_same_v<T, Sum<T>>) {
    return count == Vec<T>::size() ? From::loadu(from) : From::loadu(from, count);
  } else {
    return at::vec::convert<Sum<T>>(From::loadu(from, count));
  }
}

template <typename T>
inline void store(T* to, const Vec<T>& x, int count) {
  if constexpr (std::is_same_v<T, Sum<T>>) {
    x.store(to, count);
  } else {
    at::vec::convert<T>(x).store(to, count);
  }
}

}  // namespace recdepth

#endif  // RECDEPTH_VECTORS
