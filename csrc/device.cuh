// What every CUDA kernel here needs: elements and 16-byte packs, reductions in a fixed order, launches. No torch, so that the same
// files compile for the CPU under tests/cuda_on_cpu/cuda_on_cpu.h.
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_on_cpu.h"
#endif
#include <stdexcept>
#include <string>

#include "dtype.h"

namespace fastpose {

// ---- one element <-> float ------------------------------------------------------------------------------------------

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(uint8_t v) { return float(v); }
__device__ __forceinline__ float widen(BFloat16 v) { return __uint_as_float(uint32_t(v.bits) << 16); }
__device__ __forceinline__ float widen(Half v) { return __half2float(__ushort_as_half(v.bits)); }

__device__ __forceinline__ void narrow(float a, float* p) { *p = a; }
__device__ __forceinline__ void narrow(float a, BFloat16* p) { p->bits = __bfloat16_as_ushort(__float2bfloat16_rn(a)); }
__device__ __forceinline__ void narrow(float a, Half* p) { p->bits = __half_as_ushort(__float2half_rn(a)); }

// ---- packs ----------------------------------------------------------------------------------------------------------

// As many elements as one 16-byte access moves.
template <typename T> constexpr int kPack = 16 / sizeof(T);

template <typename T> __device__ __forceinline__ void unpack(uint4 q, float* v) {
  const uint32_t word[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      v[i] = __uint_as_float(word[i]);
    } else {
      v[2 * i] = widen(T{uint16_t(word[i] & 0xffff)});
      v[2 * i + 1] = widen(T{uint16_t(word[i] >> 16)});
    }
  }
}

// Most maps are read once and written once, and both bypass what the caches would keep (ld.global.cs, st.global.cs).
template <typename T> __device__ __forceinline__ void load_pack(const T* p, float* v) {
  unpack<T>(__ldcs(reinterpret_cast<const uint4*>(p)), v);
}
// For what is read several times.
template <typename T> __device__ __forceinline__ void load_cached_pack(const T* p, float* v) {
  unpack<T>(__ldg(reinterpret_cast<const uint4*>(p)), v);
}

template <typename T> __device__ __forceinline__ void store_pack(const float* v, T* p) {
  uint32_t word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      word[i] = __float_as_uint(v[i]);
    } else {
      T low, high;
      narrow(v[2 * i], &low);
      narrow(v[2 * i + 1], &high);
      word[i] = uint32_t(low.bits) | uint32_t(high.bits) << 16;
    }
  }
  __stcs(reinterpret_cast<uint4*>(p), make_uint4(word[0], word[1], word[2], word[3]));
}

// `count` <= kPack elements that lie `stride` apart, one by one; the others read `fill` and are not written.
template <typename T> __device__ __forceinline__ void load_scattered(const T* p, int64_t stride, int count, float fill, float* v) {
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) v[i] = i < count ? widen(p[i * stride]) : fill;
}

template <typename T> __device__ __forceinline__ void store_scattered(const float* v, T* p, int64_t stride, int count) {
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i)
    if (i < count) narrow(v[i], p + i * stride);
}

// Whether packs along `inner` (the dimension of stride 1, `extent` long) can be moved as 16 bytes each everywhere in the maps.
inline bool packs_fit(const Maps& maps, int64_t inner, int64_t extent, int64_t a, int64_t b, int64_t c, int element_size) {
  const int64_t n = 16 / element_size;
  return inner == 1 && extent % n == 0 && a % n == 0 && b % n == 0 && c % n == 0 &&
         reinterpret_cast<uintptr_t>(maps.data) % 16 == 0;
}
inline bool row_packs_fit(const Maps& m, int64_t width, int element_size) {
  return packs_fit(m, m.column, width, m.row, m.joint, m.batch, element_size);
}
inline bool joint_packs_fit(const Maps& m, int64_t joints, int element_size) {
  return packs_fit(m, m.joint, joints, m.column, m.row, m.batch, element_size);
}

// ---- reductions -----------------------------------------------------------------------------------------------------

// Sums over the warp or the block, the same bits in every run and in every thread. kThreads is a multiple of 32.
template <typename A> __device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (int offset = 16; offset; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}
template <int kThreads, typename A> __device__ __forceinline__ A block_sum(A value) {
  __shared__ A warps[kThreads / 32];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  A sum = warps[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) sum += warps[i];
  __syncthreads();  // the next reduction writes `warps` again
  return sum;
}

// ---- launches -------------------------------------------------------------------------------------------------------

// Calls f(Type<T>) for the C++ type of `dtype`; a GPU has no float64 kernels.
template <typename F> void for_device_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float32: return f(Type<float>{});
    case DType::float16: return f(Type<Half>{});
    case DType::bfloat16: return f(Type<BFloat16>{});
    case DType::float64: throw std::runtime_error("fastpose: float64 maps are for the CPU; on a GPU use float32, float16 or bfloat16");
  }
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

#ifdef __CUDACC__
template <typename... P, typename... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, void* stream, A... arguments) {
  if (blocks == 0) return;
  if (blocks > 0x7fffffff) throw std::runtime_error("fastpose: more than 2^31 blocks; split the batch");
  kernel<<<unsigned(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(P(arguments)...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string("fastpose: kernel launch failed: ") + cudaGetErrorString(error));
}
#endif

}  // namespace fastpose
