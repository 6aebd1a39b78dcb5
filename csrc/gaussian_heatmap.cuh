#pragma once
#include "gaussian.cuh"
#include "gaussian_heatmap.h"

namespace fastpose {

// Bytes: the maps, written once.
template <typename T, typename Tile, bool kPacked, bool kDisc>
__global__ void __launch_bounds__(kTileThreads, 2) gaussian_heatmap_kernel(Gaussians g, Maps maps) {
  constexpr int V = kPack<T>;
  const Place origin = tile_origin<Tile>(g, blockIdx.x);
  float target[kPerThread];
  draw_tile<Tile, V, kDisc>(g, origin, target);
#pragma unroll
  for (int i = 0; i < kPerThread / V; ++i) {
    const TilePack pack = tile_pack<Tile, V>(g, origin, i);
    if (pack.count == 0) continue;
    T* p = pack_address<T, Tile>(maps, origin, pack);
    if (kPacked) store_pack<T>(target + i * V, p);
    else store_scattered<T>(target + i * V, p, pack_stride<Tile>(maps), pack.count);
  }
}

// One block a plane. With u the upstream gradient and d the vector from person p's centre:
//   dL/dx_p = amplitude / sigma^2 * sum u g_p d_x,    dL/dsigma_p = amplitude / sigma^3 * sum u g_p |d|^2
// over the pixels where person p counts: where p is the first maximum, or where the sum is not clamped.
// Bytes: the upstream gradient, read once a person (from cache after the first). Exponentials: P^2 a pixel; P is small.
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    gaussian_heatmap_backward_kernel(Gaussians g, Maps upstream, float* keypoint_gradient, float* sigma_gradient) {
  const int64_t b = blockIdx.x / g.joints, k = blockIdx.x % g.joints, pixels = g.height * g.width;
  const T* plane = upstream.plane<const T>(b, k);
  const float radius = float(g.radius);
  auto gaussian = [&](const Centre<float>& c, float x, float y) {
    const float dx = x - c.x, dy = y - c.y;
    const bool inside = g.circular ? dx * dx + dy * dy <= radius * radius : fabsf(dx) <= radius && fabsf(dy) <= radius;
    return c.labelled && inside ? expf(-0.5f / (c.sigma * c.sigma) * (dx * dx + dy * dy)) : 0.0f;
  };
  for (int64_t p = 0; p < g.people; ++p) {
    const Centre<float> c = centre_of<float>(g, b, p, k);
    float sum_x = 0, sum_y = 0, sum_sigma = 0;
    for (int64_t i = threadIdx.x; c.labelled && i < pixels; i += kTileThreads) {
      const float x = float(i % g.width), y = float(i / g.width), value = gaussian(c, x, y);
      float total = 0;
      bool counts = value > 0;
      for (int64_t q = 0; q < g.people && counts && g.people > 1; ++q) {
        const float other = gaussian(centre_of<float>(g, b, q, k), x, y);
        total += other;
        counts = g.add ? total <= 1 : q < p ? other < value : other <= value;
      }
      if (!counts) continue;
      const float u = widen(plane[i / g.width * upstream.row + i % g.width * upstream.column]) * value;
      sum_x += u * (x - c.x);
      sum_y += u * (y - c.y);
      sum_sigma += u * ((x - c.x) * (x - c.x) + (y - c.y) * (y - c.y));
    }
    sum_x = block_sum<kTileThreads>(sum_x);
    sum_y = block_sum<kTileThreads>(sum_y);
    sum_sigma = block_sum<kTileThreads>(sum_sigma);
    if (threadIdx.x == 0) {
      const int64_t at = (b * g.people + p) * g.joints + k;
      const float scale = c.labelled ? float(g.amplitude) / (c.sigma * c.sigma) : 0.0f;
      keypoint_gradient[2 * at] = c.labelled ? scale * sum_x : 0.0f;
      keypoint_gradient[2 * at + 1] = c.labelled ? scale * sum_y : 0.0f;
      sigma_gradient[at] = c.labelled ? scale / c.sigma * sum_sigma : 0.0f;
    }
  }
}

}  // namespace fastpose
