// The loss straight from keypoints: what a call needs, and who carries it out.
//   loss_s = scale * sum_{b,k,y,x} w_bk (p_s - t)^2,    d loss_s / d p_s = 2 scale w_bk (p_s - t)
// The target t is drawn in passing and never stored. A weight of 0 wipes out its map: no loss and a zero gradient even from NaN.
#pragma once
#include "dtype.h"
#include "gaussian.h"
#include "simd_level.h"

namespace fastpose {

struct Stack {
  Maps prediction;
  Maps gradient;  // written; its data is null if no gradient is wanted
};

struct HeatmapMSELoss {
  Gaussians gaussians;
  DType dtype;
  const Stack* stacks;
  int64_t stack_count;
  const void* weights;      // (B, K) in the accumulator's type, or null: 1
  bool ignore_unlabelled;   // maps on which no person is labelled weigh 0
  double gradient_scale;    // the gradient is gradient_scale * w * (p - t)
};

// gradient = factor * upstream[s] * saved, of dense buffers; the two may be the same.
struct HeatmapMSELossScale {
  const void* saved;
  void* gradient;
  int64_t elements;
  DType dtype;
  double factor;  // with the upstream gradient already in it
};

// CPU: sums (stack_count, parts) take each part's weighted squares. A part is one of B * K planes,
FASTPOSE_SIMD_KERNEL(heatmap_mse_loss_planes, const HeatmapMSELoss&, double* sums, int64_t begin, int64_t end)
// or one of B samples whose joints lie innermost and dense in memory (channels_last).
FASTPOSE_SIMD_KERNEL(heatmap_mse_loss_samples, const HeatmapMSELoss&, double* sums, int64_t begin, int64_t end)
FASTPOSE_SIMD_KERNEL(heatmap_mse_loss_scale, const HeatmapMSELossScale&, int64_t begin, int64_t end)

}  // namespace fastpose
