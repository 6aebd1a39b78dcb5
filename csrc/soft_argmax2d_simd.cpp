#include "soft_argmax2d.h"

#include "simd.h"

namespace fastpose::FASTPOSE_SIMD {

// 2^(a scale) for a <= 0, scale > 0, within 1 ulp or so: exactly 1 at 0, nothing below 2^-126.5, NaN for NaN. The product is not
// rounded where there is a fused multiply-add.
static inline Vec<float> exp2(Vec<float> a, float scale) {
  a = a < -127.0f / scale ? splat(-127.0f / scale) : a;
  const Vec<float> shifted = a * scale + 12582912.0f;  // 1.5 * 2^23: the lowest bits now hold the nearest integer
  const Vec<float> r = a * scale - (shifted - 12582912.0f);
  Vec<float> p = splat(1.326465281e-3f);  // least relative error on [-0.5, 0.5]
  p = p * r + 9.671511129e-3f;
  p = p * r + 5.550733954e-2f;
  p = p * r + 2.402224243e-1f;
  p = p * r + 6.931470037e-1f;
  p = p * r + 1.0f;
  return p * bit_cast<Vec<float>>((bit_cast<Vec<int32_t>>(shifted) << 23) + (127 << 23));
}

static inline Vec<double> exp2(Vec<double> a, double scale) {
  for (int i = 0; i < kLanes; ++i) a[i] = std::exp2(double(a[i] * scale));
  return a;
}

// ---- what the lanes of a vector are -------------------------------------------------------------------------------------
// Both kinds walk a row by for_vectors, which calls f(values, columns as numbers, column of lane 0, how many leading lanes were
// visited before), and carry numbers of per-plane structs into the lanes (spread) and lanes into such numbers (collect).

// Neighbouring columns of one plane. kWhole: they are dense in memory and enough for whole vectors.
template <typename T, bool kWhole> struct ColumnLanes {
  using A = Accumulator<T>;
  int64_t width, stride;
  static constexpr int planes() { return 1; }

  template <typename F> void for_vectors(const T* row, F&& f) const {
    Vec<A> column = iota<A>();
    int64_t x = 0;
    if constexpr (kWhole) {
      for (; x + kLanes <= width; x += kLanes, column += A(kLanes)) f(load(row + x), column, x, 0);
      const int64_t last = width - kLanes;  // the last vector ends where the row ends; it may overlap its predecessor
      if (x < width) f(load(row + last), iota<A>() + A(last), last, int(x - last));
    } else {
      for (; x < width; x += kLanes, column += A(kLanes)) f(load_columns(row, x, width, stride, -A(INFINITY)), column, x, 0);
    }
  }

  void store(Vec<A> v, T* row, int64_t x, const Maps& maps) const { store_columns(v, row, x, width, maps.column); }

  // From each lane's largest value and the first row that holds it.
  void locate(const T* data, int64_t row_stride, Vec<A> largest, Vec<A> row, SoftmaxState<A>* s) const {
    const Vec<A> nowhere = splat(-A(INFINITY));
    s->max = horizontal_max<A>(largest);
    s->y = int32_t(-horizontal_max<A>(largest == s->max ? -row : nowhere));
    Vec<A> first = nowhere;
    for_vectors(data + s->y * row_stride, [&](Vec<A> v, Vec<A> column, int64_t, int) { first = max(v == s->max ? -column : nowhere, first); });
    const A x = -horizontal_max<A>(first);
    s->x = x < A(width) ? int32_t(x) : 0;  // nothing but NaN
  }

  template <typename S, typename N> static Vec<A> spread(const S* s, N S::*number) { return splat(A(s->*number)); }
  template <typename S> static void collect(Vec<A> v, S* s, A S::*number) { s->*number = horizontal_sum<A>(v); }
};

// Neighbouring joints at one pixel.
template <typename T> struct JointLanes {
  using A = Accumulator<T>;
  int64_t width, stride;
  int count;         // of joints; the lanes beyond are read and dropped
  int64_t readable;  // columns before this one have kLanes elements before the row's last

  JointLanes(int64_t width, int64_t stride, int64_t joints_left)
      : width(width), stride(stride), count(joints_left < kLanes ? int(joints_left) : kLanes) {
    const int64_t slack = (width - 1) * stride + joints_left - kLanes;
    readable = count == kLanes ? width : slack < 0 || stride < 1 ? 0 : slack / stride + 1;
  }
  int planes() const { return count; }

  template <typename F> void for_vectors(const T* row, F&& f) const {
    Vec<A> column{};
    for (int64_t x = 0; x < width; ++x, row += stride, column += A(1))
      f(x < readable ? load(row) : load_columns(row, 0, count, 1, -A(INFINITY)), column, x, 0);
  }

  void store(Vec<A> v, T* row, int64_t x, const Maps& maps) const {
    store_columns(v, row + x * maps.column, 0, count, maps.joint);
  }

  void locate(const T* data, int64_t row_stride, Vec<A> largest, Vec<A> row, SoftmaxState<A>* s) const {
    for (int i = 0; i < count; ++i) {
      s[i].max = largest[i];
      s[i].y = int32_t(row[i]);
      const T* p = data + s[i].y * row_stride + i;
      s[i].x = 0;
      while (s[i].x < width - 1 && widen(p[s[i].x * stride]) != s[i].max) ++s[i].x;
    }
  }

  template <typename S, typename N> Vec<A> spread(const S* s, N S::*number) const {
    Vec<A> v{};
    for (int i = 0; i < count; ++i) v[i] = A(s[i].*number);
    return v;
  }
  template <typename S> void collect(Vec<A> v, S* s, A S::*number) const {
    for (int i = 0; i < count; ++i) s[i].*number = v[i];
  }
};

// Calls f(lanes, image, first joint) until every plane of the units begin .. end-1 has been in a lane.
template <typename T, typename F> static void for_lanes(const SoftArgmax2d& job, int64_t begin, int64_t end, F&& f) {
  const int64_t width = job.width, stride = job.heatmaps.column, units = units_per_image(job);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / units;
    if (!joints_innermost(job)) {
      if (stride == 1 && width >= kLanes) f(ColumnLanes<T, true>{width, stride}, b, unit % units);
      else f(ColumnLanes<T, false>{width, stride}, b, unit % units);
      continue;
    }
    int64_t k = unit % units * kJointsPerUnit;
    const int64_t stop = k + kJointsPerUnit < job.joints ? k + kJointsPerUnit : job.joints;
    while (k < stop) {
      if (4 * (stop - k) >= kLanes) {
        const JointLanes<T> joints(width, stride, job.joints - k);
        f(joints, b, k);
        k += joints.planes();
      } else {
        f(ColumnLanes<T, false>{width, stride}, b, k++);  // gathering columns costs less than a mostly empty vector of joints
      }
    }
  }
}

