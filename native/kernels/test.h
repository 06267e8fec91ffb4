// test.h: what the kernel tests share: the count of checks, error bounds, and arrays placed so that a wrong alignment or
// a step outside shows. Knows no kernel.
#ifndef EYESPOT_KERNELS_TEST_H_
#define EYESPOT_KERNELS_TEST_H_

#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <string>

#include "kernels/generic.h"

namespace eyespot {

constexpr double UNIT = 0x1p-24;    // rounding unit of float32
constexpr double EXP_ERROR = 3e-7;  // relative, of any kernel's exp
constexpr double TINY = 1e-37;      // what underflow may lose

// Relative error of a sum of n products, in any order (Higham's gamma).
inline double gamma(double n) { return n * UNIT / (1 - n * UNIT); }

inline int passed = 0, failed = 0;

inline void expect(bool good, const std::string& name, const std::string& sizes, double found = 0, double bound = 0) {
  ++(good ? passed : failed);
  if (!good && failed <= 40)
    std::printf("FAIL %s %s: off by %g, bound %g\n", name.c_str(), sizes.c_str(), found, bound);
}

template <class... Sizes>
std::string text(Sizes... sizes) {
  std::string line;
  ((line += std::to_string(sizes) + " "), ...);
  return line;
}

inline std::mt19937 rng(7);
inline float uniform(float low = -1, float high = 1) { return std::uniform_real_distribution<float>(low, high)(rng); }

// n elements that start one element past the allocation's own alignment and end with it, so that a sanitizer sees any
// step outside.
template <class T>
struct Array {
  explicit Array(int64_t n) : storage(new T[static_cast<size_t>(n) + 1]()), n(n) {}
  T* data() { return storage.get() + 1; }
  T& operator[](int64_t i) { return storage[static_cast<size_t>(i) + 1]; }
  std::unique_ptr<T[]> storage;
  int64_t n;
};

inline Array<float> random_floats(int64_t n, float low = -1, float high = 1) {
  Array<float> a(n);
  for (int64_t i = 0; i < n; ++i) a[i] = uniform(low, high);
  return a;
}

// n zeroed elements aligned to 32 bytes and to no more, which end with the allocation: packed weights and caches.
template <class T>
struct Aligned {
  explicit Aligned(int64_t n) : bytes(static_cast<size_t>(n) * sizeof(T)), storage(::operator new(32 + bytes, ALIGN)) {
    std::memset(data(), 0, bytes);
  }
  T* data() { return reinterpret_cast<T*>(static_cast<char*>(storage.get()) + 32); }
  T& operator[](int64_t i) { return data()[i]; }

  static constexpr std::align_val_t ALIGN{64};
  struct Free {
    void operator()(void* p) const { ::operator delete(p, ALIGN); }
  };
  size_t bytes;
  std::unique_ptr<void, Free> storage;
};

// Scratch for every call.
struct Work {
  Aligned<char> storage{WORK_BYTES + 32};
  void* data = storage.data() + 32;  // 64-byte aligned
};
inline Work work;

// Sizes around each lane and tile boundary.
constexpr int64_t COLUMNS[] = {1,  2,  3,  5,   7,   8,   9,   15,  16,  17,  24,  31,  32,   33,
                               63, 64, 65, 100, 127, 128, 129, 200, 511, 512, 513, 530, 1025, 1100};
constexpr int64_t ROWS[] = {1, 2, 3, 4, 5, 6, 7};
constexpr int64_t OUTPUTS[] = {1, 3, 4, 5, 8, 9, 16, 17, 35};

}  // namespace eyespot

#endif
