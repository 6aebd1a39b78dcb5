// fastpose::gaussian_heatmap, its out= form and its backward: checks, allocation, launch. The definition is fastpose/ops/gaussian_heatmap.py.
#include "gaussian_heatmap.h"

#include "gaussian_torch.h"

namespace fastpose {

static void render(const GaussianHeatmap& job, const Tensor& where) {
  const Gaussians& g = job.gaussians;
  run_on(
      where,
      [&] {
        parallel_parts(g.batch * g.joints, g.height * g.width,
                       [&](int64_t begin, int64_t end) { FASTPOSE_SIMD_BEST(gaussian_heatmap_planes)(job, begin, end); });
      },
      [&](void* stream) { gaussian_heatmap_cuda(job, stream); });
}

void gaussian_heatmap_out(const Tensor& keypoints, const std::optional<Tensor>& sigmas, double sigma, int64_t rounding, double radius,
                          bool circular, bool add, double amplitude, double offset, const Tensor& out) {
  STD_TORCH_CHECK(out.dim() == 4, "fastpose: out must be (B, K, H, W)");
  Gaussians g = gaussians_of(keypoints, sigmas, sigma, rounding, radius, circular, add, amplitude, offset, out.size(2), out.size(3),
                             out.scalar_type());
  check_tensor(out, "out", {g.batch, g.joints, g.height, g.width}, out.scalar_type(), keypoints);
  render({g, dtype_of(out.scalar_type()), maps_of(out)}, keypoints);
}

Tensor gaussian_heatmap(const Tensor& keypoints, const std::optional<Tensor>& sigmas, double sigma, int64_t rounding, double radius,
                        bool circular, bool add, double amplitude, double offset, int64_t height, int64_t width, ScalarType dtype) {
  STD_TORCH_CHECK(keypoints.dim() == 4, "fastpose: keypoints must be (B, P, K, 2)");
  Tensor out = new_dense(keypoints, {keypoints.size(0), keypoints.size(2), height, width}, dtype);
  gaussian_heatmap_out(keypoints, sigmas, sigma, rounding, radius, circular, add, amplitude, offset, out);
  return out;
}

std::tuple<Tensor, Tensor> gaussian_heatmap_backward(const Tensor& upstream, const Tensor& keypoints, const std::optional<Tensor>& sigmas,
                                                     double sigma, int64_t rounding, double radius, bool circular, bool add,
                                                     double amplitude, double offset) {
  STD_TORCH_CHECK(upstream.dim() == 4, "fastpose: the gradient must be (B, K, H, W)");
  const ScalarType dtype = upstream.scalar_type();
  Gaussians g = gaussians_of(keypoints, sigmas, sigma, rounding, radius, circular, add, amplitude, offset, upstream.size(2),
                             upstream.size(3), dtype);
  check_tensor(upstream, "the gradient", {g.batch, g.joints, g.height, g.width}, dtype, keypoints);
  Tensor keypoint_gradient = new_dense(keypoints, {g.batch, g.people, g.joints, 2}, accumulator_of(dtype));
  Tensor sigma_gradient = new_dense(keypoints, {g.batch, g.people, g.joints}, accumulator_of(dtype));
  GaussianHeatmap job{g, dtype_of(dtype), maps_of(upstream), keypoint_gradient.data_ptr(), sigma_gradient.data_ptr()};
  run_on(
      keypoints,
      [&] {
        parallel_parts(g.batch * g.joints, g.height * g.width, [&](int64_t begin, int64_t end) {
          FASTPOSE_SIMD_BEST(gaussian_heatmap_backward_planes)(job, begin, end);
        });
      },
      [&](void* stream) { gaussian_heatmap_backward_cuda(job, stream); });
  return {keypoint_gradient, sigma_gradient};
}

FASTPOSE_REGISTER(gaussian_heatmap, gaussian_heatmap)
FASTPOSE_REGISTER(gaussian_heatmap_out, gaussian_heatmap_out)
FASTPOSE_REGISTER(gaussian_heatmap_backward, gaussian_heatmap_backward)

}  // namespace fastpose
