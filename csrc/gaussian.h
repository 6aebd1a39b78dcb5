// How a target is drawn: shared by rendering and by the loss, on CPU and CUDA.
//   map(y, x) = offset + amplitude * combine_p g_p(y, x),   g_p = exp(-((x - x_p)^2 + (y - y_p)^2) / (2 sigma^2)) inside the window
#pragma once
#include <cmath>
#include <cstdint>

#include "dtype.h"

namespace fastpose {

enum class Rounding : int64_t { none, nearest, floor };

struct Gaussians {
  const void* keypoints;  // (B, P, K, 2) contiguous, in the accumulator's type
  const void* sigmas;     // (K) likewise, or null: then `sigma` serves all joints
  double sigma;
  int64_t batch, people, joints, height, width;
  Rounding rounding;
  double radius;          // nothing is drawn further than this from the centre; infinity: full support
  bool circular;          // the window is a disc, else a square
  bool add;               // several people: sum clamped to 1, else maximum
  double amplitude, offset;
};

template <typename A> struct Centre {
  A x, y, sigma;
  bool labelled;
};

// Where person p's joint k is drawn. A coordinate that is not finite, or a sigma that is not a positive number, means "no label".
template <typename A> FASTPOSE_HOST_DEVICE Centre<A> centre_of(const Gaussians& g, int64_t b, int64_t p, int64_t k) {
  const A* xy = static_cast<const A*>(g.keypoints) + ((b * g.people + p) * g.joints + k) * 2;
  Centre<A> c{xy[0], xy[1], g.sigmas ? static_cast<const A*>(g.sigmas)[k] : A(g.sigma), false};
  // a - a is 0 for a finite number only
  c.labelled = c.x - c.x == 0 && c.y - c.y == 0 && c.sigma > 0 && c.sigma - c.sigma == 0;
  if (g.rounding == Rounding::nearest) {
    c.x = std::floor(c.x + A(0.5));
    c.y = std::floor(c.y + A(0.5));
  } else if (g.rounding == Rounding::floor) {
    c.x = std::floor(c.x);
    c.y = std::floor(c.y);
  }
  return c;
}

}  // namespace fastpose
