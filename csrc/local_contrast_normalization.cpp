// fastpose::local_contrast_normalization and its backward: checks, allocation, launch. The definition is
// fastpose/ops/local_contrast_normalization.py.
#include "local_contrast_normalization.h"

#include "torch_stable.h"

namespace fastpose {

// The results do not depend on it. Rows around a band are computed twice.
constexpr int64_t kBandRows = 64;

static LocalContrast job_of(const Tensor& images, const std::vector<double>& weights, bool even, double threshold) {
  STD_TORCH_CHECK(images.dim() == 4, "fastpose: images must be (B, C, H, W)");
  const int64_t size = int64_t(weights.size()), height = images.size(2), width = images.size(3);
  STD_TORCH_CHECK(0 < height && height < INT32_MAX && 0 < width && width < INT32_MAX,
                  "fastpose: height and width must be positive and below 2^31");
  STD_TORCH_CHECK(size % 2 == 1 && size <= kMaxWindow, "fastpose: the window must have an odd size of at most ", kMaxWindow);
  LocalContrast job{};
  job.dtype = dtype_of(images.scalar_type());
  job.batch = images.size(0);
  job.channels = images.size(1);
  job.height = height;
  job.width = width;
  job.images = maps_of(images);
  job.size = size;
  std::copy(weights.begin(), weights.end(), job.weights);
  job.even = even;
  job.threshold = threshold;
  return job;
}

template <typename F> static void for_bands(const LocalContrast& job, F&& f) {
  parallel_parts(job.batch * ((job.height + kBandRows - 1) / kBandRows), kBandRows * job.channels * job.width, f);
}

std::tuple<Tensor, Tensor, Tensor> local_contrast_normalization(const Tensor& images, const std::vector<double>& weights, bool even,
                                                                double threshold, bool save) {
  LocalContrast job = job_of(images, weights, even, threshold);
  Tensor result = torch::stable::empty_like(images);
  const std::vector<int64_t> shape = save ? std::vector<int64_t>{job.batch, job.height, job.width} : std::vector<int64_t>{0};
  Tensor mean = new_dense(images, shape, accumulator_of(images.scalar_type()));
  Tensor deviation = new_dense(images, shape, accumulator_of(images.scalar_type()));
  job.result = maps_of(result);
  job.mean = save ? mean.data_ptr() : nullptr;
  job.deviation = save ? deviation.data_ptr() : nullptr;
  run_on(
      images,
      [&] {
        for_bands(job, [&](int64_t begin, int64_t end) {
          FASTPOSE_SIMD_BEST(local_contrast_normalization)(job, kBandRows, begin, end);
        });
      },
      [&](void* stream) { local_contrast_normalization_cuda(job, stream); });
  return {result, mean, deviation};
}

Tensor local_contrast_normalization_backward(const Tensor& gradient, const Tensor& images, const Tensor& mean, const Tensor& deviation,
                                             const std::vector<double>& weights, bool even, double threshold) {
  LocalContrast job = job_of(images, weights, even, threshold);
  const ScalarType accumulator = accumulator_of(images.scalar_type());
  check_tensor(gradient, "the gradient", {job.batch, job.channels, job.height, job.width}, images.scalar_type(), images);
  check_dense(mean, "mean", {job.batch, job.height, job.width}, accumulator, images);
  check_dense(deviation, "deviation", {job.batch, job.height, job.width}, accumulator, images);
  Tensor to_images = torch::stable::empty_like(images);
  job.gradient = maps_of(gradient);
  job.result = maps_of(to_images);
  job.mean = mean.data_ptr();
  job.deviation = deviation.data_ptr();
  run_on(
      images,
      [&] {
        for_bands(job, [&](int64_t begin, int64_t end) {
          FASTPOSE_SIMD_BEST(local_contrast_normalization_backward)(job, kBandRows, begin, end);
        });
      },
      [&](void* stream) { local_contrast_normalization_backward_cuda(job, stream); });
  return to_images;
}

FASTPOSE_REGISTER(local_contrast_normalization, local_contrast_normalization)
FASTPOSE_REGISTER(local_contrast_normalization_backward, local_contrast_normalization_backward)

}  // namespace fastpose
