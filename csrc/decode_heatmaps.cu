#include "decode_heatmaps.cuh"

namespace fastpose {

// Calls f(type of the elements, joints in one access): 16 bytes, or one joint where these do not line up.
template <typename F> static void for_joint_packs(const DecodeHeatmaps& job, F&& f) {
  for_device_dtype(job.dtype, [&]<typename T>(Type<T> type) {
    if (joint_packs_fit(job.maps, job.joints, sizeof(T))) f(type, std::integral_constant<int, kPack<T>>());
    else f(type, std::integral_constant<int, 1>());
  });
}

int64_t decode_heatmaps_parts(const DecodeHeatmaps& job) {
  int64_t parts = 0;
  if (job.joints_inner() && job.joints > 0)
    for_joint_packs(job, [&]<typename T, int V>(Type<T>, std::integral_constant<int, V>) {
      parts = joint_search<T, V>(job).parts;
    });
  return parts;
}

static void decode_joints(const DecodeHeatmaps& job, float* part_values, int64_t* part_cells, void* stream) {
  for_joint_packs(job, [&]<typename T, int V>(Type<T>, std::integral_constant<int, V>) {
    const JointSearch search = joint_search<T, V>(job);
    launch(job.flipped.data ? decode_joints_kernel<T, V, true> : decode_joints_kernel<T, V, false>,
           job.batch * search.parts * search.groups, kSearchThreads, stream, job, part_values, part_cells);
    launch(decode_parts_kernel<T>, job.batch * job.joints, 32, stream, job, part_values, part_cells, search.parts);
  });
}

template <typename T> static void decode_planes(const DecodeHeatmaps& job, void* stream) {
  constexpr int V = kPack<T>;
  const int64_t planes = job.batch * job.joints, height = job.height, width = job.width;
  const bool flip = job.flipped.data;
  Maps maps = job.maps;
  if (!flip && maps.column == 1 && maps.row == width && height * width <= INT32_MAX) {  // dense: one long row
    maps.row = 0;
    const bool packs = row_packs_fit(maps, height * width, sizeof(T));
    launch(packs ? decode_planes_kernel<T, V, Flip::none> : decode_planes_kernel<T, 1, Flip::none>, planes, kSearchThreads,
           stream, job, 1, height * width);
    return;
  }
  const bool packs = row_packs_fit(maps, width, sizeof(T));
  auto kernel = packs ? decode_planes_kernel<T, V, Flip::none> : decode_planes_kernel<T, 1, Flip::none>;
  if (flip) kernel = packs ? decode_planes_kernel<T, V, Flip::elements> : decode_planes_kernel<T, 1, Flip::elements>;
  if (flip && packs && job.flip_shift == 0 && row_packs_fit(job.flipped, width, sizeof(T)))
    kernel = decode_planes_kernel<T, V, Flip::packs>;
  launch(kernel, planes, kSearchThreads, stream, job, height, width);
}

void decode_heatmaps_cuda(const DecodeHeatmaps& job, float* part_values, int64_t* part_cells, void* stream) {
  if (job.batch * job.joints == 0) return;
  if (job.joints_inner()) decode_joints(job, part_values, part_cells, stream);
  else for_device_dtype(job.dtype, [&]<typename T>(Type<T>) { decode_planes<T>(job, stream); });
}

void decode_heatmaps_backward_cuda(const DecodeHeatmaps& job, const Maps& gradient, const Maps& flipped_gradient,
                                   void* stream) {
  for_device_dtype(job.dtype, [&]<typename T>(Type<T>) {
    launch(decode_backward_kernel<T>, job.batch * job.joints, 32, stream, job, gradient, flipped_gradient);
  });
}

}  // namespace fastpose
