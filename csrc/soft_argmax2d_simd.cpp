#include "soft_argmax2d.h"

#include "simd.h"

namespace fastpose::FASTPOSE_SIMD {

// 2^(a scale) for a <= 0, scale > 0, within 1 ulp or so: exactly 1 at 0, nothing below 2^-126.5, NaN for NaN. The product is not
// rounded where there is a fused multiply-add.
static inline Vec<float> exp2(Vec<float> a, float scale) {
  a = a < -127.0f / scale ? splat(-127.0f / scale) : a;
  constexpr float kShift = 12582912.0f + 127;  // 1.5 * 2^23: the lowest bits now hold the nearest integer, plus an exponent's bias
  const Vec<float> shifted = a * scale + kShift;
  const Vec<float> r = a * scale - (shifted - kShift);
  Vec<float> p = splat(1.326465281e-3f);  // least relative error on [-0.5, 0.5]
  p = p * r + 9.671511129e-3f;
  p = p * r + 5.550733954e-2f;
  p = p * r + 2.402224243e-1f;
  p = p * r + 6.931470037e-1f;
  p = p * r + 1.0f;
  return p * bit_cast<Vec<float>>(bit_cast<Vec<int32_t>>(shifted) << 23);
}

static inline Vec<double> exp2(Vec<double> a, double scale) {
  for (int i = 0; i < kLanes; ++i) a[i] = std::exp2(double(a[i] * scale));
  return a;
}

// ---- what the lanes of a vector are -------------------------------------------------------------------------------------

// A vector of a row: neighbouring columns of one plane, or neighbouring joints at one column. kWhole: all lanes count and are dense in
// memory; else `count` lanes that lie `stride` apart.
template <bool kWhole> struct Place {
  int64_t index;   // among the vectors of the row
  int64_t column;  // of lane 0
  int64_t stride = 1;
  int count = kLanes;
  int skip = 0;    // so many lanes belong to the vector before, too

  template <typename T> auto load(const T* row, const Maps& m) const {
    if constexpr (kWhole) return FASTPOSE_SIMD::load(row + column * m.column);
    else return load_columns(row + column * m.column, 0, count, stride, -Accumulator<T>(INFINITY));
  }
  template <typename V, typename T> void store(V v, T* row, const Maps& m, int64_t gradient_stride) const {
    store_columns(v, row + column * m.column, 0, count, gradient_stride);
  }
};

// One plane, neighbouring columns in the lanes.
template <typename T> struct ColumnLanes {
  using A = Accumulator<T>;
  int64_t width;
  bool whole;  // rows are dense and fill vectors

  ColumnLanes(const SoftArgmax2d& job) : width(job.width), whole(job.heatmaps.column == 1 && job.width >= kLanes) {}
  static constexpr int planes() { return 1; }
  static int64_t stride(const Maps& m) { return m.column; }
  static Vec<A> position(int64_t column) { return iota<A>() + A(column); }

  // Calls f(place) for the vectors of a row.
  template <typename F> void for_row(const Maps& m, F&& f) const {
    int64_t x = 0, i = 0;
    if (whole) {
      for (; x + kLanes <= width; x += kLanes) f(Place<true>{i++, x});
      if (x < width) f(Place<true>{i, width - kLanes, 1, kLanes, int(x + kLanes - width)});
    } else {
      for (; x < width; x += kLanes) f(Place<false>{i++, x, m.column, width - x < kLanes ? int(width - x) : kLanes});
    }
  }

  // From each lane's largest value and the first row that holds it.
  void locate(const T* plane, const Maps& m, Vec<A> largest, Vec<A> row, SoftmaxState<A>* s) const {
    const Vec<A> nowhere = splat(-A(INFINITY));
    s->max = horizontal_max<A>(largest);
    s->y = int32_t(-horizontal_max<A>(largest == s->max ? -row : nowhere));
    Vec<A> first = nowhere;
    for_row(m, [&](auto at) {
      first = max(at.load(plane + s->y * m.row, m) == s->max ? -position(at.column) : nowhere, first);
    });
    const A x = -horizontal_max<A>(first);
    s->x = x < A(width) ? int32_t(x) : 0;  // 0: a row of nothing but NaN
  }

  template <typename S, typename N> static Vec<A> spread(const S* s, N S::*number) { return splat(A(s->*number)); }
  template <typename S> static void collect(Vec<A> v, S* s, A S::*number) { s->*number = horizontal_sum<A>(v); }
};

// One plane a lane: neighbouring joints.
template <typename T> struct JointLanes {
  using A = Accumulator<T>;
  int64_t width;
  int count;      // of joints; lanes beyond are read and dropped
  int64_t whole;  // columns before this one can be read as whole vectors, which end before the row's last joint

  JointLanes(const SoftArgmax2d& job, int64_t joints_left)
      : width(job.width), count(joints_left < kLanes ? int(joints_left) : kLanes) {
    const int64_t slack = (width - 1) * job.heatmaps.column + joints_left - kLanes;
    whole = count == kLanes ? width : slack < 0 || job.heatmaps.column < 1 ? 0 : slack / job.heatmaps.column + 1;
  }
  int planes() const { return count; }
  static int64_t stride(const Maps& m) { return m.joint; }
  static Vec<A> position(int64_t column) { return splat(A(column)); }

  template <typename F> void for_row(const Maps&, F&& f) const {
    int64_t x = 0;
    for (; x < whole; ++x) f(Place<true>{x, x, 1, count});
    for (; x < width; ++x) f(Place<false>{x, x, 1, count});
  }

  void locate(const T* plane, const Maps& m, Vec<A> largest, Vec<A> row, SoftmaxState<A>* s) const {
    for (int i = 0; i < count; ++i) {
      s[i].max = largest[i];
      s[i].y = int32_t(row[i]);
      s[i].x = 0;
      const T* p = plane + i + s[i].y * m.row;
      while (s[i].x < width - 1 && widen(p[s[i].x * m.column]) != s[i].max) ++s[i].x;
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
  const ColumnLanes<T> columns(job);
  const int64_t units = units_per_image(job);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / units;
    if (!joints_innermost(job)) {
      f(columns, b, unit % units);
      continue;
    }
    int64_t k = unit % units * kJointsPerUnit;
    const int64_t stop = k + kJointsPerUnit < job.joints ? k + kJointsPerUnit : job.joints;
    while (k < stop) {
      if (4 * (stop - k) >= kLanes) {
        const JointLanes<T> joints(job, job.joints - k);
        f(joints, b, k);
        k += joints.planes();
      } else {
        f(columns, b, k++);  // gathering columns costs less than a mostly empty vector of joints
      }
    }
  }
}

// ---- forward ------------------------------------------------------------------------------------------------------------

// Long sums are kept as four: more exact, and no addition waits for the one before.
template <typename V> static V total(const V (&sums)[4]) { return (sums[0] + sums[1]) + (sums[2] + sums[3]); }

// The sum of f(i) for i from 0 to n-1.
template <typename A, typename F> static Vec<A> sum_of(int64_t n, F&& f) {
  Vec<A> sums[4]{};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int64_t j = 0; j < 4; ++j) sums[j] += f(i + j);
  for (; i < n; ++i) sums[0] += f(i);
  return total(sums);
}

// Working memory of a block of rows. Weights summed over each row, the same times the offset along it, and over the vectors of all rows
// that lie below each other; and where these are.
template <typename A> struct Marginals {
  Scratch<Vec<A>> rows, offsets, columns, position;
  Marginals(int64_t height, int64_t width) : rows(height), offsets(height), columns(width), position(width) {}
};

// The states of `height` rows from y on, which stay in cache between two looks: for the maxima, then for the weights. Means and second
// moments come from the marginals.
template <bool kSecond, typename T, typename Lanes, typename A = Accumulator<T>>
static void sum_rows(Lanes lanes, const T* plane, Maps m, int64_t y, int64_t height, A sharpness, const Marginals<A>& marginals,
                     SoftmaxState<A>* states) {
  using S = SoftmaxState<A>;
  Vec<A>*const rows = marginals.rows.data, *const offsets = marginals.offsets.data, *const columns = marginals.columns.data,
         *const position = marginals.position.data;

  const T* const first = plane + y * m.row;
  const Vec<A> lowest = splat(-A(INFINITY));
  Vec<A> largest = lowest, largest_row = splat(A(y));
  auto compare = [&](int64_t i, Vec<A> top) {
    largest_row = top > largest ? splat(A(y + i)) : largest_row;
    largest = max(top, largest);
  };
  int64_t row = 0;
  for (; row + 4 <= height; row += 4) {  // four, so that no maximum waits for the one before
    const T* p = first + row * m.row;
    Vec<A> a = lowest, b = lowest, c = lowest, d = lowest;
    lanes.for_row(m, [&](auto at) {
      a = max(at.load(p, m), a);  // passes NaN over
      b = max(at.load(p + m.row, m), b);
      c = max(at.load(p + 2 * m.row, m), c);
      d = max(at.load(p + 3 * m.row, m), d);
    });
    compare(row, a), compare(row + 1, b), compare(row + 2, c), compare(row + 3, d);
  }
  for (; row < height; ++row) {
    Vec<A> top = lowest;
    lanes.for_row(m, [&](auto at) { top = max(at.load(first + row * m.row, m), top); });
    compare(row, top);
  }
  lanes.locate(plane, m, largest, largest_row, states);

  Vec<A> top = lanes.spread(states, &S::max);
  top = top == -A(INFINITY) ? Vec<A>{} : top;  // then -infinity weighs 0, too; NaN and +infinity make the sums NaN
  // Positions are from the maximum, where the mass is.
  const Vec<A> peak_x = lanes.spread(states, &S::x), peak_y = lanes.spread(states, &S::y) - A(y);
  int64_t vectors = 0;
  lanes.for_row(m, [&](auto at) {
    columns[at.index] = Vec<A>{};
    position[at.index] = Lanes::position(at.column) - peak_x;
    vectors = at.index + 1;
  });
  const int64_t next = height * m.row;  // the next block or plane is on its way while this one is computed
  for (int64_t i = 0; i < height; ++i) {
    Vec<A> sum{}, offset{};
    const T* p = first + i * m.row;
    lanes.for_row(m, [&](auto at) {
      __builtin_prefetch(p + at.column * m.column + next);
      Vec<A> e = exp2(at.load(p, m) - top, sharpness);
      if (at.skip) e = iota<A>() < A(at.skip) ? Vec<A>{} : e;
      sum += e;
      columns[at.index] += e;
      if (kSecond) offset += e * position[at.index];
    });
    rows[i] = sum;
    if (kSecond) offsets[i] = offset;
  }
  lanes.collect(sum_of<A>(height, [&](int64_t i) { return rows[i]; }), states, &S::weight);
  lanes.collect(sum_of<A>(height, [&](int64_t i) { return rows[i] * (A(i) - peak_y); }), states, &S::offset_y);
  lanes.collect(sum_of<A>(vectors, [&](int64_t i) { return columns[i] * position[i]; }), states, &S::offset_x);
  for (int i = 0; i < lanes.planes(); ++i) {
    S& s = states[i];
    const A p = s.weight == 0 ? A(0) : 1 / s.weight;
    s.offset_x *= p;
    s.offset_y *= p;
    s.xx = s.yy = s.xy = A(0);
  }
  if (!kSecond) return;

  const Vec<A> mean_x = lanes.spread(states, &S::offset_x), mean_y = lanes.spread(states, &S::offset_y) + peak_y;
  lanes.collect(sum_of<A>(vectors, [&](int64_t i) { return columns[i] * (position[i] - mean_x) * (position[i] - mean_x); }), states, &S::xx);
  lanes.collect(sum_of<A>(height, [&](int64_t i) { return rows[i] * (A(i) - mean_y) * (A(i) - mean_y); }), states, &S::yy);
  lanes.collect(sum_of<A>(height, [&](int64_t i) { return (offsets[i] - rows[i] * mean_x) * (A(i) - mean_y); }), states, &S::xy);
}

// Rows that are looked at twice stay in a core's own cache between.
constexpr int64_t kBlockBytes = 128 << 10;

template <typename T, bool kSecond> static void forward(const SoftArgmax2d& job, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const A sharpness = sharpness_of<A>(job);
  const int64_t row = job.heatmaps.row > job.width ? job.heatmaps.row : job.width;
  int64_t block = kBlockBytes / (row * int64_t(sizeof(T))) + 1;
  if (block > job.height) block = job.height;
  const Marginals<A> marginals(block, job.width);
  for_lanes<T>(job, begin, end, [&](const auto& lanes, int64_t b, int64_t k) {
    const T* plane = job.heatmaps.plane<const T>(b, k);
    SoftmaxState<A> total[kLanes], next[kLanes];
    for (int64_t y = 0; y < job.height; y += block) {
      const int64_t height = y + block < job.height ? block : job.height - y;
      sum_rows<kSecond>(lanes, plane, job.heatmaps, y, height, sharpness, marginals, y ? next : total);
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

// The slope is a term of the row plus one of the place along it; only a gradient of the covariance adds a product of both.
template <typename T, bool kCross> static void backward(const SoftArgmax2dBackward& job, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  using S = Slope<A>;
  const SoftArgmax2d& f = job.forward;
  const Scratch<Vec<A>> terms(f.width), distances(f.width);
  for_lanes<T>(f, begin, end, [&](auto lanes, int64_t b, int64_t k) {
    // Copies, which writing a gradient does not change as far as the compiler knows.
    const Maps heatmaps = f.heatmaps, gradient = job.gradient;
    const A sharpness = sharpness_of<A>(f);
    Vec<A>*const term = terms.data, *const distance = distances.data;
    S slopes[kLanes];
    for (int i = 0; i < lanes.planes(); ++i) {
      slopes[i] = slope_of<A>(job, b * f.joints + k + i);
      slopes[i].max = widen(slopes[i].at_peak(heatmaps.plane<const T>(b, k + i), heatmaps));
    }
    auto spread = [&](A S::*number) { return lanes.spread(slopes, number); };
    const Vec<A> max = spread(&S::max), constant = spread(&S::constant), mean_x = spread(&S::mean_x), mean_y = spread(&S::mean_y);
    const Vec<A> x = spread(&S::x), xx = spread(&S::xx), y = spread(&S::y), yy = spread(&S::yy), xy = spread(&S::xy);
    lanes.for_row(heatmaps, [&](auto at) {
      const Vec<A> d = decltype(lanes)::position(at.column) - mean_x;
      term[at.index] = d * (x + xx * d);
      if (kCross) distance[at.index] = d;
    });
    const int64_t stride = lanes.stride(gradient);
    for (int64_t i = 0; i < f.height; ++i) {
      const T* p = heatmaps.plane<const T>(b, k) + i * heatmaps.row;
      T* out = gradient.plane<T>(b, k) + i * gradient.row;
      const Vec<A> d = A(i) - mean_y, row = constant + d * (y + yy * d), product = xy * d;
      lanes.for_row(heatmaps, [&](auto at) {
        __builtin_prefetch(p + at.column * heatmaps.column + ahead<T>());
        __builtin_prefetch(out + at.column * gradient.column + ahead<T>(), 1);
        Vec<A> slope = row + term[at.index];
        if (kCross) slope += product * distance[at.index];
        at.store(exp2(at.load(p, heatmaps) - max, sharpness) * slope, out, gradient, stride);
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
