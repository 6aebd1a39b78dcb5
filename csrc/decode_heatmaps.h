// Decoding: what a call needs, who carries it out, and the sub-pixel refinement, which CPU and CUDA share.
#pragma once
#include <cmath>
#include <cstdint>

#include "dtype.h"
#include "simd_level.h"

namespace fastpose {

enum class DecodeMethod : int64_t { argmax, quarter, dark, soft_window };
enum class QuarterBorder : int64_t { torch7, msra, clamped };

constexpr int64_t kMaxBlurSize = 63;

struct DecodeHeatmaps {
  DType dtype;
  int64_t batch, joints, height, width;
  Maps maps;
  Maps flipped;                     // the network's maps of the mirrored images, or data null
  const int64_t* flip_permutation;  // (K), or null: every joint is its own mirror image
  int64_t flip_shift;
  const void* affine;  // (B, 2, 3) from heatmap to image pixels in the accumulator's type, or null
  DecodeMethod method;
  QuarterBorder border;
  int64_t blur_size;
  double blur_sigma;
  int64_t radius;
  double temperature;
  void* coordinates = nullptr;  // (B, K, 2), accumulator type; in the backward pass the gradient of it
  void* scores = nullptr;       // (B, K), likewise
  int64_t* cells = nullptr;     // (B, K): y * W + x of the maximum, -1 where there is none

