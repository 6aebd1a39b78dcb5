// Work of many equal parts over torch's own threads.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fastpose {

// The tails of a Gaussian are full of denormal numbers, which many CPUs multiply a hundred times slower than others. They are
// flushed to zero while a kernel runs; the thread's own setting comes back afterwards.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }  // FTZ, DAZ
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ | (uint64_t(1) << 24)));  // FZ
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

// Calls f(begin, end) over [0, parts), in pieces of at least ~32,768 elements when each part has `elements` of them.
template <typename F> void parallel_parts(int64_t parts, int64_t elements, const F& f) {
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, elements));
  torch::stable::parallel_for(0, parts, grain, [&](int64_t begin, int64_t end) {
    FlushDenormals flush;
    f(begin, end);
  });
}

}  // namespace fastpose
