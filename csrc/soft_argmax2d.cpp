// fastpose::soft_argmax2d and its backward: checks, allocation, launch. The definition is fastpose/ops/soft_argmax2d.py.
#include "soft_argmax2d.h"

#include "torch_stable.h"

namespace fastpose {

// Describes a forward pass whose results lie in the given tensors; an empty covariance means that none is asked for.
static SoftArgmax2d job_of(const Tensor& heatmaps, double temperature, const Tensor& coordinates, const Tensor& confidence,
                           const Tensor& covariance, const Tensor& argmax) {
  STD_TORCH_CHECK(heatmaps.dim() == 4, "fastpose: heatmaps must be (B, K, H, W)");
  const int64_t batch = heatmaps.size(0), joints = heatmaps.size(1), height = heatmaps.size(2), width = heatmaps.size(3);
  STD_TORCH_CHECK(height > 0 && width > 0 && height < INT32_MAX && width < INT32_MAX, "fastpose: heatmaps have a wrong size");
  const ScalarType dtype = accumulator_of(heatmaps.scalar_type());
  const bool second = covariance.numel() > 0;
  check_dense(coordinates, "coordinates", {batch, joints, 2}, dtype, heatmaps);
  check_dense(confidence, "confidence", {batch, joints}, dtype, heatmaps);
  if (second) check_dense(covariance, "covariance", {batch, joints, 2, 2}, dtype, heatmaps);
  check_dense(argmax, "argmax", {batch, joints}, ScalarType::Long, heatmaps);
  return {dtype_of(heatmaps.scalar_type()), maps_of(heatmaps), batch, joints, height, width, temperature,
          coordinates.data_ptr(), confidence.data_ptr(), second ? covariance.data_ptr() : nullptr,
          static_cast<int64_t*>(argmax.data_ptr())};
}

template <typename Cpu, typename Cuda> static void run_units(const SoftArgmax2d& job, const Tensor& where, Cpu&& cpu, Cuda&& cuda) {
  const int64_t units = std::max<int64_t>(1, units_per_image(job));  // of no joints: parts without work
  run_on(where, [&] { parallel_parts(job.batch * units_per_image(job), (job.joints + units - 1) / units * job.height * job.width, cpu); }, cuda);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> soft_argmax2d(const Tensor& heatmaps, double temperature, bool covariance) {
  STD_TORCH_CHECK(heatmaps.dim() == 4, "fastpose: heatmaps must be (B, K, H, W)");
  const int64_t batch = heatmaps.size(0), joints = heatmaps.size(1);
  const ScalarType dtype = accumulator_of(heatmaps.scalar_type());
  Tensor mean = new_dense(heatmaps, {batch, joints, 2}, dtype), confidence = new_dense(heatmaps, {batch, joints}, dtype);
  Tensor second = covariance ? new_dense(heatmaps, {batch, joints, 2, 2}, dtype) : new_dense(heatmaps, {0}, dtype);
  Tensor argmax = new_dense(heatmaps, {batch, joints}, ScalarType::Long);
  const SoftArgmax2d job = job_of(heatmaps, temperature, mean, confidence, second, argmax);
  run_units(
      job, heatmaps, [&](int64_t begin, int64_t end) { FASTPOSE_SIMD_BEST(soft_argmax2d_units)(job, begin, end); },
      [&](void* stream) {
        Tensor states = new_dense(heatmaps, {soft_argmax2d_state_bytes(job)}, ScalarType::Byte);
        soft_argmax2d_cuda(job, states.data_ptr(), stream);
      });
  return {mean, confidence, second, argmax};
}

Tensor soft_argmax2d_backward(const std::optional<Tensor>& to_coordinates, const std::optional<Tensor>& to_confidence,
                              const std::optional<Tensor>& to_covariance, const Tensor& heatmaps, double temperature,
                              const Tensor& coordinates, const Tensor& confidence, const Tensor& covariance, const Tensor& argmax) {
  const SoftArgmax2d forward = job_of(heatmaps, temperature, coordinates, confidence, covariance, argmax);
  const ScalarType dtype = accumulator_of(heatmaps.scalar_type());
  auto upstream = [&](const std::optional<Tensor>& t, const char* name, std::initializer_list<int64_t> shape) -> const void* {
    if (!t) return nullptr;
    check_dense(*t, name, shape, dtype, heatmaps);
    return t->data_ptr();
  };
  const int64_t b = forward.batch, k = forward.joints;
  Tensor gradient = torch::stable::empty_like(heatmaps);
  const SoftArgmax2dBackward job{forward,
                                 upstream(to_coordinates, "the gradient of coordinates", {b, k, 2}),
                                 upstream(to_confidence, "the gradient of confidence", {b, k}),
                                 forward.covariance ? upstream(to_covariance, "the gradient of covariance", {b, k, 2, 2}) : nullptr,
                                 maps_of(gradient)};
  run_units(
      forward, heatmaps, [&](int64_t begin, int64_t end) { FASTPOSE_SIMD_BEST(soft_argmax2d_backward_units)(job, begin, end); },
      [&](void* stream) { soft_argmax2d_backward_cuda(job, stream); });
  return gradient;
}

FASTPOSE_REGISTER(soft_argmax2d, soft_argmax2d)
FASTPOSE_REGISTER(soft_argmax2d_backward, soft_argmax2d_backward)

}  // namespace fastpose
