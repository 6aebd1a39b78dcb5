// Decoding: what a call needs, who carries it out, and the sub-pixel refinement, which CPU and CUDA share.
#pragma once
#include <cmath>
#include <cstdint>

#include "dtype.h"
#include "simd_level.h"

// Internal linkage: the CPU kernels are compiled once per instruction set, and the linker must not mix them.
#ifdef __CUDACC__
#define FASTPOSE_SHARED static __device__ __forceinline__
#else
#define FASTPOSE_SHARED static inline
#endif

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
  void *coordinates, *scores;  // (B, K, 2) and (B, K), accumulator type: written by the forward pass, their gradients in the backward
  int64_t* cells;              // (B, K): y * W + x of the maximum, -1 where there is none

  bool joints_inner() const { return maps.joint == 1 && maps.column != 1; }
};

// Planes begin .. end-1 of the B * K, in that order; where joints lie side by side in memory, samples begin .. end-1 of the B.
FASTPOSE_SIMD_KERNEL(decode_heatmaps_planes, const DecodeHeatmaps&, int64_t begin, int64_t end)
FASTPOSE_SIMD_KERNEL(decode_heatmaps_samples, const DecodeHeatmaps&, int64_t begin, int64_t end)
// Adds to `gradient` and `flipped_gradient`, which are zero; planes as above.
FASTPOSE_SIMD_KERNEL(decode_heatmaps_backward_planes, const DecodeHeatmaps&, const Maps& gradient, const Maps& flipped_gradient,
                     int64_t begin, int64_t end)

// Where joints lie side by side, each sample is searched by this many blocks; their maxima go to values and cells, (B, parts, K).
int64_t decode_heatmaps_parts(const DecodeHeatmaps&);
void decode_heatmaps_cuda(const DecodeHeatmaps&, float* part_values, int64_t* part_cells, void* stream);
void decode_heatmaps_backward_cuda(const DecodeHeatmaps&, const Maps& gradient, const Maps& flipped_gradient, void* stream);

// ---- the flip test --------------------------------------------------------------------------------------------------

// The map of the mirrored image that belongs to joint k, or -1 if a permutation on a GPU, which nobody has checked, is none.
FASTPOSE_SHARED int64_t flipped_joint(const DecodeHeatmaps& job, int64_t k) {
  if (!job.flip_permutation) return k;
  const int64_t mirrored = job.flip_permutation[k];
  return mirrored >= 0 && mirrored < job.joints ? mirrored : -1;
}

FASTPOSE_SHARED int64_t flipped_column(const DecodeHeatmaps& job, int64_t x) {
  return job.width - 1 - (x > job.flip_shift ? x - job.flip_shift : 0);
}

// ---- refinement -----------------------------------------------------------------------------------------------------
// A Plane reads one averaged map in the accumulator's type, NaN as -infinity:
//   at(y, x)               a value inside the map
//   columns(y, x, fill)    the team's values of row y from column x on, `fill` outside the map
// A Team works on several neighbouring columns at a time, column start(), start() + step(), ...: a vector on the CPU, a warp on a GPU.
//   Vector, load, store, exp, sum (over the team), offset() (0, 1, 2, ...: each column's distance from the first), sync, pitch(columns)

template <typename A> struct Offset {
  A x, y;
};

template <typename A> FASTPOSE_SHARED bool is_finite(A a) { return a - a == 0; }

// A quarter of a pixel toward the larger neighbour.
template <typename Plane> FASTPOSE_SHARED auto quarter_offset(const DecodeHeatmaps& job, const Plane& h, int64_t y, int64_t x) {
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
template <typename A> FASTPOSE_SHARED void fill_blur_weights(const DecodeHeatmaps& job, A* weights, int64_t first, int64_t step) {
  const int64_t half = job.blur_size / 2;
  const A scale = A(-0.5 / (job.blur_sigma * job.blur_sigma));
  A total = 0;
  for (int64_t i = -half; i <= half; ++i) total += std::exp(scale * A(i * i));
  for (int64_t i = first; i < job.blur_size + 8; i += step) {
    const int64_t d = i - 4 - half;
    weights[i] = d < -half || d > half ? A(0) : std::exp(scale * A(d * d)) / total;
  }
}

// DARK: one Newton step -H^-1 g on the log of the blurred map, from its values at 13 points around the maximum. The blur is
// separable, so 5 x (blur_size + 4) sums over columns and 5 x 5 over rows do. `scratch` holds 10 rows of pitch(blur_size + 4).
template <typename Plane, typename Team>
FASTPOSE_SHARED auto dark_offset(const DecodeHeatmaps& job, const Plane& h, int64_t y, int64_t x, const typename Plane::Value* weights,
                                 typename Plane::Value* scratch, const Team& team) {
  using A = typename Plane::Value;
  using Vector = typename Team::Vector;
  constexpr Offset<A> kNone{0, 0};
  constexpr A kFloor = A(1e-10), kSingular = A(1e-5);
  if (x < 2 || y < 2 || x > job.width - 3 || y > job.height - 3) return kNone;
  const int64_t side = job.blur_size + 4, pitch = team.pitch(side);
  A *columns = scratch, *blurred = scratch + 5 * pitch;
  team.sync();  // the scratch of the plane before is used up
  for (int64_t c = team.start(); c < side; c += team.step()) {
    Vector sums[5] = {};
    for (int64_t r = 0; r < side; ++r) {
      const Vector v = h.columns(y + r - side / 2, x + c - team.start() - side / 2, A(0));
      for (int t = 0; t < 5; ++t) sums[t] += weights[r - t + 4] * v;
    }
    for (int t = 0; t < 5; ++t) team.store(sums[t], columns + t * pitch + c);
  }
  team.sync();
  for (int64_t c = team.start(); c < 5; c += team.step()) {
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
FASTPOSE_SHARED auto soft_window(const DecodeHeatmaps& job, const Plane& h, int64_t y, int64_t x, typename Plane::Value top,
                                 const Team& team) {
  using A = typename Plane::Value;
  using Vector = typename Team::Vector;
  const int64_t r = job.radius, first_y = y > r ? y - r : 0, last_y = y + r < job.height ? y + r : job.height - 1;
  const int64_t first_x = x > r ? x - r : 0, last_x = x + r < job.width ? x + r : job.width - 1;
  const A temperature = A(job.temperature);
  Vector total{}, sum_x{}, sum_y{};
  for (int64_t row = first_y; row <= last_y; ++row) {
    for (int64_t c = first_x; c + team.start() <= last_x; c += team.step()) {
      const Vector dx = team.offset() + A(c - x);
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
FASTPOSE_SHARED auto refine(const DecodeHeatmaps& job, const Plane& h, int64_t cell, const typename Plane::Value* weights,
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

template <typename A> FASTPOSE_SHARED void write(const DecodeHeatmaps& job, int64_t b, int64_t k, int64_t cell, Decoded<A> d) {
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

}  // namespace fastpose
