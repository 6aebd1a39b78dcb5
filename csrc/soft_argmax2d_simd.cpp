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

// A run of vectors: kDown, one below the other, each of neighbouring columns; else side by side, each of neighbouring joints.
// kWhole: all lanes count and are dense in memory; else `count` lanes that lie anywhere.
template <bool kDown, bool kWhole> struct Line {
  int64_t at;          // column of lane 0, or row
  int64_t begin, end;  // rows, or columns
  int count = kLanes;
  int skip = 0;        // so many lanes belong to the line before, too

  template <typename T> T* address(T* plane, const Maps& m, int64_t i) const {
    return plane + (kDown ? i * m.row + at * m.column : at * m.row + i * m.column);
  }
  template <typename T> auto load(const T* plane, const Maps& m, int64_t i) const {
    const T* p = address(plane, m, i);
    if constexpr (kWhole) return FASTPOSE_SIMD::load(p);
    else return load_columns(p, 0, count, kDown ? m.column : m.joint, -Accumulator<T>(INFINITY));
  }
  template <typename T> void store(Vec<Accumulator<T>> v, T* plane, const Maps& m, int64_t i) const {
    store_columns(v, address(plane, m, i), 0, count, kDown ? m.column : m.joint);
  }
  template <typename A> Vec<A> position() const { return kDown ? iota<A>() + A(at) : splat(A(at)); }
};

// One plane, neighbouring columns in the lanes.
template <typename T> struct ColumnLanes {
  using A = Accumulator<T>;
  static constexpr bool kDown = true;
  int64_t width;
  bool whole;  // rows are dense and fill vectors

  ColumnLanes(const SoftArgmax2d& job) : width(job.width), whole(job.heatmaps.column == 1 && job.width >= kLanes) {}
  static constexpr int planes() { return 1; }

  // Calls f(line, its number) for the lines that cover rows y .. end-1.
  template <typename F> void for_lines(int64_t y, int64_t end, F&& f) const {
    int64_t x = 0, line = 0;
    if (whole) {
      for (; x + kLanes <= width; x += kLanes) f(Line<true, true>{x, y, end}, line++);
      if (x < width) f(Line<true, true>{width - kLanes, y, end, kLanes, int(x + kLanes - width)}, line);
    } else {
      for (; x < width; x += kLanes) f(Line<true, false>{x, y, end, width - x < kLanes ? int(width - x) : kLanes}, line++);
    }
  }

  template <typename F> void for_row(const T* row, const Maps& m, F&& f) const {
    int64_t x = 0;
    if (whole) {
      for (; x + kLanes <= width; x += kLanes) f(load(row + x), x);
      if (x < width) f(load(row + width - kLanes), width - kLanes);
    } else {
      for (; x < width; x += kLanes) f(load_columns(row, x, width, m.column, -A(INFINITY)), x);
    }
  }

  // From each lane's largest value and the first row that holds it.
  void locate(const T* plane, const Maps& m, Vec<A> largest, Vec<A> row, SoftmaxState<A>* s) const {
    const Vec<A> nowhere = splat(-A(INFINITY));
    s->max = horizontal_max<A>(largest);
    s->y = int32_t(-horizontal_max<A>(largest == s->max ? -row : nowhere));
    Vec<A> first = nowhere;
    for_row(plane + s->y * m.row, m, [&](Vec<A> v, int64_t x) { first = max(v == s->max ? -iota<A>() - A(x) : nowhere, first); });
    const A x = -horizontal_max<A>(first);
    s->x = x < A(width) ? int32_t(x) : 0;  // 0: a row of nothing but NaN
  }

  template <typename S, typename N> static Vec<A> spread(const S* s, N S::*number) { return splat(A(s->*number)); }
  template <typename S> static void collect(Vec<A> v, S* s, A S::*number) { s->*number = horizontal_sum<A>(v); }
};