  bool joints_inner() const { return maps.joint == 1 && maps.column != 1; }
};

// Planes begin .. end-1 of the B * K, in that order; where joints lie side by side in memory, samples begin .. end-1 of the B.
FASTPOSE_SIMD_KERNEL(decode_heatmaps_planes, const DecodeHeatmaps&, int64_t begin, int64_t end)
FASTPOSE_SIMD_KERNEL(decode_heatmaps_samples, const DecodeHeatmaps&, int64_t begin, int64_t end)
// Writes the windows into `gradient` and `flipped_gradient`, which are zero elsewhere.
FASTPOSE_SIMD_KERNEL(decode_heatmaps_backward_planes, const DecodeHeatmaps&, const Maps& gradient, const Maps& flipped_gradient,
                     int64_t begin, int64_t end)

// On a GPU each sample whose joints lie side by side is searched in this many parts, and their maxima go to values and cells of
// (B, parts, K); otherwise 0.
int64_t decode_heatmaps_parts(const DecodeHeatmaps&);
void decode_heatmaps_cuda(const DecodeHeatmaps&, float* part_values, int64_t* part_cells, void* stream);
void decode_heatmaps_backward_cuda(const DecodeHeatmaps&, const Maps& gradient, const Maps& flipped_gradient, void* stream);

// ---- the flip test --------------------------------------------------------------------------------------------------

// The map of the mirrored image that belongs to joint k, or -1 if a permutation on a GPU, which nobody has checked, is none.
FASTPOSE_HOST_DEVICE int64_t flipped_joint(const DecodeHeatmaps& job, int64_t k) {
  if (!job.flip_permutation) return k;
  const int64_t mirrored = job.flip_permutation[k];
  return mirrored >= 0 && mirrored < job.joints ? mirrored : -1;
}

FASTPOSE_HOST_DEVICE int64_t flipped_column(const DecodeHeatmaps& job, int64_t x) {
  return job.width - 1 - (x > job.flip_shift ? x - job.flip_shift : 0);
}

// ---- refinement -----------------------------------------------------------------------------------------------------
// A Plane reads one averaged map in the accumulator's type, NaN as -infinity:
//   at(y, x)             a value inside the map
//   columns(y, x, fill)  the values of row y at columns x .. x + kWidth-1, `fill` outside the map
//   store(value, p)      narrows to the element's type
// A Team holds kWidth neighbouring columns in one Vector: a SIMD vector on the CPU, one number in each thread of a warp on a GPU.
//   load, store, exp, sum (over the columns), offsets (0, 1, ..), sync (of the scratch memory), pitch(n): room for n columns

template <typename A> struct Offset {
  A x, y;
};

template <typename A> FASTPOSE_HOST_DEVICE bool is_finite(A a) { return a - a == 0; }

// A quarter of a pixel toward the larger neighbour.
template <typename Plane> FASTPOSE_HOST_DEVICE auto quarter_offset(const DecodeHeatmaps& job, const Plane& h, int64_t y, int64_t x) {
  using A = typename Plane::Value;
  const int64_t last_x = job.width - 1, last_y = job.height - 1;
  const int64_t margin = job.border == QuarterBorder::msra ? 2 : 1;
  const bool clamped = job.border == QuarterBorder::clamped;
  if (!clamped && (x < margin || y < margin || x > last_x - 1 || y > last_y - 1)) return Offset<A>{0, 0};
  const A right = h.at(y, x < last_x ? x + 1 : x), left = h.at(y, x > 0 ? x - 1 : x);
  const A below = h.at(y < last_y ? y + 1 : y, x), above = h.at(y > 0 ? y - 1 : y, x);
  const A tie = clamped ? A(-0.25) : A(0);
  return Offset<A>{right > left ? A(0.25) : right < left ? A(-0.25) : tie,
                   below > above ? A(0.25) : below < above ? A(-0.25) : tie};
}

// blur_size weights of sum 1 between four zeros on either side; the caller fills i = first, first + step, ...
template <typename A> FASTPOSE_HOST_DEVICE void fill_blur_weights(const DecodeHeatmaps& job, A* weights, int64_t first, int64_t step) {
  const int64_t half = job.blur_size / 2;
  const A sigma = A(job.blur_sigma), scale = A(-0.5) / (sigma * sigma);
  A total = 0;
  for (int64_t i = -half; i <= half; ++i) total += std::exp(scale * A(i * i));
  for (int64_t i = first; i < job.blur_size + 8; i += step) {
    const int64_t d = i - 4 - half;
    weights[i] = d < -half || d > half ? A(0) : std::exp(scale * A(d * d)) / total;
  }
}

// DARK: one Newton step -H^-1 g on the log of the blurred map, from its values at 13 points around the maximum. The blur is
// separable, so 5 x (blur_size + 4) sums down the columns and 5 x 5 along the rows do. `scratch` holds 10 pitch(blur_size + 4).
template <typename Plane, typename Team>
FASTPOSE_HOST_DEVICE auto dark_offset(const DecodeHeatmaps& job, const Plane& h, int64_t y, int64_t x,
                                 const typename Plane::Value* weights, typename Plane::Value* scratch, const Team& team) {
  using A = typename Plane::Value;
  using Vector = typename Team::Vector;
  constexpr Offset<A> kNone{0, 0};
  constexpr A kFloor = A(1e-10), kSingular = A(1e-5);
  if (x < 2 || y < 2 || x > job.width - 3 || y > job.height - 3) return kNone;
  const int64_t side = job.blur_size + 4, pitch = team.pitch(side);
  A *columns = scratch, *blurred = scratch + 5 * pitch;
  team.sync();  // the scratch of the plane before is used up
  for (int64_t c = 0; c < side; c += Team::kWidth) {
    Vector sums[5] = {};
    for (int64_t r = 0; r < side; ++r) {
      const Vector v = h.columns(y + r - side / 2, x + c - side / 2, A(0));
      for (int t = 0; t < 5; ++t) sums[t] += weights[r - t + 4] * v;
    }
    for (int t = 0; t < 5; ++t) team.store(sums[t], columns + t * pitch + c);
  }
  team.sync();
  for (int64_t c = 0; c < 5; c += Team::kWidth) {
    Vector sums[5] = {};
    for (int64_t j = 0; j < job.blur_size; ++j)
      for (int t = 0; t < 5; ++t) sums[t] += weights[j + 4] * team.load(columns + t * pitch + c + j);
    for (int t = 0; t < 5; ++t) team.store(sums[t], blurred + t * pitch + c);
  }
  team.sync();
  auto at = [&](int dy, int dx) { return blurred[(dy + 2) * pitch + dx + 2]; };
  const A all = at(0, 0) + at(0, 1) + at(0, 2) + at(0, -1) + at(0, -2) + at(1, 0) + at(2, 0) + at(-1, 0) + at(-2, 0) + at(1, 1) +
                at(1, -1) + at(-1, 1) + at(-1, -1);
  if (!is_finite(all)) return kNone;
  // Differences of logs are logs of ratios: five logarithms for thirteen, and no digits lost to the height of the map.
  auto value = [&](int dy, int dx) { return at(dy, dx) > kFloor ? at(dy, dx) : kFloor; };
  const A centre = value(0, 0);
  const A gx = A(0.5) * std::log(value(0, 1) / value(0, -1)), gy = A(0.5) * std::log(value(1, 0) / value(-1, 0));
  const A xx = A(0.25) * std::log(value(0, 2) / centre * (value(0, -2) / centre));
  const A yy = A(0.25) * std::log(value(2, 0) / centre * (value(-2, 0) / centre));
  const A xy = A(0.25) * std::log(value(1, 1) / value(-1, 1) * (value(-1, -1) / value(1, -1)));
  const A determinant = xx * yy - xy * xy;
  if (!(std::abs(determinant) > kSingular * (xx * xx + yy * yy))) return kNone;
  return Offset<A>{(xy * gy - yy * gx) / determinant, (xy * gx - xx * gy) / determinant};
}

// softmax((h - top) / temperature) over the window around the maximum: the expected offset, and the softmax's denominator.
template <typename A> struct SoftWindow {
  Offset<A> mean;
  A total;
};

template <typename Plane, typename Team>
FASTPOSE_HOST_DEVICE auto soft_window(const DecodeHeatmaps& job, const Plane& h, int64_t y, int64_t x, typename Plane::Value top,
                                 const Team& team) {
  using A = typename Plane::Value;
  using Vector = typename Team::Vector;
  const int64_t r = job.radius, first_y = y > r ? y - r : 0, last_y = y + r < job.height ? y + r : job.height - 1;
  const int64_t first_x = x > r ? x - r : 0, last_x = x + r < job.width ? x + r : job.width - 1;
  const A temperature = A(job.temperature);
  Vector total{}, sum_x{}, sum_y{};
  for (int64_t row = first_y; row <= last_y; ++row) {
    for (int64_t c = first_x; c <= last_x; c += Team::kWidth) {
      const Vector dx = team.offsets() + A(c - x);
      const Vector weight = team.exp((h.columns(row, c, -A(INFINITY)) - top) / temperature);
      const Vector inside = dx <= A(last_x - x) ? weight : Vector{};
      total += inside;
      sum_x += inside * dx;
      sum_y += inside * A(row - y);
    }
  }
  const A sum = team.sum(total);
  return SoftWindow<A>{{team.sum(sum_x) / sum, team.sum(sum_y) / sum}, sum};
}

template <typename A> struct Decoded {
  A x, y, score;  // in heatmap pixels
};

// From the cell of the maximum, -1 where there is none, to what is returned.
template <typename Plane, typename Team>
FASTPOSE_HOST_DEVICE auto refine(const DecodeHeatmaps& job, const Plane& h, int64_t cell, const typename Plane::Value* weights,
                            typename Plane::Value* scratch, const Team& team) {
  using A = typename Plane::Value;
  if (cell < 0) return Decoded<A>{A(NAN), A(NAN), A(NAN)};
  const int64_t y = cell / job.width, x = cell % job.width;
  const A top = h.at(y, x);
  Offset<A> offset{0, 0};
  if (job.method == DecodeMethod::quarter) offset = quarter_offset(job, h, y, x);
  if (job.method == DecodeMethod::dark) offset = dark_offset(job, h, y, x, weights, scratch, team);
  if (job.method == DecodeMethod::soft_window) offset = soft_window(job, h, y, x, top, team).mean;
  if (!is_finite(offset.x) || !is_finite(offset.y)) offset = {0, 0};
  return Decoded<A>{A(x) + offset.x, A(y) + offset.y, top};
}

template <typename A> FASTPOSE_HOST_DEVICE void write(const DecodeHeatmaps& job, int64_t b, int64_t k, int64_t cell, Decoded<A> d) {
  const int64_t at = b * job.joints + k;
  A* xy = static_cast<A*>(job.coordinates) + 2 * at;
  if (job.affine) {
    const A* m = static_cast<const A*>(job.affine) + 6 * b;
    xy[0] = m[0] * d.x + m[1] * d.y + m[2];
    xy[1] = m[3] * d.x + m[4] * d.y + m[5];
  } else {
    xy[0] = d.x;
    xy[1] = d.y;
  }
  static_cast<A*>(job.scores)[at] = d.score;
  job.cells[at] = cell;
}

// ---- backward -------------------------------------------------------------------------------------------------------

// What the gradient of one plane is made of: it is zero outside of the window. The score counts at the maximum; with p the softmax
// and g the gradient of the coordinates, a cell that lies d from the maximum gets p / temperature * g . (d - mean).
template <typename A> struct WindowGradient {
  int64_t y, x, first_y, last_y, first_x, last_x;
  A top, score, gx, gy;
  bool soft;
  SoftWindow<A> window;
};

template <typename Plane, typename Team>
FASTPOSE_HOST_DEVICE auto window_gradient(const DecodeHeatmaps& job, const Plane& h, int64_t b, int64_t k, const Team& team) {
  using A = typename Plane::Value;
  const int64_t at = b * job.joints + k, cell = job.cells[at];
  WindowGradient<A> g{};
  g.y = cell / job.width;
  g.x = cell % job.width;
  g.top = h.at(g.y, g.x);
  g.score = static_cast<const A*>(job.scores)[at];
  if (job.method == DecodeMethod::soft_window) {
    g.window = soft_window(job, h, g.y, g.x, g.top, team);
    g.soft = is_finite(g.window.mean.x) && is_finite(g.window.mean.y);
  }
  const int64_t r = g.soft ? job.radius : 0;
  g.first_y = g.y > r ? g.y - r : 0;
  g.last_y = g.y + r < job.height ? g.y + r : job.height - 1;
  g.first_x = g.x > r ? g.x - r : 0;
  g.last_x = g.x + r < job.width ? g.x + r : job.width - 1;
  const A* to = static_cast<const A*>(job.coordinates) + 2 * at;
  g.gx = to[0];
  g.gy = to[1];
  if (job.affine) {
    const A* m = static_cast<const A*>(job.affine) + 6 * b;
    g.gx = m[0] * to[0] + m[3] * to[1];
    g.gy = m[1] * to[0] + m[4] * to[1];
  }
  return g;
}

template <typename Plane, typename A>
FASTPOSE_HOST_DEVICE A cell_gradient(const DecodeHeatmaps& job, const Plane& h, const WindowGradient<A>& g, int64_t y, int64_t x) {
  A value = y == g.y && x == g.x ? g.score : A(0);
  if (g.soft) {
    const A dx = A(x - g.x) - g.window.mean.x, dy = A(y - g.y) - g.window.mean.y, temperature = A(job.temperature);
    value += std::exp((h.at(y, x) - g.top) / temperature) / (g.window.total * temperature) * (g.gx * dx + g.gy * dy);
  }
  return job.flipped.data ? A(0.5) * value : value;
}

// Writes the window of plane (b, k) into `gradient` and into the mirrored plane of `flipped_gradient`: the caller's share of the
// cells, first, first + step, ... Every element has one writer, which sums the columns that the shift folds onto it.
template <typename Plane, typename A>
FASTPOSE_HOST_DEVICE void write_window(const DecodeHeatmaps& job, const Plane& h, const WindowGradient<A>& g, const Maps& gradient,
                                  const Maps& flipped_gradient, int64_t b, int64_t k, int64_t first, int64_t step) {
  using T = typename Plane::Element;
  const int64_t rows = g.last_y - g.first_y + 1, columns = g.last_x - g.first_x + 1;
  T* to = gradient.plane<T>(b, k);
  for (int64_t i = first; i < rows * columns; i += step) {
    const int64_t y = g.first_y + i / columns, x = g.first_x + i % columns;
    Plane::store(cell_gradient(job, h, g, y, x), to + y * gradient.row + x * gradient.column);
  }
  if (!job.flipped.data) return;
  to = flipped_gradient.plane<T>(b, flipped_joint(job, k));
  for (int64_t i = first; i < rows * columns; i += step) {
    const int64_t y = g.first_y + i / columns, x = g.first_x + i % columns, column = flipped_column(job, x);
    if (x > g.first_x && flipped_column(job, x - 1) == column) continue;  // the first of the folded columns writes for all
    A sum = 0;
    for (int64_t c = x; c <= g.last_x && flipped_column(job, c) == column; ++c) sum += cell_gradient(job, h, g, y, c);
    Plane::store(sum, to + y * flipped_gradient.row + column * flipped_gradient.column);
  }
}

}  // namespace fastpose
