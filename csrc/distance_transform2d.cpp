// fastpose::distance_transform2d and its backward: checks, allocation, launch. The definition is fastpose/ops/distance_transform2d.py.
#include "distance_transform2d.h"

#include "torch_stable.h"

namespace fastpose {

static DistanceTransform job_of(const Tensor& maps, const Tensor& springs) {
  STD_TORCH_CHECK(maps.dim() == 4, "fastpose: the maps must be (B, K, H, W)");
  const int64_t batch = maps.size(0), joints = maps.size(1), height = maps.size(2), width = maps.size(3);
  STD_TORCH_CHECK(height > 0 && width > 0 && height <= INT32_MAX / width,
                  "fastpose: maps must not be empty and have fewer than 2^31 cells");
  check_dense(springs, "springs", {batch, joints, 6}, accumulator_of(maps.scalar_type()), maps);
  DistanceTransform job{};
  job.dtype = dtype_of(maps.scalar_type());
  job.batch = batch;
  job.joints = joints;
  job.height = height;
  job.width = width;
  job.springs = springs.data_ptr();
  return job;
}

std::tuple<Tensor, Tensor> distance_transform2d(const Tensor& scores, const Tensor& springs) {
  DistanceTransform job = job_of(scores, springs);
  Tensor values = torch::stable::empty_like(scores);
  Tensor cells = new_dense(scores, {job.batch, job.joints, job.height, job.width}, ScalarType::Int);
  job.scores = maps_of(scores);
  job.values = maps_of(values);
  job.cells = static_cast<int32_t*>(cells.data_ptr());
  run_on(
      scores,
      [&] {
        parallel_parts(job.batch * job.joints, job.height * job.width * (job.height + job.width) / 8,
                       [&](int64_t begin, int64_t end) { FASTPOSE_SIMD_BEST(distance_transform2d)(job, begin, end); });
      },
      [&](void* stream) {
        Tensor memory = new_dense(scores, {distance_transform2d_bytes(job, false)}, ScalarType::Byte);
        distance_transform2d_cuda(job, memory.data_ptr(), stream);
      });
  return {values, cells};
}

std::tuple<Tensor, Tensor> distance_transform2d_backward(const Tensor& gradient, const Tensor& cells, const Tensor& springs) {
  DistanceTransform job = job_of(gradient, springs);
  check_dense(cells, "cells", {job.batch, job.joints, job.height, job.width}, ScalarType::Int, gradient);
  Tensor to_scores = torch::stable::empty_like(gradient);
  Tensor to_springs = new_dense(gradient, {job.batch, job.joints, 6}, springs.scalar_type());
  job.scores = maps_of(to_scores);
  job.values = maps_of(gradient);
  job.cells = static_cast<int32_t*>(cells.data_ptr());
  job.spring_gradient = to_springs.data_ptr();
  run_on(
      gradient,
      [&] {
        parallel_parts(job.batch * job.joints, 4 * job.height * job.width,
                       [&](int64_t begin, int64_t end) { FASTPOSE_SIMD_BEST(distance_transform2d_backward)(job, begin, end); });
      },
      [&](void* stream) {
        Tensor memory = new_dense(gradient, {distance_transform2d_bytes(job, true)}, ScalarType::Byte);
        distance_transform2d_backward_cuda(job, memory.data_ptr(), stream);
      });
  return {to_scores, to_springs};
}

FASTPOSE_REGISTER(distance_transform2d, distance_transform2d)
FASTPOSE_REGISTER(distance_transform2d_backward, distance_transform2d_backward)

}  // namespace fastpose
