#include "gaussian_heatmap.h"

#include "gaussian_simd.h"

namespace fastpose::FASTPOSE_SIMD {

// One person in a square window into rows that are dense: one multiplication a pixel, written from the first to the last.
template <typename T, typename A> static void render_separable(const Gaussians& g, const Person<A>& person, T* out, int64_t row) {
  const A offset = A(g.offset);
  const A *x_factor = person.x.value, *y_factor = person.y.value;
  const int64_t height = g.height, width = g.width, whole = width / kLanes * kLanes;
  for (int64_t y = 0; y < height; ++y, out += row) {
    const A gy = y_factor[y] * A(g.amplitude);
    for (int64_t x = 0; x < whole; x += kLanes) store(load(x_factor + x) * gy + offset, out + x);
    if (whole < width) store_columns(load(x_factor + whole) * gy + offset, out, whole, width, 1);
  }
}

template <typename T> static void render(const GaussianHeatmap& job, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const Gaussians& g = job.gaussians;
  GaussianRows<A> rows(g);
  Scratch<A> row(padded(g.width));
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t b = plane / g.joints, k = plane % g.joints;
    const int64_t labelled = rows.start(b, k);
    T* out = job.maps.plane<T>(b, k);
    if (labelled == 1 && !g.circular && job.maps.column == 1) {
      render_separable(g, rows.person(0), out, job.maps.row);
      continue;
    }
    for (int64_t y = 0; y < g.height; ++y, out += job.maps.row) {
      rows.row(y, row.data);
      for (int64_t x = 0; x < g.width; x += kLanes) store_columns(load(row.data + x), out, x, g.width, job.maps.column);
    }
  }
}

// With u the upstream gradient and d = (x - x_p, y - y_p):
//   dL/dx_p = amplitude / sigma^2 * sum u g_p d_x,    dL/dsigma = amplitude / sigma^3 * sum u g_p (d_x^2 + d_y^2)
// over the pixels where person p counts: where p is the (first) maximum, or where the clamped sum is not clamped.
template <typename T> static void render_backward(const GaussianHeatmap& job, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const Gaussians& g = job.gaussians;
  GaussianRows<A> rows(g);
  Scratch<Vec<A>> sums(3 * g.people);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t b = plane / g.joints, k = plane % g.joints, labelled = rows.start(b, k);
    for (int64_t i = 0; i < 3 * labelled; ++i) sums.data[i] = Vec<A>{};
    const T* upstream = job.maps.plane<T>(b, k);
    for (int64_t y = 0; y < g.height; ++y, upstream += job.maps.row) {
      for (int64_t x = 0; x < g.width; x += kLanes) {
        const Vec<A> u = load_columns(upstream, x, g.width, job.maps.column, A(0));
        const Vec<A> top = rows.combined(y, x);
        Mask<A> open = g.add ? top <= splat(A(1)) : Mask<A>{} == Mask<A>{};
        for (int64_t i = 0; i < labelled; ++i) {
          const Vec<A> v = rows.gaussian(i, y, x);
          const Mask<A> counts = g.add ? open : open & (v == top);
          if (!g.add) open &= ~counts;
          const Vec<A> uv = counts ? u * v : Vec<A>{};
          const Vec<A> dx = load(rows.person(i).x.distance + x);
          const A dy = rows.person(i).y.distance[y];
          Vec<A>* s = sums.data + 3 * i;
          s[0] += uv * dx;
          s[1] += uv * dy;
          s[2] += uv * (dx * dx + dy * dy);
        }
      }
    }
    A* keypoint_gradient = static_cast<A*>(job.keypoint_gradient);
    A* sigma_gradient = static_cast<A*>(job.sigma_gradient);
    for (int64_t p = 0; p < g.people; ++p) {
      const int64_t at = (b * g.people + p) * g.joints + k;
      keypoint_gradient[2 * at] = keypoint_gradient[2 * at + 1] = sigma_gradient[at] = A(0);
    }
    for (int64_t i = 0; i < labelled; ++i) {
      const Person<A>& person = rows.person(i);
      const int64_t at = (b * g.people + person.index) * g.joints + k;
      const A scale = A(g.amplitude) / (person.sigma * person.sigma);
      keypoint_gradient[2 * at] = scale * horizontal_sum<A>(sums.data[3 * i]);
      keypoint_gradient[2 * at + 1] = scale * horizontal_sum<A>(sums.data[3 * i + 1]);
      sigma_gradient[at] = scale / person.sigma * horizontal_sum<A>(sums.data[3 * i + 2]);
    }
  }
}

void gaussian_heatmap_planes(const GaussianHeatmap& job, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) { render<T>(job, begin, end); });
}

void gaussian_heatmap_backward_planes(const GaussianHeatmap& job, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) { render_backward<T>(job, begin, end); });
}

}  // namespace fastpose::FASTPOSE_SIMD