// ---- forward ------------------------------------------------------------------------------------------------------------

// Working memory of a block of rows: weights summed along the columns, and along the rows (also times the column's offset).
template <typename A> struct Marginals {
  Vec<A> *columns, *rows, *row_offsets;
};

// The states of rows y .. end-1, which stay in cache between two looks: for the maxima, then for the weights. Means and second moments
// come from the marginals.
template <bool kSecond, typename T, typename Lanes, typename A = Accumulator<T>>
static void sum_rows(const Lanes& lanes, const T* data, int64_t row_stride, int64_t y, int64_t end, A sharpness,
                     const Marginals<A>& marginals, SoftmaxState<A>* states) {
  using S = SoftmaxState<A>;
  Vec<A> largest = splat(-A(INFINITY));
  Vec<A> largest_row = splat(A(y));
  for (int64_t i = y; i < end; ++i) {
    Vec<A> top = splat(-A(INFINITY));
    lanes.for_vectors(data + i * row_stride, [&](Vec<A> v, Vec<A>, int64_t, int) { top = max(v, top); });  // passes NaN over
    largest_row = top > largest ? splat(A(i)) : largest_row;
    largest = max(top, largest);
  }
  lanes.locate(data, row_stride, largest, largest_row, states);

  Vec<A> top = lanes.spread(states, &S::max);
  top = top == -A(INFINITY) ? Vec<A>{} : top;  // then -infinity weighs 0, too; NaN and +infinity make the sums NaN
  // Offsets are from the maximum, where the mass is. Until the marginals are complete nothing else waits for its place.
  const Vec<A> peak_x = lanes.spread(states, &S::x), peak_y = lanes.spread(states, &S::y);
  Vec<A>* columns = marginals.columns;
  lanes.for_vectors(data, [&](Vec<A>, Vec<A>, int64_t, int) { *columns++ = Vec<A>{}; });
  for (int64_t i = y; i < end; ++i) {
    Vec<A> row{}, row_offset{};
    columns = marginals.columns;
    const T* ahead = data + i * row_stride + (end - y) * row_stride;
    lanes.for_vectors(data + i * row_stride, [&](Vec<A> v, Vec<A> column, int64_t xx, int skip) {
      __builtin_prefetch(ahead + xx * lanes.stride);
      Vec<A> e = exp2(v - top, sharpness);
      if (skip) e = iota<A>() < A(skip) ? Vec<A>{} : e;
      row += e;
      *columns++ += e;
      if (kSecond) row_offset += e * (column - peak_x);
    });
    marginals.rows[i - y] = row;
    if (kSecond) marginals.row_offsets[i - y] = row_offset;
  }
  Vec<A> w{}, wx{}, wy{};
  for (int64_t i = y; i < end; ++i) {
    w += marginals.rows[i - y];
    wy += marginals.rows[i - y] * (A(i) - peak_y);
  }
  columns = marginals.columns;
  lanes.for_vectors(data, [&](Vec<A>, Vec<A> column, int64_t, int) { wx += *columns++ * (column - peak_x); });

  lanes.collect(w, states, &S::weight);
  lanes.collect(wx, states, &S::mean_x);
  lanes.collect(wy, states, &S::mean_y);
  for (int i = 0; i < lanes.planes(); ++i) {
    S& s = states[i];
    const A p = s.weight == 0 ? A(0) : 1 / s.weight;
    s.mean_x = A(s.x) + p * s.mean_x;
    s.mean_y = A(s.y) + p * s.mean_y;
    s.xx = s.yy = s.xy = A(0);
  }
  if (!kSecond) return;

  const Vec<A> mean_x = lanes.spread(states, &S::mean_x), mean_y = lanes.spread(states, &S::mean_y);
  Vec<A> xx{}, yy{}, xy{};
  columns = marginals.columns;
  lanes.for_vectors(data, [&](Vec<A>, Vec<A> column, int64_t, int) {
    const Vec<A> dx = column - mean_x;
    xx += *columns++ * dx * dx;
  });
  for (int64_t i = 0; i < end - y; ++i) {
    const Vec<A> dy = A(y + i) - mean_y, row = marginals.rows[i];
    yy += row * dy * dy;
    xy += (marginals.row_offsets[i] - row * (mean_x - peak_x)) * dy;
  }
  lanes.collect(xx, states, &S::xx);
  lanes.collect(yy, states, &S::yy);
  lanes.collect(xy, states, &S::xy);
}

