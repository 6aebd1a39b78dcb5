// The arguments that rendering and the loss share, from the dispatcher's form to the kernels'.
#pragma once
#include "gaussian.h"
#include "torch_stable.h"

namespace fastpose {

// keypoints (B, P, K, 2) and sigmas (K) in the accumulator's type of maps of `dtype`.
inline Gaussians gaussians_of(const Tensor& keypoints, const std::optional<Tensor>& sigmas, double sigma, int64_t rounding,
                              double radius, bool circular, bool add, double amplitude, double offset, int64_t height,
                              int64_t width, ScalarType dtype) {
  STD_TORCH_CHECK(keypoints.dim() == 4, "fastpose: keypoints must be (B, P, K, 2)");
  const int64_t batch = keypoints.size(0), people = keypoints.size(1), joints = keypoints.size(2);
  check_dense(keypoints, "keypoints", {batch, people, joints, 2}, accumulator_of(dtype), keypoints);
  if (sigmas) check_dense(*sigmas, "sigma", {joints}, accumulator_of(dtype), keypoints);
  STD_TORCH_CHECK(height > 0 && width > 0, "fastpose: size must be positive");
  STD_TORCH_CHECK(rounding >= 0 && rounding <= 2, "fastpose: rounding must be 0, 1 or 2");
  return {keypoints.data_ptr(), sigmas ? sigmas->data_ptr() : nullptr, sigma, batch, people, joints, height, width,
          Rounding(rounding), radius, circular, add, amplitude, offset};
}

}  // namespace fastpose
