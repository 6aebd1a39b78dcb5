// Rows of a target map on the CPU: H + W exponentials a person, then one multiplication a pixel.
#pragma once
#include "gaussian.h"
#include "simd.h"

namespace fastpose::FASTPOSE_SIMD {

// exp(-d^2 / 2 sigma^2) and the signed distance d, for all positions along one axis.
template <typename A> struct Axis {
  A *value, *distance;
};

template <typename A> struct Person {
  int64_t index;  // among all people, labelled or not
  A sigma;
  Axis<A> x, y;
};

template <typename A> class GaussianRows {
 public:
  explicit GaussianRows(const Gaussians& g)
      : g_(g), width_(padded(g.width)), height_(padded(g.height)), memory_(g.people * 2 * (width_ + height_)), people_(g.people) {}

  // Prepares the map of joint k of sample b; returns how many people are labelled there.
  int64_t start(int64_t b, int64_t k) {
    labelled_ = 0;
    A* free = memory_.data;
    for (int64_t p = 0; p < g_.people; ++p) {
      Centre<A> c = centre_of<A>(g_, b, p, k);
      if (!c.labelled) continue;
      Axis<A> x{free, free + width_}, y{free + 2 * width_, free + 2 * width_ + height_};
      free += 2 * (width_ + height_);
      fill(x, c.x, c.sigma, width_);
      fill(y, c.y, c.sigma, height_);
      people_.data[labelled_++] = {p, c.sigma, x, y};
    }
    return labelled_;
  }

  const Person<A>& person(int64_t i) const { return people_.data[i]; }

  // The labelled person i's Gaussian at columns x .. x+kLanes-1 of row y.
  Vec<A> gaussian(int64_t i, int64_t y, int64_t x) const {
    const Person<A>& p = person(i);
    Vec<A> v = load(p.x.value + x) * p.y.value[y];
    if (!g_.circular) return v;
    Vec<A> dx = load(p.x.distance + x);
    const A dy = p.y.distance[y], radius = A(g_.radius);
    return dx * dx + dy * dy <= radius * radius ? v : Vec<A>{};
  }

  Vec<A> combined(int64_t y, int64_t x) const {
    Vec<A> v{};
    for (int64_t i = 0; i < labelled_; ++i) v = g_.add ? v + gaussian(i, y, x) : max(v, gaussian(i, y, x));
    return v;
  }

  // Row y of the map into out[0 .. padded(width)).
  void row(int64_t y, A* out) const {
    const A amplitude = A(g_.amplitude), offset = A(g_.offset);
    if (labelled_ == 1 && !g_.circular) {
      const A* gx = person(0).x.value;
      const A gy = person(0).y.value[y] * amplitude;
      for (int64_t x = 0; x < width_; x += kLanes) store(load(gx + x) * gy + offset, out + x);
      return;
    }
    for (int64_t x = 0; x < width_; x += kLanes) store(min(combined(y, x), splat(A(1))) * amplitude + offset, out + x);
  }

 private:
  void fill(Axis<A> axis, A centre, A sigma, int64_t n) {
    const A scale = A(-0.5) / (sigma * sigma), radius = A(g_.radius);
    for (int64_t i = 0; i < n; i += kLanes) {
      Vec<A> d = iota<A>() + (splat(A(i)) - centre), v = exp(d * d * scale);
      if (!g_.circular) v = max(d, -d) <= radius ? v : Vec<A>{};  // a square window is cut into the factors
      store(v, axis.value + i);
      store(max(min(d, splat(A(1e15))), splat(A(-1e15))), axis.distance + i);  // squared it stays finite; v is 0 there
    }
  }

  const Gaussians& g_;
  int64_t width_, height_, labelled_ = 0;
  Scratch<A> memory_;
  Scratch<Person<A>> people_;
};

}  // namespace fastpose::FASTPOSE_SIMD
