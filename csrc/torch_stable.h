// The words this package uses from LibTorch's stable ABI (torch >= 2.11, CPU and CUDA builds alike).
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "dtype.h"
#include "parallel.h"

// Defined by CUDA builds of torch only. Weak, so that the module also loads into a CPU build.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#pragma weak aoti_torch_get_current_cuda_stream

namespace fastpose {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#ifdef FASTPOSE_CUDA
constexpr bool kCudaBuilt = true;
#else
constexpr bool kCudaBuilt = false;
#endif

#ifdef FASTPOSE_CUDA_ON_CPU  // a build of the tests: the CUDA kernels, compiled for the CPU, take CPU tensors
constexpr bool kCudaOnCpu = true;
#else
constexpr bool kCudaOnCpu = false;
#endif

// Registers `function` as fastpose::name for the devices this build has kernels for. The schema is Python's: fastpose/ops/<op>.py.
#ifdef FASTPOSE_CUDA
#define FASTPOSE_REGISTER(name, function)                                                      \
  STABLE_TORCH_LIBRARY_IMPL(fastpose, CPU, m) { m.impl(#name, TORCH_BOX(&function)); }          \
  STABLE_TORCH_LIBRARY_IMPL(fastpose, CUDA, m) { m.impl(#name, TORCH_BOX(&function)); }
#else
#define FASTPOSE_REGISTER(name, function) \
  STABLE_TORCH_LIBRARY_IMPL(fastpose, CPU, m) { m.impl(#name, TORCH_BOX(&function)); }
#endif

inline DType dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::Double: return DType::float64;
    case ScalarType::Half: return DType::float16;
    case ScalarType::BFloat16: return DType::bfloat16;
    default: STD_TORCH_CHECK(false, "fastpose: dtype must be float32, float16, bfloat16 or float64"); return DType::float32;
  }
}

inline ScalarType accumulator_of(ScalarType type) { return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

inline Maps maps_of(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// The public Python functions say in words what is wrong with an argument; this guards the memory against direct callers of the op.
inline void check_tensor(const Tensor& t, const char* name, std::initializer_list<int64_t> shape, ScalarType dtype, const Tensor& device) {
  bool same = t.dim() == int64_t(shape.size());
  int64_t i = 0;
  for (int64_t n : shape) same = same && t.size(i++) == n;
  STD_TORCH_CHECK(same, "fastpose: ", name, " has the wrong shape");
  STD_TORCH_CHECK(t.scalar_type() == dtype, "fastpose: ", name, " has the wrong dtype");
  STD_TORCH_CHECK(t.device() == device.device(), "fastpose: ", name, " is on another device");
}

// Small operands (keypoints, weights, gradients of coordinates) are read as one dense block.
inline void check_dense(const Tensor& t, const char* name, std::initializer_list<int64_t> shape, ScalarType dtype, const Tensor& device) {
  check_tensor(t, name, shape, dtype, device);
  STD_TORCH_CHECK(t.is_contiguous(), "fastpose: ", name, " must be contiguous");
}

// Uninitialised memory on the same device, straight from the allocator: torch::stable::new_empty looks the operator up by name and
// boxes its arguments, a microsecond more for each tensor.
inline Tensor new_dense(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0; stride *= std::max<int64_t>(1, shape[d])) strides[d] = stride;
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(),
                                                  torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                                                  device_type, device_index, &made));
  return Tensor(made);
}

// Whether the CUDA kernels do the work on this tensor.
inline bool runs_cuda(const Tensor& where) { return kCudaOnCpu || where.is_cuda(); }

// Runs `cuda(stream)` on the tensor's device and current stream, or `cpu()`.
template <typename Cpu, typename Cuda> void run_on(const Tensor& where, Cpu&& cpu, Cuda&& cuda) {
  if (!runs_cuda(where)) return cpu();
  if constexpr (kCudaOnCpu) {
    cuda(nullptr);
  } else if constexpr (kCudaBuilt) {
    torch::stable::accelerator::DeviceGuard guard(where.get_device_index());
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(where.get_device_index(), &stream));
    cuda(stream);
  }
}

}  // namespace fastpose
