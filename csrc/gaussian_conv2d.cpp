// fastpose::gaussian_conv2d and its backward: checks, allocation, launch. The definition is fastpose/ops/gaussian_conv2d.py.
#include "gaussian_conv2d.h"

#include "gaussian_torch.h"

namespace fastpose {

static GaussianConv job_of(const Tensor& maps, const Gaussians& g, int64_t kernel_height, int64_t kernel_width, int64_t stride,
                           int64_t padding) {
  STD_TORCH_CHECK(maps.dim() == 4 && g.people == 1, "fastpose: base must be (B, O, h, w) and keypoints (B, 1, K, 2)");
  STD_TORCH_CHECK(kernel_height > 0 && kernel_width > 0 && stride > 0 && padding >= 0, "fastpose: wrong kernel, stride or padding");
  const int64_t height = (g.height + 2 * padding - kernel_height) / stride + 1, width = (g.width + 2 * padding - kernel_width) / stride + 1;
  STD_TORCH_CHECK(g.height + 2 * padding >= kernel_height && g.width + 2 * padding >= kernel_width && height < INT32_MAX && width < INT32_MAX,
                  "fastpose: the kernel is larger than the padded maps");
  GaussianConv job{};
  job.gaussians = g;
  job.dtype = dtype_of(maps.scalar_type());
  job.channels = maps.size(1);
  job.height = height;
  job.width = width;
  job.kernel_height = kernel_height;
  job.kernel_width = kernel_width;
  job.stride = stride;
  job.padding = padding;
  return job;
}

Tensor gaussian_conv2d(const Tensor& base, const Tensor& weight, const Tensor& keypoints, const std::optional<Tensor>& sigmas,
                       double sigma, int64_t rounding, double radius, bool circular, bool add, double amplitude, double offset,
                       int64_t height, int64_t width, int64_t stride, int64_t padding) {
  const ScalarType dtype = base.scalar_type();
  STD_TORCH_CHECK(weight.dim() == 4, "fastpose: weight must be (O, K, kernel rows, kernel columns)");
  const Gaussians g = gaussians_of(keypoints, sigmas, sigma, rounding, radius, circular, add, amplitude, offset, height, width, dtype);
  GaussianConv job = job_of(base, g, weight.size(2), weight.size(3), stride, padding);
  check_tensor(base, "base", {g.batch, job.channels, job.height, job.width}, dtype, keypoints);
  check_dense(weight, "weight", {job.channels, g.joints, job.kernel_height, job.kernel_width}, dtype, keypoints);
  Tensor result = torch::stable::empty_like(base);
  job.weight = weight.data_ptr();
  job.base = maps_of(base);
  job.result = maps_of(result);
  run_on(
      base,
      [&] {
        const int64_t terms = (g.joints + 1) * job.kernel_height, groups = (job.channels + kConvChannels - 1) / kConvChannels;
        parallel_parts(g.batch * groups, kConvChannels * job.height * job.width * terms / 8,
                       [&](int64_t begin, int64_t end) { FASTPOSE_SIMD_BEST(gaussian_conv2d)(job, begin, end); });
      },
      [&](void* stream) {
        Tensor memory = new_dense(base, {gaussian_conv2d_bytes(job)}, ScalarType::Byte);
        gaussian_conv2d_cuda(job, memory.data_ptr(), stream);
      });
  return result;
}

Tensor gaussian_conv2d_backward(const Tensor& gradient, const Tensor& keypoints, const std::optional<Tensor>& sigmas, double sigma,
                                int64_t rounding, double radius, bool circular, bool add, double amplitude, double offset,
                                int64_t height, int64_t width, int64_t kernel_height, int64_t kernel_width, int64_t stride,
                                int64_t padding) {
  const ScalarType dtype = gradient.scalar_type();
  const Gaussians g = gaussians_of(keypoints, sigmas, sigma, rounding, radius, circular, add, amplitude, offset, height, width, dtype);
  GaussianConv job = job_of(gradient, g, kernel_height, kernel_width, stride, padding);
  check_tensor(gradient, "the gradient", {g.batch, job.channels, job.height, job.width}, dtype, keypoints);
  Tensor to_weight = new_dense(gradient, {job.channels, g.joints + 1, kernel_height, kernel_width}, accumulator_of(dtype));
  job.result = maps_of(gradient);
  job.weight_gradient = to_weight.data_ptr();
  run_on(
      gradient,
      [&] {
        const int64_t terms = (g.joints + 1) * job.kernel_height, groups = (job.channels + kConvChannels - 1) / kConvChannels;
        parallel_parts(groups, kConvChannels * g.batch * job.height * job.width * terms / 8,
                       [&](int64_t begin, int64_t end) { FASTPOSE_SIMD_BEST(gaussian_conv2d_backward)(job, begin, end); });
      },
      [&](void* stream) {
        Tensor memory = new_dense(gradient, {gaussian_conv2d_bytes(job)}, ScalarType::Byte);
        gaussian_conv2d_backward_cuda(job, memory.data_ptr(), stream);
      });
  return to_weight;
}

FASTPOSE_REGISTER(gaussian_conv2d, gaussian_conv2d)
FASTPOSE_REGISTER(gaussian_conv2d_backward, gaussian_conv2d_backward)

}  // namespace fastpose
