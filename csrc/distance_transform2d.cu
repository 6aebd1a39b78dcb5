#include "distance_transform2d.cuh"

namespace fastpose {

static FirstPass first_pass(const DistanceTransform& job, void* memory) {
  auto* best = static_cast<float*>(memory);
  return {best, reinterpret_cast<int32_t*>(best + cell_count(job))};
}

int64_t distance_transform2d_bytes(const DistanceTransform& job, bool backward) { return cell_count(job) * (backward ? 12 : 8); }

void distance_transform2d_cuda(const DistanceTransform& job, void* memory, void* stream) {
  const FirstPass pass = first_pass(job, memory);
  const int64_t items = transform_items(job), blocks = divide_up(items, kTransformThreads);
  for_device_dtype(job.dtype, [&]<typename T>(Type<T>) {
    launch(distance_transform2d_rows_kernel<T>, blocks, kTransformThreads, stream, job, pass, items);
    launch(distance_transform2d_columns_kernel<T>, blocks, kTransformThreads, stream, job, pass, items);
  });
}

void distance_transform2d_backward_cuda(const DistanceTransform& job, void* memory, void* stream) {
  const FirstPass pass = first_pass(job, memory);
  for_device_dtype(job.dtype, [&]<typename T>(Type<T>) {
    launch(distance_transform2d_backward_kernel<T>, job.batch * job.joints, kTransformThreads, stream, job, pass,
           reinterpret_cast<float*>(pass.columns + cell_count(job)));
  });
}

}  // namespace fastpose
