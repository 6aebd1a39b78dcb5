#include "gaussian_heatmap.cuh"

namespace fastpose {

template <typename T, typename Tile, bool kPacked> static void render(const GaussianHeatmap& job, void* stream) {
  const Gaussians& g = job.gaussians;
  launch(g.circular ? gaussian_heatmap_kernel<T, Tile, kPacked, true> : gaussian_heatmap_kernel<T, Tile, kPacked, false>,
         tile_count<Tile>(g), kTileThreads, stream, g, job.maps);
}

void gaussian_heatmap_cuda(const GaussianHeatmap& job, void* stream) {
  for_device_dtype(job.dtype, [&]<typename T>(Type<T>) {
    if (joint_packs_fit(job.maps, job.gaussians.joints, sizeof(T))) render<T, JointTile, true>(job, stream);
    else if (row_packs_fit(job.maps, job.gaussians.width, sizeof(T))) render<T, PlaneTile, true>(job, stream);
    else render<T, PlaneTile, false>(job, stream);
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
