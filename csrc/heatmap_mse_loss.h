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
  const void* weights;     // (B, K) in the accumulator's type, or null: 1
  bool ignore_unlabelled;  // maps on which no person is labelled weigh 0
  double scale;            // of the losses
  double gradient_scale;   // the gradient is gradient_scale * w * (p - t)
  bool streams = false;    // gradients are written past the CPU's caches

  // Whether every map is dense with the joints of a pixel side by side (channels_last).
  bool joints_innermost() const {
    auto innermost = [&](const Maps& m) { return !m.data || (m.joint == 1 && m.column == gaussians.joints); };
    for (int64_t s = 0; s < stack_count; ++s)
      if (!innermost(stacks[s].prediction) || !innermost(stacks[s].gradient)) return false;
    return true;
  }
};

// gradient = factor * upstream * saved over dense buffers, which may be one and the same.
struct HeatmapMSELossScale {
  const void* saved;
  void* gradient;
  int64_t elements;
  DType dtype;
  const void* upstream;  // one number of the accumulator's type
  double factor;

  // Read by the kernel: on a GPU the host never waits for `upstream`.
  template <typename A> FASTPOSE_HOST_DEVICE A multiplier() const { return A(factor) * *static_cast<const A*>(upstream); }
};

// On the CPU, `sums` (stack_count, parts) takes each part's weighted squares. A part is one of the B * K planes ...
FASTPOSE_SIMD_KERNEL(heatmap_mse_loss_planes, const HeatmapMSELoss&, double* sums, int64_t begin, int64_t end)
// ... or, where the joints lie innermost, one of the B samples.
FASTPOSE_SIMD_KERNEL(heatmap_mse_loss_samples, const HeatmapMSELoss&, double* sums, int64_t begin, int64_t end)
// Elements begin .. end-1.
FASTPOSE_SIMD_KERNEL(heatmap_mse_loss_scale, const HeatmapMSELossScale&, int64_t begin, int64_t end)

// On a GPU, `partials` (stack_count, heatmap_mse_loss_tiles) is working memory.
int64_t heatmap_mse_loss_tiles(const HeatmapMSELoss&);
void heatmap_mse_loss_cuda(const HeatmapMSELoss&, float* partials, float* losses, void* stream);
void heatmap_mse_loss_scale_cuda(const HeatmapMSELossScale&, void* stream);

}  // namespace fastpose
