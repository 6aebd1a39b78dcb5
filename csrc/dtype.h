// The element types a kernel may meet, and where the maps of a batch lie in memory. No torch: shared by CPU kernels, CUDA kernels and tests.
#pragma once
#include <cstdint>

// For what CPU and CUDA kernels share. Never emitted as a function of its own: the linker would choose one copy for all SIMD
// levels, and might choose the one with AVX-512 in it.
#ifdef __CUDACC__
#define FASTPOSE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTPOSE_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace fastpose {

enum class DType { float32, float64, float16, bfloat16 };

struct Half { uint16_t bits; };
struct BFloat16 { uint16_t bits; };

// Arithmetic is done in float32, in float64 for float64.
template <typename T> struct AccumulatorOf { using type = float; };
template <> struct AccumulatorOf<double> { using type = double; };
template <typename T> using Accumulator = typename AccumulatorOf<T>::type;

// B x K maps of H x W elements, strides in elements: NCHW, channels_last and views alike. A stride may be 0.
struct Maps {
  void* data;
  int64_t batch, joint, row, column;

  template <typename T> FASTPOSE_HOST_DEVICE T* plane(int64_t b, int64_t k) const { return static_cast<T*>(data) + b * batch + k * joint; }
};

template <typename T> struct Type { using type = T; };

// Calls f(Type<T>) for the C++ type of `dtype`.
template <typename F> void for_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float32: return f(Type<float>{});
    case DType::float64: return f(Type<double>{});
    case DType::float16: return f(Type<Half>{});
    case DType::bfloat16: return f(Type<BFloat16>{});
  }
}

}  // namespace fastpose
