// fastpose::decode_heatmaps and its backward: checks, allocation, launch. The definition is fastpose/ops/decode_heatmaps.py.
#include "decode_heatmaps.h"

#include "torch_stable.h"

namespace fastpose {

using OptionalTensor = std::optional<Tensor>;

static DecodeHeatmaps job_of(const Tensor& heatmaps, const OptionalTensor& flipped, const OptionalTensor& flip_permutation,
                             int64_t flip_shift, const OptionalTensor& affine, int64_t method, int64_t border, int64_t blur_size,
                             double blur_sigma, int64_t radius, double temperature) {
  STD_TORCH_CHECK(heatmaps.dim() == 4, "fastpose: heatmaps must be (B, K, H, W)");
  const int64_t batch = heatmaps.size(0), joints = heatmaps.size(1), height = heatmaps.size(2), width = heatmaps.size(3);
  STD_TORCH_CHECK(0 < height && height <= INT32_MAX && 0 < width && width <= INT32_MAX,
                  "fastpose: height and width must be positive and below 2^31");
  STD_TORCH_CHECK(0 <= method && method <= 3, "fastpose: method must be 0, 1, 2 or 3");
  STD_TORCH_CHECK(0 <= border && border <= 2, "fastpose: border must be 0, 1 or 2");
  STD_TORCH_CHECK(0 < blur_size && blur_size <= kMaxBlurSize && blur_size % 2 == 1,
                  "fastpose: blur_size must be odd and at most ", kMaxBlurSize);
  STD_TORCH_CHECK(flip_shift >= 0 && radius >= 0, "fastpose: flip_shift and radius must not be negative");
  const ScalarType dtype = heatmaps.scalar_type(), accumulator = accumulator_of(dtype);
  if (flipped) check_tensor(*flipped, "flipped", {batch, joints, height, width}, dtype, heatmaps);
  if (flip_permutation) check_dense(*flip_permutation, "flip_permutation", {joints}, ScalarType::Long, heatmaps);
  if (affine) check_dense(*affine, "affine", {batch, 2, 3}, accumulator, heatmaps);
  return {
      .dtype = dtype_of(dtype),
      .batch = batch,
      .joints = joints,
      .height = height,
      .width = width,
      .maps = maps_of(heatmaps),
      .flipped = flipped ? maps_of(*flipped) : Maps{},
      .flip_permutation = flip_permutation ? static_cast<const int64_t*>(flip_permutation->data_ptr()) : nullptr,
      .flip_shift = flip_shift,
      .affine = affine ? affine->data_ptr() : nullptr,
      .method = DecodeMethod(method),
      .border = QuarterBorder(border),
      .blur_size = blur_size,
      .blur_sigma = blur_sigma,
      .radius = radius,
      .temperature = temperature,
  };
}

// parallel_parts without its flushing of denormals: the reference finds a maximum among them too.
template <typename F> static void in_parallel(int64_t parts, int64_t elements, const F& f) {
  torch::stable::parallel_for(0, parts, std::max<int64_t>(1, 32768 / std::max<int64_t>(1, elements)), f);
}

std::tuple<Tensor, Tensor, Tensor> decode_heatmaps(const Tensor& heatmaps, const OptionalTensor& flipped,
                                                   const OptionalTensor& flip_permutation, int64_t flip_shift,
                                                   const OptionalTensor& affine, int64_t method, int64_t border, int64_t blur_size,
                                                   double blur_sigma, int64_t radius, double temperature) {
  DecodeHeatmaps job = job_of(heatmaps, flipped, flip_permutation, flip_shift, affine, method, border, blur_size, blur_sigma, radius,
                              temperature);
  const ScalarType accumulator = accumulator_of(heatmaps.scalar_type());
  Tensor coordinates = new_dense(heatmaps, {job.batch, job.joints, 2}, accumulator);
  Tensor scores = new_dense(heatmaps, {job.batch, job.joints}, accumulator);
  Tensor cells = new_dense(heatmaps, {job.batch, job.joints}, ScalarType::Long);
  job.coordinates = coordinates.data_ptr();
  job.scores = scores.data_ptr();
  job.cells = static_cast<int64_t*>(cells.data_ptr());
  run_on(
      heatmaps,
      [&] {
        if (job.joints_inner())
          in_parallel(job.batch, job.joints * job.height * job.width, [&](int64_t begin, int64_t end) {
            FASTPOSE_SIMD_BEST(decode_heatmaps_samples)(job, begin, end);
          });
        else
          in_parallel(job.batch * job.joints, job.height * job.width, [&](int64_t begin, int64_t end) {
            FASTPOSE_SIMD_BEST(decode_heatmaps_planes)(job, begin, end);
          });
      },
      [&](void* stream) {
        const int64_t parts = decode_heatmaps_parts(job);
        Tensor values = new_dense(heatmaps, {job.batch, parts, job.joints}, accumulator);
        Tensor part_cells = new_dense(heatmaps, {job.batch, parts, job.joints}, ScalarType::Long);
        decode_heatmaps_cuda(job, static_cast<float*>(values.data_ptr()), static_cast<int64_t*>(part_cells.data_ptr()), stream);
      });
  return {coordinates, scores, cells};
}

std::tuple<Tensor, Tensor> decode_heatmaps_backward(const Tensor& coordinate_gradient, const Tensor& score_gradient,
                                                    const Tensor& cells, const Tensor& heatmaps, const OptionalTensor& flipped,
                                                    const OptionalTensor& flip_permutation, int64_t flip_shift,
                                                    const OptionalTensor& affine, int64_t method, int64_t border, int64_t blur_size,
                                                    double blur_sigma, int64_t radius, double temperature) {
  DecodeHeatmaps job = job_of(heatmaps, flipped, flip_permutation, flip_shift, affine, method, border, blur_size, blur_sigma, radius,
                              temperature);
  const ScalarType accumulator = accumulator_of(heatmaps.scalar_type());
  check_dense(coordinate_gradient, "the coordinates' gradient", {job.batch, job.joints, 2}, accumulator, heatmaps);
  check_dense(score_gradient, "the scores' gradient", {job.batch, job.joints}, accumulator, heatmaps);
  check_dense(cells, "cells", {job.batch, job.joints}, ScalarType::Long, heatmaps);
  job.coordinates = coordinate_gradient.data_ptr();
  job.scores = score_gradient.data_ptr();
  job.cells = static_cast<int64_t*>(cells.data_ptr());
  Tensor gradient = torch::stable::empty_like(heatmaps);
  Tensor flipped_gradient = flipped ? torch::stable::empty_like(*flipped) : new_dense(heatmaps, {0}, heatmaps.scalar_type());
  torch::stable::zero_(gradient);
  torch::stable::zero_(flipped_gradient);
  const Maps to = maps_of(gradient), to_flipped = flipped ? maps_of(flipped_gradient) : Maps{};
  run_on(
      heatmaps,
      [&] {
        const int64_t side = job.method == DecodeMethod::soft_window ? 2 * job.radius + 1 : 1;
        in_parallel(job.batch * job.joints, side * side, [&](int64_t begin, int64_t end) {
          FASTPOSE_SIMD_BEST(decode_heatmaps_backward_planes)(job, to, to_flipped, begin, end);
        });
      },
      [&](void* stream) { decode_heatmaps_backward_cuda(job, to, to_flipped, stream); });
  return {gradient, flipped_gradient};
}

FASTPOSE_REGISTER(decode_heatmaps, decode_heatmaps)
FASTPOSE_REGISTER(decode_heatmaps_backward, decode_heatmaps_backward)

}  // namespace fastpose
