// Rendering: what a call needs, and who carries it out.
#pragma once
#include "dtype.h"
#include "gaussian.h"
#include "simd_level.h"

namespace fastpose {

struct GaussianHeatmap {
  Gaussians gaussians;
  DType dtype;  // of the maps
  Maps maps;    // written by the forward pass; the upstream gradient, read by the backward pass
  void* keypoint_gradient = nullptr;  // (B, P, K, 2), accumulator type
  void* sigma_gradient = nullptr;     // (B, P, K), accumulator type
};

// Planes begin .. end-1 of the B * K, in that order.
FASTPOSE_SIMD_KERNEL(gaussian_heatmap_planes, const GaussianHeatmap&, int64_t begin, int64_t end)
FASTPOSE_SIMD_KERNEL(gaussian_heatmap_backward_planes, const GaussianHeatmap&, int64_t begin, int64_t end)

void gaussian_heatmap_cuda(const GaussianHeatmap&, void* stream);
void gaussian_heatmap_backward_cuda(const GaussianHeatmap&, void* stream);

}  // namespace fastpose
