// Generalised distance transforms: what a call needs, and who carries it out.
//   value(q) = max_u score(u) - cost_x(u_x - q_x) - cost_y(u_y - q_y),   cost(d) = (d - anchor) (a (d - anchor) + b)
// First along the rows: best(u_y, q_x) = max over u_x; then down the columns. Of equal values the first u counts, row by row.
#pragma once
#include <cmath>
#include <cstdint>

#include "dtype.h"
#include "simd_level.h"

namespace fastpose {

struct DistanceTransform {
  DType dtype;
  int64_t batch, joints, height, width;
  Maps scores;          // read; in the backward pass their gradient, written
  Maps values;          // written; in the backward pass the gradient of them, read
  int32_t* cells;       // (B, K, H, W): y W + x of u; written, and read by the backward pass
  const void* springs;  // (B, K, 6): a_x, b_x, a_y, b_y, anchor_x, anchor_y; accumulator's type
  void* spring_gradient = nullptr;  // likewise, written by the backward pass
};

// Planes begin .. end-1 of the B K, in that order.
FASTPOSE_SIMD_KERNEL(distance_transform2d, const DistanceTransform&, int64_t begin, int64_t end)
FASTPOSE_SIMD_KERNEL(distance_transform2d_backward, const DistanceTransform&, int64_t begin, int64_t end)

// On a GPU, `memory` of so many bytes holds what the first pass gives.
int64_t distance_transform2d_bytes(const DistanceTransform&, bool backward);
void distance_transform2d_cuda(const DistanceTransform&, void* memory, void* stream);
void distance_transform2d_backward_cuda(const DistanceTransform&, void* memory, void* stream);

// What a spring takes along one axis.
template <typename A> struct Spring {
  A a, b, anchor;
  FASTPOSE_HOST_DEVICE A cost(A d) const {
    d -= anchor;
    return d * (a * d + b);
  }
  FASTPOSE_HOST_DEVICE A slope(A d) const { return 2 * a * (d - anchor) + b; }
};
template <typename A> FASTPOSE_HOST_DEVICE Spring<A> spring_x(const DistanceTransform& job, int64_t plane) {
  const A* s = static_cast<const A*>(job.springs) + 6 * plane;
  return {s[0], s[1], s[4]};
}
template <typename A> FASTPOSE_HOST_DEVICE Spring<A> spring_y(const DistanceTransform& job, int64_t plane) {
  const A* s = static_cast<const A*>(job.springs) + 6 * plane;
  return {s[2], s[3], s[5]};
}

// Sums over a plane of g dx^2, g dx, g and likewise for y, with g the upstream gradient and d the distance from rest: they make up the
// gradient of its springs.
template <typename S> struct SpringSums {
  S xx = 0, x = 0, yy = 0, y = 0, all = 0;
  template <typename A> FASTPOSE_HOST_DEVICE void add(A g, A dx, A dy) {
    xx += S(g) * dx * dx;
    x += S(g) * dx;
    yy += S(g) * dy * dy;
    y += S(g) * dy;
    all += S(g);
  }
  template <typename A> FASTPOSE_HOST_DEVICE void write(const DistanceTransform& job, int64_t plane) const {
    const Spring<A> along = spring_x<A>(job, plane), down = spring_y<A>(job, plane);
    A* to = static_cast<A*>(job.spring_gradient) + 6 * plane;
    to[0] = A(-xx);
    to[1] = A(-x);
    to[2] = A(-yy);
    to[3] = A(-y);
    to[4] = A(2 * along.a * x + along.b * all);
    to[5] = A(2 * down.a * y + down.b * all);
  }
};

}  // namespace fastpose
