#include "heatmap_mse_loss.cuh"

#include <algorithm>

namespace fastpose {

// Which tiles the stacks allow: all of them are served by one kernel.
enum class TileKind { joint_packs, row_packs, elements };

static TileKind tile_kind(const HeatmapMSELoss& job) {
  const int size = job.dtype == DType::float32 ? 4 : 2;
  bool joints = true, rows = true;
  for (int64_t s = 0; s < job.stack_count; ++s)
    for (const Maps& m : {job.stacks[s].prediction, job.stacks[s].gradient}) {
      if (!m.data) continue;
      joints = joints && joint_packs_fit(m, job.gaussians.joints, size);
      rows = rows && row_packs_fit(m, job.gaussians.width, size);
    }
  return joints ? TileKind::joint_packs : rows ? TileKind::row_packs : TileKind::elements;
}

int64_t heatmap_mse_loss_tiles(const HeatmapMSELoss& job) {
  return tile_kind(job) == TileKind::joint_packs ? tile_count<JointTile>(job.gaussians) : tile_count<PlaneTile>(job.gaussians);
}

// A tile that is drawn for several stacks saves exponentials, but too few blocks leave multiprocessors idle.
#ifdef __CUDACC__
constexpr int64_t kEnoughBlocks = 2048;  // several waves of any GPU
#else
constexpr int64_t kEnoughBlocks = 4;  // small maps come by blocks of one stack and of several
#endif

template <typename T, typename Tile, bool kPacked>
static void compare(const HeatmapMSELoss& job, float* partials, void* stream) {
  const Gaussians& g = job.gaussians;
  const int64_t tiles = tile_count<Tile>(g);
  for (int64_t first = 0; first < job.stack_count; first += kStacksPerLaunch) {
    StackBatch batch{};
    batch.count = int(std::min<int64_t>(kStacksPerLaunch, job.stack_count - first));
    batch.per_block = int(std::clamp<int64_t>(batch.count * tiles / kEnoughBlocks, 1, batch.count));
    std::copy_n(job.stacks + first, batch.count, batch.stacks);
    launch(g.circular ? heatmap_mse_loss_kernel<T, Tile, kPacked, true> : heatmap_mse_loss_kernel<T, Tile, kPacked, false>,
           tiles * divide_up(batch.count, batch.per_block), kTileThreads, stream, g, tiles, batch,
           static_cast<const float*>(job.weights), job.ignore_unlabelled, float(job.gradient_scale), partials + first * tiles);
  }
}

void heatmap_mse_loss_cuda(const HeatmapMSELoss& job, float* partials, float* losses, void* stream) {
  const TileKind kind = tile_kind(job);
  for_device_dtype(job.dtype, [&]<typename T>(Type<T>) {
    if (kind == TileKind::joint_packs) compare<T, JointTile, true>(job, partials, stream);
    else if (kind == TileKind::row_packs) compare<T, PlaneTile, true>(job, partials, stream);
    else compare<T, PlaneTile, false>(job, partials, stream);
  });
  launch(heatmap_mse_loss_finish_kernel, job.stack_count, kTileThreads, stream, partials, heatmap_mse_loss_tiles(job), job.scale,
         losses);
}

void heatmap_mse_loss_scale_cuda(const HeatmapMSELossScale& job, void* stream) {
  constexpr int64_t kBlocks = 4096;  // several waves of any GPU; where the factor is 1 they end at once
  const bool aligned = reinterpret_cast<uintptr_t>(job.saved) % 16 == 0 && reinterpret_cast<uintptr_t>(job.gradient) % 16 == 0;
  for_device_dtype(job.dtype, [&]<typename T>(Type<T>) {
    const int64_t blocks = std::min(kBlocks, divide_up(job.elements, kTileThreads * kPack<T>));
    launch(aligned ? heatmap_mse_loss_scale_kernel<T, true> : heatmap_mse_loss_scale_kernel<T, false>, blocks, kTileThreads, stream,
           job);
  });
}

}  // namespace fastpose
