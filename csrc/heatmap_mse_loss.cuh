#pragma once
#include "gaussian.cuh"
#include "heatmap_mse_loss.h"

namespace fastpose {

// Stacks that one launch serves: kernel parameters hold 4 KB.
constexpr int kStacksPerLaunch = 16;

struct StackBatch {
  Stack stacks[kStacksPerLaunch];
  int count, per_block;
};

// Each block draws its tile of the target once, in registers, and compares `per_block` stacks with it.
//   partials[s][tile] = sum w (p - t)^2 over the tile,    gradient = gradient_scale w (p - t)
// Bytes: every prediction read once, every gradient written once; the target never.
template <typename T, typename Tile, bool kPacked, bool kDisc>
__global__ void __launch_bounds__(kTileThreads, 2)
    heatmap_mse_loss_kernel(Gaussians g, unsigned tiles, StackBatch batch, const float* weights, bool ignore_unlabelled,
                            float gradient_scale, float* partials) {
  constexpr int V = kPack<T>;
  const Place origin = tile_origin<Tile>(g, blockIdx.x % tiles);
  float target[kPerThread];
  const int* labelled = draw_tile<Tile, V, kDisc>(g, origin, target);
  __shared__ float weight[Tile::joints];
  for (int j = threadIdx.x; j < Tile::joints; j += kTileThreads) {
    const bool counts = origin.k + j < g.joints && (labelled[j] > 0 || !ignore_unlabelled);
    weight[j] = !counts ? 0.0f : weights ? weights[origin.b * g.joints + origin.k + j] : 1.0f;
  }
  __syncthreads();

#pragma unroll 1
  for (int s = int(blockIdx.x / tiles) * batch.per_block, end = min(s + batch.per_block, batch.count); s < end; ++s) {
    const Stack& stack = batch.stacks[s];
    float v[kPerThread];
#pragma unroll
    for (int i = 0; i < kPerThread / V; ++i) {  // all loads on their way before the first is used
      const TilePack pack = tile_pack<Tile, V>(g, origin, i);
      if (pack.count == 0) continue;
      const T* p = pack_address<const T, Tile>(stack.prediction, origin, pack);
      if (kPacked) load_pack<T>(p, v + i * V);
      else load_scattered<T>(p, pack_stride<Tile>(stack.prediction), pack.count, 0.0f, v + i * V);
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerThread / V; ++i) {
      const TilePack pack = tile_pack<Tile, V>(g, origin, i);
      if (pack.count == 0) continue;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const float w = weight[Tile::joints_inner ? pack.joint + e : 0];
        // 0 times NaN would be NaN
        const float d = w == 0.0f || (!kPacked && e >= pack.count) ? 0.0f : v[i * V + e] - target[i * V + e];
        sum = fmaf(w * d, d, sum);
        v[i * V + e] = gradient_scale * w * d;
      }
      if (!stack.gradient.data) continue;
      T* q = pack_address<T, Tile>(stack.gradient, origin, pack);
      if (kPacked) store_pack<T>(v + i * V, q);
      else store_scattered<T>(v + i * V, q, pack_stride<Tile>(stack.gradient), pack.count);
    }
    sum = block_sum<kTileThreads>(sum);
    if (threadIdx.x == 0) partials[int64_t(s) * tiles + blockIdx.x % tiles] = sum;
  }
}

// One block a stack adds its partial sums, in a fixed order and in double.
static __global__ void __launch_bounds__(kTileThreads)
    heatmap_mse_loss_finish_kernel(const float* partials, int64_t tiles, double scale, float* losses) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < tiles; i += kTileThreads) sum += partials[blockIdx.x * tiles + i];
  sum = block_sum<kTileThreads>(sum);
  if (threadIdx.x == 0) losses[blockIdx.x] = float(scale * sum);
}

// gradient = factor * upstream * saved. Bytes: none where that factor is 1 and the buffers are one, else a read and a write.
template <typename T, bool kPacked>
__global__ void __launch_bounds__(kTileThreads) heatmap_mse_loss_scale_kernel(HeatmapMSELossScale job) {
  const float factor = job.multiplier<float>();
  if (factor == 1.0f && job.saved == job.gradient) return;
  constexpr int V = kPack<T>;
  const T* saved = static_cast<const T*>(job.saved);
  T* gradient = static_cast<T*>(job.gradient);
  const int64_t stride = int64_t(gridDim.x) * kTileThreads * V;
  for (int64_t i = (int64_t(blockIdx.x) * kTileThreads + threadIdx.x) * V; i < job.elements; i += stride) {
    const int count = job.elements - i < V ? int(job.elements - i) : V;
    const bool pack = kPacked && count == V;
    float v[V];
    if (pack) load_pack<T>(saved + i, v);
    else load_scattered<T>(saved + i, 1, count, 0.0f, v);
#pragma unroll
    for (int e = 0; e < V; ++e) v[e] *= factor;
    if (pack) store_pack<T>(v, gradient + i);
    else store_scattered<T>(v, gradient + i, 1, count);
  }
}

}  // namespace fastpose
