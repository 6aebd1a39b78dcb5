#include "gaussian_heatmap.cuh"

namespace fastpose {

void gaussian_heatmap_cuda(const GaussianHeatmap& job, void* stream) {
  const Gaussians& g = job.gaussians;
  for_device_dtype(job.dtype, [&]<typename T>(Type<T>) {
    if (joint_packs_fit(job.maps, g.joints, sizeof(T)))
      launch(gaussian_heatmap_kernel<T, JointTile, true>, tile_count<JointTile>(g), kTileThreads, stream, g, job.maps);
    else if (row_packs_fit(job.maps, g.width, sizeof(T)))
      launch(gaussian_heatmap_kernel<T, PlaneTile, true>, tile_count<PlaneTile>(g), kTileThreads, stream, g, job.maps);
    else
      launch(gaussian_heatmap_kernel<T, PlaneTile, false>, tile_count<PlaneTile>(g), kTileThreads, stream, g, job.maps);
  });
}

void gaussian_heatmap_backward_cuda(const GaussianHeatmap& job, void* stream) {
  const Gaussians& g = job.gaussians;
  for_device_dtype(job.dtype, [&]<typename T>(Type<T>) {
    launch(gaussian_heatmap_backward_kernel<T>, g.batch * g.joints, kTileThreads, stream, g, job.maps,
           static_cast<float*>(job.keypoint_gradient), static_cast<float*>(job.sigma_gradient));
  });
}

}  // namespace fastpose
