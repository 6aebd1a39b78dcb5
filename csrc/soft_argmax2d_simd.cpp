#include "soft_argmax2d.h"

#include "simd.h"

namespace fastpose::FASTPOSE_SIMD {

// 2^a for a <= 0, to 1 ulp: 2^0 is exactly 1, below 2^-126.5 comes 0, NaN stays. For weights relative to a maximum: the rounding of
// a itself, growing with |a|, is no worse than that of the difference it was made from.
static inline Vec<float> exp2(Vec<float> a) {
  a = a < -127.0f ? splat(-127.0f) : a;
  const Vec<float> shifted = a + 12582912.0f;  // 1.5 * 2^23: the lowest bits now hold the nearest integer
  const Vec<float> r = a - (shifted - 12582912.0f);
  Vec<float> p = splat(1.326465281e-3f);  // least relative error on [-0.5, 0.5]
  p = p * r + 9.671511129e-3f;
  p = p * r + 5.550733954e-2f;
  p = p * r + 2.402224243e-1f;
  p = p * r + 6.931470037e-1f;
  p = p * r + 1.0f;
  return p * bit_cast<Vec<float>>((bit_cast<Vec<int32_t>>(shifted) << 23) + (127 << 23));
}

static inline Vec<double> exp2(Vec<double> a) {
  for (int i = 0; i < kLanes; ++i) a[i] = std::exp2(double(a[i]));
  return a;
}

// The first column where a row holds `value`; 0 if none does.
template <typename T, typename A> static int64_t find(const T* row, int64_t width, int64_t stride, A value) {
  for (int64_t x = 0; x < width; ++x)
    if (widen(row[x * stride]) == value) return x;
  return 0;
}

// ---- what the lanes of a vector are -------------------------------------------------------------------------------------
// Both kinds walk a row by for_vectors, which calls f(values, columns as numbers, column of lane 0, how many leading lanes were
// visited before), and carry numbers of per-plane structs into the lanes (spread) and lanes into such numbers (collect).

// Neighbouring columns of one plane.
template <typename T> struct ColumnLanes {
  using A = Accumulator<T>;
  int64_t width, stride;
  static constexpr int planes() { return 1; }

  template <typename F> void for_vectors(const T* row, F&& f) const {
    Vec<A> column = iota<A>();
    int64_t x = 0;
    if (stride == 1) {
      for (; x + kLanes <= width; x += kLanes, column += A(kLanes)) f(load(row + x), column, x, 0);
      if (x < width && x > 0) {  // the last vector ends where the row ends, and overlaps its predecessor
        const int64_t last = width - kLanes;
        return f(load(row + last), iota<A>() + A(last), last, int(x - last));
      }
    }
    for (; x < width; x += kLanes, column += A(kLanes))
      f(load_columns(row, x, width, stride, -A(INFINITY)), column, x, 0);
  }

  void store(Vec<A> v, T* row, int64_t x, int64_t column_stride) const { store_columns(v, row, x, width, column_stride); }

  // From each lane's largest value and the first row that holds it.
  void locate(const T* rows, int64_t row_stride, Vec<A> largest, Mask<A> row, SoftmaxState<A>* s) const {
    s->max = horizontal_max<A>(largest);
    s->y = INT32_MAX;
    for (int i = 0; i < kLanes; ++i)
      if (largest[i] == s->max && row[i] < s->y) s->y = int32_t(row[i]);
    s->x = int32_t(find(rows + s->y * row_stride, width, stride, s->max));
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

  void store(Vec<A> v, T* row, int64_t x, int64_t column_stride) const {
    store_columns(v, row + x * column_stride, 0, count, 1);
  }

  void locate(const T* rows, int64_t row_stride, Vec<A> largest, Mask<A> row, SoftmaxState<A>* s) const {
    for (int i = 0; i < count; ++i) {
      s[i].max = largest[i];
      s[i].y = int32_t(row[i]);
      s[i].x = int32_t(find(rows + s[i].y * row_stride + i, width, stride, s[i].max));
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

// Calls f(lanes, first joint) for the lanes that cover every plane of unit number `unit`.
template <typename T, typename F> static void for_lanes(const SoftArgmax2d& job, int64_t b, int64_t unit, F&& f) {
  const ColumnLanes<T> columns{job.width, job.heatmaps.column};
  if (!joints_innermost(job)) return f(columns, unit);
  int64_t k = unit * kJointsPerUnit;
  const int64_t end = k + kJointsPerUnit < job.joints ? k + kJointsPerUnit : job.joints;
  while (k < end) {
    if (4 * (end - k) >= kLanes) {
      const JointLanes<T> joints(job.width, job.heatmaps.column, job.joints - k);
      f(joints, k);
      k += joints.planes();
    } else {
      f(columns, k++);  // a mostly empty vector of joints would cost more than collecting columns one by one
    }
  }
}

// ---- forward ------------------------------------------------------------------------------------------------------------

// The states of rows y .. end-1: once for the maximum, once for the sums, from cache.
template <bool kSecond, typename T, typename Lanes, typename A = Accumulator<T>>
static void sum_rows(const Lanes& lanes, const T* rows, int64_t row_stride, int64_t y, int64_t end, A sharp, SoftmaxState<A>* states) {
  Vec<A> largest = splat(-A(INFINITY));
  Mask<A> largest_row = Mask<A>{} + y;
  for (int64_t i = y; i < end; ++i) {
    Vec<A> top = largest;
    lanes.for_vectors(rows + i * row_stride, [&](Vec<A> v, Vec<A>, int64_t, int) { top = max(v, top); });  // NaN is passed over
    largest_row = top > largest ? Mask<A>{} + i : largest_row;
    largest = top;
  }
  lanes.locate(rows, row_stride, largest, largest_row, states);

  using S = SoftmaxState<A>;
  Vec<A> top = lanes.spread(states, &S::max);
  top = top == -A(INFINITY) ? Vec<A>{} : top;  // -infinity weighs 0 then too; NaN and +infinity make every sum NaN
  const Vec<A> x0 = lanes.spread(states, &S::x), y0 = lanes.spread(states, &S::y);
  Vec<A> w{}, wx{}, wy{}, wxx{}, wyy{}, wxy{};
  for (int64_t i = y; i < end; ++i) {
    Vec<A> row_w{}, row_wx{};
    lanes.for_vectors(rows + i * row_stride, [&](Vec<A> v, Vec<A> column, int64_t, int skip) {
      if (skip) v = iota<A>() < A(skip) ? splat(-A(INFINITY)) : v;
      const Vec<A> e = exp2((v - top) * sharp), dx = column - x0;
      row_w += e;
      row_wx += e * dx;
      if (kSecond) wxx += e * dx * dx;
    });
    const Vec<A> dy = splat(A(i)) - y0;
    w += row_w;
    wx += row_wx;
    wy += dy * row_w;
    if (kSecond) {
      wyy += dy * dy * row_w;
      wxy += dy * row_wx;
    }
  }
  lanes.collect(w, states, &S::w);
  lanes.collect(wx, states, &S::wx);
  lanes.collect(wy, states, &S::wy);
  lanes.collect(wxx, states, &S::wxx);
  lanes.collect(wyy, states, &S::wyy);
  lanes.collect(wxy, states, &S::wxy);
}

// Rows that are looked at twice stay in a core's own cache between.
constexpr int64_t kBlockBytes = 128 << 10;

template <typename T, bool kSecond> static void forward(const SoftArgmax2d& job, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const A sharp = sharpness<A>(job);
  const int64_t row = job.heatmaps.row, units = units_per_image(job);
  const int64_t block = kBlockBytes / ((row > 0 ? row : 1) * int64_t(sizeof(T))) + 1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / units;
    for_lanes<T>(job, unit % units, [&](const auto& lanes, int64_t k) {
      const T* rows = job.heatmaps.plane<const T>(b, k);
      SoftmaxState<A> total[kLanes], next[kLanes];
      for (int64_t y = 0; y < job.height; y += block) {
        const int64_t stop = y + block < job.height ? y + block : job.height;
        sum_rows<kSecond>(lanes, rows, row, y, stop, sharp, y ? next : total);
        for (int i = 0; y && i < lanes.planes(); ++i) total[i] = merged(total[i], next[i], sharp);
      }
      for (int i = 0; i < lanes.planes(); ++i) finish(job, b * job.joints + k + i, total[i]);
    });
  }
}

// ---- backward -----------------------------------------------------------------------------------------------------------

template <typename T> static void backward(const SoftArgmax2dBackward& job, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  using S = Slope<A>;
  const SoftArgmax2d& f = job.forward;
  const A sharp = sharpness<A>(f);
  const int64_t units = units_per_image(f);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / units;
    for_lanes<T>(f, unit % units, [&](const auto& lanes, int64_t k) {
      S slopes[kLanes];
      Vec<A> top{};
      for (int i = 0; i < lanes.planes(); ++i) {
        slopes[i] = slope_of<A>(job, b * f.joints + k + i);
        const int64_t x = slopes[i].argmax % f.width, y = slopes[i].argmax / f.width;
        slopes[i].max = widen(f.heatmaps.plane<const T>(b, k + i)[y * f.heatmaps.row + x * f.heatmaps.column]);
      }
      (void)top;
    });
  }
}

}  // namespace fastpose::FASTPOSE_SIMD