// One plane a lane: neighbouring joints.
template <typename T> struct JointLanes {
  using A = Accumulator<T>;
  static constexpr bool kDown = false;
  int64_t width;
  int count;      // of joints; lanes beyond are read and dropped
  int64_t whole;  // columns before this one can be read as whole vectors, which end before the row's last joint

  JointLanes(const SoftArgmax2d& job, int64_t joints_left)
      : width(job.width), count(joints_left < kLanes ? int(joints_left) : kLanes) {
    const int64_t slack = (width - 1) * job.heatmaps.column + joints_left - kLanes;
    whole = count == kLanes ? width : slack < 0 || job.heatmaps.column < 1 ? 0 : slack / job.heatmaps.column + 1;
  }
  int planes() const { return count; }

  template <typename F> void for_lines(int64_t y, int64_t end, F&& f) const {
    for (int64_t line = 0; y < end; ++y) {
      f(Line<false, true>{y, 0, whole, count}, line++);
      if (whole < width) f(Line<false, false>{y, whole, width, count}, line++);
    }
  }

  template <typename F> void for_row(const T* row, const Maps& m, F&& f) const {
    int64_t x = 0;
    for (; x < whole; ++x) f(load(row + x * m.column), x);
    for (; x < width; ++x) f(load_columns(row + x * m.column, 0, count, 1, -A(INFINITY)), x);
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

// The sum of f(i, i - origin) for i from begin to end-1.
template <typename A, typename F> static Vec<A> sum_over(int64_t begin, int64_t end, Vec<A> origin, F&& f) {
  Vec<A> sums[4]{}, d = A(begin) - origin;
  int64_t i = begin;
  for (; i + 4 <= end; i += 4, d += A(4))
    for (int j = 0; j < 4; ++j) sums[j] += f(i + j, d + A(j));
  for (; i < end; ++i, d += A(1)) sums[0] += f(i, d);
  return total(sums);
}

// Working memory of a block of rows, weights summed: along each line, the same times the offset along it, and across the lines.
template <typename A> struct Marginals {
  Scratch<Vec<A>> lines, offsets, across;
  explicit Marginals(int64_t n) : lines(n), offsets(n), across(n) {}
};

// The states of rows y .. end-1, which stay in cache between two looks: for the maxima, then for the weights. Means and second moments
// come from the marginals.
template <bool kSecond, typename T, typename Lanes, typename A = Accumulator<T>>
static void sum_rows(Lanes lanes, const T* plane, Maps m, int64_t y, int64_t end, A sharpness, const Marginals<A>& marginals,
                     SoftmaxState<A>* states) {
  using S = SoftmaxState<A>;
  constexpr bool down = Lanes::kDown;

  Vec<A> largest = splat(-A(INFINITY)), row = splat(A(y)), largest_row = row;
  for (int64_t i = y; i < end; ++i, row += A(1)) {
    Vec<A> top = splat(-A(INFINITY));
    lanes.for_row(plane + i * m.row, m, [&](Vec<A> v, int64_t) { top = max(v, top); });  // passes NaN over
    largest_row = top > largest ? row : largest_row;
    largest = max(top, largest);
  }
  lanes.locate(plane, m, largest, largest_row, states);

  Vec<A> top = lanes.spread(states, &S::max);
  top = top == -A(INFINITY) ? Vec<A>{} : top;  // then -infinity weighs 0, too; NaN and +infinity make the sums NaN
  // Offsets are from the maximum, where the mass is.
  const Vec<A> line_peak = lanes.spread(states, down ? &S::x : &S::y), peak = lanes.spread(states, down ? &S::y : &S::x);
  const int64_t first = down ? y : 0, length = down ? end - y : lanes.width;  // along the lines
  Vec<A>* const across = marginals.across.data - first;
  for (int64_t i = first; i < first + length; ++i) across[i] = Vec<A>{};
  const int64_t ahead = (end - y) * m.row;  // the next block or plane is on its way while this one is computed
  lanes.for_lines(y, end, [&](auto line, int64_t n) {
    Vec<A> sum{}, offsets{}, position = splat(A(line.begin)) - peak;
    for (int64_t i = line.begin; i < line.end; ++i, position += A(1)) {
      __builtin_prefetch(line.address(plane, m, i) + ahead);
      Vec<A> e = exp2(line.load(plane, m, i) - top, sharpness);
      if (line.skip) e = iota<A>() < A(line.skip) ? Vec<A>{} : e;
      sum += e;
      across[i] += e;
      if (kSecond) offsets += e * position;
    }
    marginals.lines.data[n] = sum;
    if (kSecond) marginals.offsets.data[n] = offsets;
  });
  Vec<A> w[4]{}, w_lines[4]{};
  lanes.for_lines(y, end, [&](auto line, int64_t n) {
    w[n % 4] += marginals.lines.data[n];
    w_lines[n % 4] += marginals.lines.data[n] * (line.template position<A>() - line_peak);
  });
  const Vec<A> w_along = sum_over<A>(first, first + length, peak, [&](int64_t i, Vec<A> d) { return across[i] * d; });

  lanes.collect(total(w), states, &S::weight);
  lanes.collect(total(w_lines), states, down ? &S::offset_x : &S::offset_y);
  lanes.collect(w_along, states, down ? &S::offset_y : &S::offset_x);
  for (int i = 0; i < lanes.planes(); ++i) {
    S& s = states[i];
    const A p = s.weight == 0 ? A(0) : 1 / s.weight;
    s.offset_x *= p;
    s.offset_y *= p;
    s.xx = s.yy = s.xy = A(0);
  }
  if (!kSecond) return;

  const Vec<A> line_offset = lanes.spread(states, down ? &S::offset_x : &S::offset_y);
  const Vec<A> offset = lanes.spread(states, down ? &S::offset_y : &S::offset_x);
  Vec<A> line_squares[4]{}, products[4]{};
  lanes.for_lines(y, end, [&](auto line, int64_t n) {
    const Vec<A> d = line.template position<A>() - line_peak - line_offset, sum = marginals.lines.data[n];
    line_squares[n % 4] += sum * d * d;
    products[n % 4] += (marginals.offsets.data[n] - sum * offset) * d;
  });
  const Vec<A> squares = sum_over<A>(first, first + length, peak, [&](int64_t i, Vec<A> d) {
    return across[i] * (d - offset) * (d - offset);
  });
  lanes.collect(total(line_squares), states, down ? &S::xx : &S::yy);
  lanes.collect(squares, states, down ? &S::yy : &S::xx);
  lanes.collect(total(products), states, &S::xy);
}

// Rows that are looked at twice stay in a core's own cache between.
constexpr int64_t kBlockBytes = 128 << 10;

template <typename T, bool kSecond> static void forward(const SoftArgmax2d& job, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const A sharpness = sharpness_of<A>(job);
  const int64_t row = job.heatmaps.row > job.width ? job.heatmaps.row : job.width;
  int64_t block = kBlockBytes / (row * int64_t(sizeof(T))) + 1;
  if (block > job.height) block = job.height;
  const Marginals<A> marginals(job.width + 2 * block);
  for_lanes<T>(job, begin, end, [&](const auto& lanes, int64_t b, int64_t k) {
    const T* plane = job.heatmaps.plane<const T>(b, k);
    SoftmaxState<A> total[kLanes], next[kLanes];
    for (int64_t y = 0; y < job.height; y += block) {
      const int64_t stop = y + block < job.height ? y + block : job.height;
      sum_rows<kSecond>(lanes, plane, job.heatmaps, y, stop, sharpness, marginals, y ? next : total);
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

// The slope is a term of the line plus one of the place along it; only a gradient of the covariance adds a product of both.
template <typename T, bool kCross> static void backward(const SoftArgmax2dBackward& job, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  using S = Slope<A>;
  const SoftArgmax2d& f = job.forward;
  constexpr int64_t kRows = 16;  // lines that run down stay within a page or few
  const int64_t n = f.width > kRows ? f.width : kRows;
  const Scratch<Vec<A>> terms(n), distances(n);
  for_lanes<T>(f, begin, end, [&](auto lanes, int64_t b, int64_t k) {
    constexpr bool down = decltype(lanes)::kDown;
    // Copies, which writing a gradient does not change as far as the compiler knows.
    const Maps heatmaps = f.heatmaps, gradient = job.gradient;
    const A sharpness = sharpness_of<A>(f);
    const T* plane = heatmaps.plane<const T>(b, k);
    T* out = gradient.plane<T>(b, k);
    S slopes[kLanes];
    for (int i = 0; i < lanes.planes(); ++i) {
      slopes[i] = slope_of<A>(job, b * f.joints + k + i);
      slopes[i].max = widen(slopes[i].at_peak(heatmaps.plane<const T>(b, k + i), heatmaps));
    }
    auto spread = [&](A S::*number) { return lanes.spread(slopes, number); };
    const Vec<A> max = spread(&S::max), constant = spread(&S::constant), xy = spread(&S::xy);
    const Vec<A> line_mean = spread(down ? &S::mean_x : &S::mean_y), mean = spread(down ? &S::mean_y : &S::mean_x);
    const Vec<A> line_first = spread(down ? &S::x : &S::y), first = spread(down ? &S::y : &S::x);
    const Vec<A> line_second = spread(down ? &S::xx : &S::yy), second = spread(down ? &S::yy : &S::xx);
    for (int64_t y = 0, stop; y < f.height; y = stop) {
      stop = !down || y + kRows > f.height ? f.height : y + kRows;
      Vec<A>* const along = terms.data - (down ? y : 0);
      Vec<A>* const distance = distances.data - (down ? y : 0);
      for (int64_t i = down ? y : 0; i < (down ? stop : f.width); ++i) {
        const Vec<A> d = A(i) - mean;
        along[i] = d * (first + second * d);
        if (kCross) distance[i] = d;
      }
      lanes.for_lines(y, stop, [&](auto line, int64_t) {
        const Vec<A> d = line.template position<A>() - line_mean;
        const Vec<A> term = constant + d * (line_first + line_second * d), product = xy * d;
        for (int64_t i = line.begin; i < line.end; ++i) {
          __builtin_prefetch(line.address(plane, heatmaps, i) + (stop - y) * heatmaps.row);
          Vec<A> slope = term + along[i];
          if (kCross) slope += product * distance[i];
          line.store(exp2(line.load(plane, heatmaps, i) - max, sharpness) * slope, out, gradient, i);
        }
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