// Rows that are looked at twice stay in a core's own cache between.
constexpr int64_t kBlockBytes = 128 << 10;

template <typename T, bool kSecond> static void forward(const SoftArgmax2d& job, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const A sharpness = sharpness_of<A>(job);
  const int64_t row = job.heatmaps.row;
  int64_t block = kBlockBytes / ((row > job.width ? row : job.width) * int64_t(sizeof(T))) + 1;
  if (block > job.height) block = job.height;
  Scratch<Vec<A>> memory(job.width + 2 * block);
  const Marginals<A> marginals{memory.data, memory.data + job.width, memory.data + job.width + block};
  for_lanes<T>(job, begin, end, [&](const auto& lanes, int64_t b, int64_t k) {
    const T* rows = job.heatmaps.plane<const T>(b, k);
    SoftmaxState<A> total[kLanes], next[kLanes];
    for (int64_t y = 0; y < job.height; y += block) {
      const int64_t end_row = y + block < job.height ? y + block : job.height;
      sum_rows<kSecond>(lanes, rows, row, y, end_row, sharpness, marginals, y ? next : total);
      for (int i = 0; y && i < lanes.planes(); ++i) total[i] = merged(total[i], next[i], sharpness);
    }
    for (int i = 0; i < lanes.planes(); ++i) finish(job, b * job.joints + k + i, total[i]);
  });
}

