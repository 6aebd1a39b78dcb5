// The convolution of Gaussian maps: what a call needs, and who carries it out. With gy, gx the two factors of a joint's Gaussian, 0 in
// the padding, a kernel row dy is one term of a product of matrices:
//   result(o, i, j) = base(o, i, j) + sum_{k, dy} gy_k(s i + dy - p) R_{o, k, dy}(j),   R(j) = sum_dx weight(o, k, dy, dx) gx_k(s j + dx - p)
// The maps' offset is one joint more, number K, whose factors are 1 in the maps: its weight is the sum of the others'.
#pragma once
#include "dtype.h"
#include "gaussian.h"
#include "simd_level.h"

namespace fastpose {

struct GaussianConv {
  Gaussians gaussians;  // one person; height and width are those of the maps that are not drawn
  DType dtype;
  int64_t channels, height, width;  // of the result
  int64_t kernel_height, kernel_width, stride, padding;
  const void* weight;     // (O, K, kernel_height, kernel_width)
  Maps base, result;      // (B, O, h, w); the backward pass reads the gradient of the result in `result`
  void* weight_gradient;  // (O, K + 1, kernel_height, kernel_width) in the accumulator's type: of amplitude times the factors, of offset

  FASTPOSE_HOST_DEVICE bool has_constant() const { return gaussians.offset != 0; }
};

// Forward parts begin .. end-1 are groups of kConvChannels channels, sample after sample; backward parts are such groups.
constexpr int64_t kConvChannels = 8;
FASTPOSE_SIMD_KERNEL(gaussian_conv2d, const GaussianConv&, int64_t begin, int64_t end)
FASTPOSE_SIMD_KERNEL(gaussian_conv2d_backward, const GaussianConv&, int64_t begin, int64_t end)

// On a GPU, `memory` of so many bytes holds the factors.
int64_t gaussian_conv2d_bytes(const GaussianConv&);
void gaussian_conv2d_cuda(const GaussianConv&, void* memory, void* stream);
void gaussian_conv2d_backward_cuda(const GaussianConv&, void* memory, void* stream);

}  // namespace fastpose
