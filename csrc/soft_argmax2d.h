// Expected coordinates of heatmaps: what a call needs, the state of an online softmax, and who carries it out.
//   p = softmax(heatmap / T) over H x W,   mean = sum p (x, y),   covariance = sum p d d^T, d = (x, y) - mean,   confidence = max p
#pragma once
#include <cmath>
#include <cstdint>

#include "dtype.h"
#include "simd_level.h"

namespace fastpose {

struct SoftArgmax2d {
  DType dtype;  // of the heatmaps
  Maps heatmaps;
  int64_t batch, joints, height, width;
  double temperature;
  // Contiguous, in the accumulator's type; written by the forward pass, read by the backward pass.
  void* coordinates;  // (B, K, 2)
  void* confidence;   // (B, K)
  void* covariance;   // (B, K, 2, 2), or null: not asked for
  int64_t* argmax;    // (B, K): y * width + x of the first maximum
};

struct SoftArgmax2dBackward {
  SoftArgmax2d forward;
  const void *to_coordinates, *to_confidence, *to_covariance;  // upstream gradients, likewise; null: zero
  Maps gradient;                                               // of the heatmaps: written
};

// A unit of CPU work: up to kJointsPerUnit joints of an image where these lie side by side in memory (channels_last), else one plane.
constexpr int64_t kJointsPerUnit = 16;
inline bool joints_innermost(const SoftArgmax2d& job) {
  return job.joints > 1 && job.heatmaps.joint == 1 && job.heatmaps.column != 1;
}
inline int64_t units_per_image(const SoftArgmax2d& job) {
  return joints_innermost(job) ? (job.joints + kJointsPerUnit - 1) / kJointsPerUnit : job.joints;
}

// Units begin .. end-1 of all B * units_per_image, in that order.
FASTPOSE_SIMD_KERNEL(soft_argmax2d_units, const SoftArgmax2d&, int64_t begin, int64_t end)
FASTPOSE_SIMD_KERNEL(soft_argmax2d_backward_units, const SoftArgmax2dBackward&, int64_t begin, int64_t end)

// `states` is working memory of soft_argmax2d_state_bytes.
int64_t soft_argmax2d_state_bytes(const SoftArgmax2d&);
void soft_argmax2d_cuda(const SoftArgmax2d&, void* states, void* stream);
void soft_argmax2d_backward_cuda(const SoftArgmax2dBackward&, void* stream);

// ---- shared by CPU and CUDA -----------------------------------------------------------------------------------------------

FASTPOSE_HOST_DEVICE float power_of_2(float a) { return exp2f(a); }
FASTPOSE_HOST_DEVICE double power_of_2(double a) { return exp2(a); }

// Weights are powers of two: exp(v / T) = 2^(sharpness v).
template <typename A> FASTPOSE_HOST_DEVICE A sharpness_of(const SoftArgmax2d& job) {
  return A(1.4426950408889634 / job.temperature);
}

// Some pixels of a plane: the largest value and its place, and with weights w = 2^(sharpness (value - max)) their sum, the mean's offset
// from that place, and the sums of squares about the mean. Central from the start, so that variances of a few pixels do not drown in
// squares of coordinates.
template <typename A> struct SoftmaxState {
  A max;
  int32_t x, y;  // of the first maximum in row-major order
  A weight, offset_x, offset_y;
  A xx, yy, xy;  // sums of w dx^2, w dy^2, w dx dy
};

// The state of both sets of pixels together (Chan, Golub, LeVeque 1979).
template <typename A>
FASTPOSE_HOST_DEVICE SoftmaxState<A> merged(const SoftmaxState<A>& a, const SoftmaxState<A>& b, A sharpness) {
  const bool b_first = b.max > a.max || (b.max == a.max && (b.y < a.y || (b.y == a.y && b.x < a.x)));
  const A max = b_first ? b.max : a.max;
  const int32_t x = b_first ? b.x : a.x, y = b_first ? b.y : a.y;
  // Two infinities are equal, their difference is NaN.
  const A in_a = a.max == max ? A(1) : power_of_2(sharpness * (a.max - max));
  const A in_b = b.max == max ? A(1) : power_of_2(sharpness * (b.max - max));
  const A weight = in_a * a.weight + in_b * b.weight;
  const A share = weight == 0 ? A(0) : in_b * b.weight / weight, apart = share * in_a * a.weight;
  const A dx = A(b.x - a.x) + (b.offset_x - a.offset_x), dy = A(b.y - a.y) + (b.offset_y - a.offset_y);
  return {max,
          x,
          y,
          weight,
          A(a.x - x) + a.offset_x + share * dx,
          A(a.y - y) + a.offset_y + share * dy,
          in_a * a.xx + in_b * b.xx + apart * dx * dx,
          in_a * a.yy + in_b * b.yy + apart * dy * dy,
          in_a * a.xy + in_b * b.xy + apart * dx * dy};
}

// What the op returns for plane number `plane`. No weight at all (every value -infinity) gives NaN, as softmax does.
template <typename A> FASTPOSE_HOST_DEVICE void finish(const SoftArgmax2d& job, int64_t plane, const SoftmaxState<A>& s) {
  const bool none = s.weight == 0;
  const A p = none ? A(NAN) : 1 / s.weight;
  A* coordinates = static_cast<A*>(job.coordinates) + 2 * plane;
  coordinates[0] = none ? p : A(s.x) + s.offset_x;
  coordinates[1] = none ? p : A(s.y) + s.offset_y;
  static_cast<A*>(job.confidence)[plane] = p;
  job.argmax[plane] = s.y * job.width + s.x;
  if (!job.covariance) return;
  A* covariance = static_cast<A*>(job.covariance) + 4 * plane;
  covariance[0] = p * s.xx;
  covariance[1] = covariance[2] = p * s.xy;
  covariance[3] = p * s.yy;
}

// The gradient with respect to a plane: with offset d from the mean and weight w = 2^(sharpness (value - max)),
//   w (constant + x dx + y dy + xx dx^2 + yy dy^2 + xy dx dy)   and `peak` more at the maximum.
template <typename A> struct Slope {
  int64_t peak_x, peak_y;
  A max;  // the value there; for the caller to read
  A mean_x, mean_y, constant, x, y, xx, yy, xy, peak;

  template <typename T> FASTPOSE_HOST_DEVICE T& at_peak(T* plane, const Maps& maps) const {
    return plane[peak_y * maps.row + peak_x * maps.column];
  }
  FASTPOSE_HOST_DEVICE A peak_gradient() const {
    const A dx = A(peak_x) - mean_x, dy = A(peak_y) - mean_y;
    return constant + dx * (x + xx * dx + xy * dy) + dy * (y + yy * dy) + peak;
  }
};

template <typename A> FASTPOSE_HOST_DEVICE Slope<A> slope_of(const SoftArgmax2dBackward& job, int64_t plane) {
  const SoftArgmax2d& f = job.forward;
  const A* mean = static_cast<const A*>(f.coordinates) + 2 * plane;
  const A p = static_cast<const A*>(f.confidence)[plane];
  int64_t peak = f.argmax[plane];
  if (peak < 0 || peak >= f.height * f.width) peak = 0;  // guards the memory; forward writes none such
  Slope<A> s{peak % f.width, peak / f.width, 0, mean[0], mean[1], 0, 0, 0, 0, 0, 0, 0};
  const A scale = p / A(f.temperature);
  if (job.to_coordinates) {
    const A* g = static_cast<const A*>(job.to_coordinates) + 2 * plane;
    s.x = scale * g[0];
    s.y = scale * g[1];
  }
  if (job.to_covariance) {
    const A* g = static_cast<const A*>(job.to_covariance) + 4 * plane;
    const A* c = static_cast<const A*>(f.covariance) + 4 * plane;
    s.xx = scale * g[0];
    s.xy = scale * (g[1] + g[2]);
    s.yy = scale * g[3];
    s.constant = -(s.xx * c[0] + s.xy * c[1] + s.yy * c[3]);
  }
  if (job.to_confidence) {
    s.peak = scale * static_cast<const A*>(job.to_confidence)[plane];
    s.constant -= s.peak * p;
  }
  return s;
}

}  // namespace fastpose