void soft_argmax2d_units(const SoftArgmax2d& job, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) {
    if (job.covariance) forward<T, true>(job, begin, end);
    else forward<T, false>(job, begin, end);
  });
}

// ---- backward -----------------------------------------------------------------------------------------------------------

// With the slope a sum of a term of the row and one of the column; only a gradient of the covariance adds a term in x y.
template <typename T, bool kCross> static void backward(const SoftArgmax2dBackward& job, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  using S = Slope<A>;
  const SoftArgmax2d& f = job.forward;
  Scratch<Vec<A>> column_terms(f.width);
  for_lanes<T>(f, begin, end, [&](auto lanes, int64_t b, int64_t k) {
    // Copies, which the compiler knows that writing a gradient leaves alone.
    const Maps gradient = job.gradient;
    const A sharpness = sharpness_of<A>(f);
    const T* data = f.heatmaps.plane<const T>(b, k);
    T* out = gradient.plane<T>(b, k);
    S slopes[kLanes];
    for (int i = 0; i < lanes.planes(); ++i) {
      slopes[i] = slope_of<A>(job, b * f.joints + k + i);
      slopes[i].max = widen(slopes[i].at_peak(f.heatmaps.plane<const T>(b, k + i), f.heatmaps));
    }
    auto spread = [&](A S::*number) { return lanes.spread(slopes, number); };
    const Vec<A> max = spread(&S::max), mean_x = spread(&S::mean_x), mean_y = spread(&S::mean_y), constant = spread(&S::constant);
    const Vec<A> along_x = spread(&S::x), along_y = spread(&S::y), xx = spread(&S::xx), yy = spread(&S::yy), xy = spread(&S::xy);
    Vec<A>* const columns = column_terms.data;
    Vec<A>* column_term = columns;
    lanes.for_vectors(data, [&](Vec<A>, Vec<A> column, int64_t, int) {
      const Vec<A> dx = column - mean_x;
      *column_term++ = dx * (along_x + xx * dx);
    });
    for (int64_t y = 0; y < f.height; ++y) {
      const Vec<A> dy = A(y) - mean_y, row_term = constant + dy * (along_y + yy * dy), row_xy = xy * dy;
      column_term = columns;
      lanes.for_vectors(data + y * f.heatmaps.row, [&](Vec<A> v, Vec<A> column, int64_t x, int) {
        Vec<A> slope = row_term + *column_term++;
        if (kCross) slope += row_xy * (column - mean_x);
        lanes.store(exp2(v - max, sharpness) * slope, out + y * gradient.row, x, gradient);
      });
    }
    for (int i = 0; i < lanes.planes(); ++i)
      narrow(slopes[i].peak_gradient(), &slopes[i].at_peak(gradient.plane<T>(b, k + i), gradient));
  });
}

void soft_argmax2d_backward_units(const SoftArgmax2dBackward& job, int64_t begin, int64_t end) {
  for_dtype(job.forward.dtype, [&]<typename T>(Type<T>) {
    if (job.to_covariance) backward<T, true>(job, begin, end);
    else backward<T, false>(job, begin, end);
  });
}

}  // namespace fastpose::FASTPOSE_SIMD
