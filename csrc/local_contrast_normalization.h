// Local contrast normalisation: what a call needs, and who carries it out. With w_d the window's weights, kappa their sum over the
// pixels of the image, and sums over all C channels c:
//   mean_p = sum_d w_d sum_c x_{p+d} / (C kappa_p)        y = x - mean
//   v_p = sum_d w_d sum_c y_{p+d}^2 / C                   deviation_p = sqrt(v_p / K_p), K = kappa^2 or, for even borders, kappa
//   z = y / max(deviation, threshold)
// The gradient dx from that of z, g, is made of the same two sums, with the window mirrored:
//   D_p = -sum_c g y / (2 K deviation^3), or 0 where the threshold is divided by          E_p = sum_d w_d D_{p-d}
//   e = g / deviation + (2 / C) y E       F_p = sum_c e / (C kappa_p)                     dx_p = e - sum_d w_d F_{p-d}
#pragma once
#include <cstdint>

#include "dtype.h"
#include "simd_level.h"

namespace fastpose {

constexpr int64_t kMaxWindow = 31;

struct LocalContrast {
  DType dtype;
  int64_t batch, channels, height, width;
  Maps images;      // read
  Maps result;      // z, written; in the backward pass dx
  Maps gradient;    // g, read by the backward pass
  void* mean;       // (B, H, W) in the accumulator's type, or null where no gradient is wanted; read by the backward pass
  void* deviation;  // likewise, the larger of deviation and threshold
  int64_t size;     // of the window, odd
  double weights[kMaxWindow];
  bool even;
  double threshold;
};

// Bands begin .. end-1: an image's rows, so many at a time, image after image.
FASTPOSE_SIMD_KERNEL(local_contrast_normalization, const LocalContrast&, int64_t band_rows, int64_t begin, int64_t end)
FASTPOSE_SIMD_KERNEL(local_contrast_normalization_backward, const LocalContrast&, int64_t band_rows, int64_t begin, int64_t end)

void local_contrast_normalization_cuda(const LocalContrast&, void* stream);
void local_contrast_normalization_backward_cuda(const LocalContrast&, void* stream);

}  // namespace fastpose
