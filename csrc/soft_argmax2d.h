// Expected coordinates of heatmaps: what a call needs, the state of an online softmax, and who carries it out.
//   p = softmax(heatmap / T) over H x W,   mean = sum p (x, y),   covariance = sum p d d^T, d = (x, y) - mean,   confidence = max p
#pragma once
#include <cmath>
#include <cstdint>

#include "dtype.h"
#include "simd_level.h"

#ifdef __CUDACC__
#define FASTPOSE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTPOSE_HOST_DEVICE inline
#endif

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

void soft_argmax2d_cuda(const SoftArgmax2d&, void* stream);
void soft_argmax2d_backward_cuda(const SoftArgmax2dBackward&, void* stream);

// ---- shared by CPU and CUDA -----------------------------------------------------------------------------------------------
// Static, because every SIMD level compiles its own copy, which the linker must not merge.

static FASTPOSE_HOST_DEVICE float power_of_2(float a) { return exp2f(a); }
static FASTPOSE_HOST_DEVICE double power_of_2(double a) { return exp2(a); }

// Weights are powers of two: exp(v / T) = 2^(sharpness v).
template <typename A> static FASTPOSE_HOST_DEVICE A sharpness(const SoftArgmax2d& job) {
  return A(1.4426950408889634 / job.temperature);
}

// Sums over some pixels of a plane, with weights w = 2^(sharpness (value - max)) and offsets d from (x, y), where the largest value
// lies. There is the mass, so that second moments do not cancel.
template <typename A> struct SoftmaxState {
  A max;
  int32_t x, y;
  A w, wx, wy, wxx, wyy, wxy;
};

// The same sums relative to another maximum in another place.
template <typename A>
static FASTPOSE_HOST_DEVICE SoftmaxState<A> rebased(const SoftmaxState<A>& s, A max, int32_t x, int32_t y, A sharpness) {
  const A scale = s.max == max ? A(1) : power_of_2(sharpness * (s.max - max));  // two infinities are equal, their difference is NaN
  const A dx = A(s.x - x), dy = A(s.y - y);
  const A wx = s.wx + dx * s.w, wy = s.wy + dy * s.w;
  return {max,
          x,
          y,
          scale * s.w,
          scale * wx,
          scale * wy,
          scale * (s.wxx + dx * (s.wx + wx)),
          scale * (s.wyy + dy * (s.wy + wy)),
          scale * (s.wxy + dx * s.wy + dy * wx)};
}

// The state of the pixels of both. Of equal maxima the first in row-major order counts.
template <typename A>
static FASTPOSE_HOST_DEVICE SoftmaxState<A> merged(const SoftmaxState<A>& a, const SoftmaxState<A>& b, A sharpness) {
  const bool earlier = b.y < a.y || (b.y == a.y && b.x < a.x);
  const SoftmaxState<A>& top = b.max > a.max || (b.max == a.max && earlier) ? b : a;
  const SoftmaxState<A> p = rebased(a, top.max, top.x, top.y, sharpness), q = rebased(b, top.max, top.x, top.y, sharpness);
  return {p.max, p.x, p.y, p.w + q.w, p.wx + q.wx, p.wy + q.wy, p.wxx + q.wxx, p.wyy + q.wyy, p.wxy + q.wxy};
}

// What the op returns for plane number `plane`. No weight at all (every value -infinity) gives NaN, as softmax does.
template <typename A> static FASTPOSE_HOST_DEVICE void finish(const SoftArgmax2d& job, int64_t plane, const SoftmaxState<A>& s) {
  const A p = s.w > 0 ? 1 / s.w : A(NAN), x = p * s.wx, y = p * s.wy;
  A* coordinates = static_cast<A*>(job.coordinates) + 2 * plane;
  coordinates[0] = A(s.x) + x;
  coordinates[1] = A(s.y) + y;
  static_cast<A*>(job.confidence)[plane] = p;
  job.argmax[plane] = s.y * job.width + s.x;
  if (!job.covariance) return;
  A* covariance = static_cast<A*>(job.covariance) + 4 * plane;
  const A xx = p * s.wxx - x * x, yy = p * s.wyy - y * y;
  covariance[0] = xx < 0 ? A(0) : xx;  // rounding; NaN stays
  covariance[1] = covariance[2] = p * s.wxy - x * y;
  covariance[3] = yy < 0 ? A(0) : yy;
}

// The gradient with respect to a heatmap: at offset d from the mean, where the weight is w,
//   w (constant + x dx + y dy + xx dx^2 + yy dy^2 + xy dx dy)   and `peak` more at the maximum.
template <typename A> struct Slope {
  int64_t argmax;
  A mean_x, mean_y, constant, x, y, xx, yy, xy, peak;

  FASTPOSE_HOST_DEVICE A at_peak(int64_t width) const {
    const A dx = A(argmax % width) - mean_x, dy = A(argmax / width) - mean_y;
    return constant + dx * (x + xx * dx + xy * dy) + dy * (y + yy * dy) + peak;
  }
};

template <typename A> static FASTPOSE_HOST_DEVICE Slope<A> slope_of(const SoftArgmax2dBackward& job, int64_t plane) {
  const SoftArgmax2d& f = job.forward;
  const A* mean = static_cast<const A*>(f.coordinates) + 2 * plane;
  const A p = static_cast<const A*>(f.confidence)[plane];
  Slope<A> s{f.argmax[plane], mean[0], mean[1], 0, 0, 0, 0, 0, 0, 0};
  const int64_t last = f.height * f.width - 1;  // guards the memory against a wrong argmax
  s.argmax = s.argmax < 0 ? 0 : s.argmax > last ? last : s.argmax;
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
