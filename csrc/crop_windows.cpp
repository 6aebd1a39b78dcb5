// fastpose::crop_windows and its backward: checks, allocation, launch. The definition is fastpose/ops/crop_windows.py.
#include "crop_windows.h"

#include "torch_stable.h"

namespace fastpose {

using Numbers = std::vector<double>;

// A job without its two large tensors.
static CropWindows job_of(const Tensor& boxes, int64_t channels, int64_t source_height, int64_t source_width, int64_t height,
                          int64_t width, bool antialias, const Numbers& factor, const Numbers& inside, const Numbers& outside,
                          ScalarType dtype) {
  STD_TORCH_CHECK(boxes.dim() == 3, "fastpose: boxes must be (B, K, 4)");
  check_dense(boxes, "boxes", {boxes.size(0), boxes.size(1), 4}, accumulator_of(dtype), boxes);
  for (int64_t n : {source_height, source_width, height, width})
    STD_TORCH_CHECK(0 < n && n < INT32_MAX, "fastpose: heights and widths must be positive and below 2^31");
  const int64_t count = int64_t(factor.size());
  STD_TORCH_CHECK(count == 1 || (count == channels && count <= kMaxChannels),
                  "fastpose: there must be one factor, or one for each of up to ", kMaxChannels, " channels");
  STD_TORCH_CHECK(int64_t(inside.size()) == count && int64_t(outside.size()) == count,
                  "fastpose: factor, inside and outside must have the same length");
  CropWindows job{};
  job.dtype = dtype_of(dtype);
  job.antialias = antialias;
  job.batch = boxes.size(0);
  job.count = boxes.size(1);
  job.channels = channels;
  job.source_height = source_height;
  job.source_width = source_width;
  job.height = height;
  job.width = width;
  job.boxes = boxes.data_ptr();
  job.normalisations = count;
  for (int64_t i = 0; i < count; ++i) {
    job.factor[i] = factor[i];
    job.inside[i] = inside[i];
    job.outside[i] = outside[i];
  }
  return job;
}

static Tensor new_maps(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(shape, dtype, std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor crop_windows(const Tensor& source, const Tensor& boxes, int64_t height, int64_t width, bool antialias,
                    const Numbers& factor, const Numbers& inside, const Numbers& outside, ScalarType dtype, bool channels_last) {
  STD_TORCH_CHECK(source.dim() == 4, "fastpose: source must be (B, C, H, W)");
  const bool image = source.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(image || source.scalar_type() == dtype, "fastpose: source must be uint8 or of the windows' dtype");
  STD_TORCH_CHECK(source.size(0) == boxes.size(0) && source.device() == boxes.device(),
                  "fastpose: source and boxes must have the same B and device");
  CropWindows job = job_of(boxes, source.size(1), source.size(2), source.size(3), height, width, antialias, factor, inside,
                           outside, dtype);
  Tensor windows = new_maps(source, {job.batch * job.count, job.channels, height, width}, dtype, channels_last);
  job.image = image;
  job.source = maps_of(source);
  job.windows = maps_of(windows);
  run_on(
      source,
      [&] {
        const bool inner = channels_inner(job.source, job.channels);
        parallel_parts(job.batch * crop_groups(job, inner) * job.count, crop_group(job, inner) * height * width,
                       [&](int64_t begin, int64_t end) { FASTPOSE_SIMD_BEST(crop_windows)(job, begin, end); });
      },
      [&](void* stream) {
        Tensor memory = new_dense(source, {crop_windows_bytes(job, false)}, ScalarType::Byte);
        crop_windows_cuda(job, memory.data_ptr(), stream);
      });
  return windows;
}

// Of the gradient's rows are so many summed at a time as stay in a core's own cache.
static int64_t band_rows(const CropWindows& job, int64_t channels, bool wide) {
  constexpr int64_t kBytes = 384 << 10, kLeast = 16;
  const int64_t rows = kBytes / (channels * job.source_width * (wide ? 8 : 4));
  return std::min(std::max(rows, kLeast), job.source_height);
}

Tensor crop_windows_backward(const Tensor& gradient, const Tensor& boxes, int64_t source_height, int64_t source_width,
                             bool antialias, const Numbers& factor, bool channels_last) {
  STD_TORCH_CHECK(gradient.dim() == 4 && boxes.dim() == 3, "fastpose: the gradient must be (B K, C, h, w), and boxes (B, K, 4)");
  const ScalarType dtype = gradient.scalar_type();
  CropWindows job = job_of(boxes, gradient.size(1), source_height, source_width, gradient.size(2), gradient.size(3), antialias,
                           factor, factor, factor, dtype);
  check_tensor(gradient, "the gradient", {job.batch * job.count, job.channels, job.height, job.width}, dtype, boxes);
  Tensor to_source = new_maps(gradient, {job.batch, job.channels, source_height, source_width}, dtype, channels_last);
  job.source = maps_of(to_source);
  job.windows = maps_of(gradient);
  run_on(
      gradient,
      [&] {
        const bool inner = channels_inner(job.source, job.channels) && channels_inner(job.windows, job.channels);
        const int64_t channels = crop_group(job, inner), rows = band_rows(job, channels, dtype == ScalarType::Double);
        parallel_parts(job.batch * crop_groups(job, inner) * ((source_height + rows - 1) / rows), rows * channels * source_width,
                       [&](int64_t begin, int64_t end) { FASTPOSE_SIMD_BEST(crop_windows_backward)(job, rows, begin, end); });
      },
      [&](void* stream) {
        Tensor memory = new_dense(gradient, {crop_windows_bytes(job, true)}, ScalarType::Byte);
        crop_windows_backward_cuda(job, memory.data_ptr(), stream);
      });
  return to_source;
}

FASTPOSE_REGISTER(crop_windows, crop_windows)
FASTPOSE_REGISTER(crop_windows_backward, crop_windows_backward)

}  // namespace fastpose
