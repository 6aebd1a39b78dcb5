#include "decode_heatmaps.h"

#include <utility>

#include "simd.h"

namespace fastpose::FASTPOSE_SIMD {

template <typename A> struct Columns {
  using Vector = Vec<A>;
  static constexpr int64_t kWidth = kLanes;
  static int64_t pitch(int64_t columns) { return padded(columns) + kLanes; }  // sums along a row read past its end
  static Vector load(const A* p) { return FASTPOSE_SIMD::load(p); }
  static void store(Vector v, A* p) { FASTPOSE_SIMD::store(v, p); }
  static Vector exp(Vector v) { return FASTPOSE_SIMD::exp(v); }
  static A sum(Vector v) { return horizontal_sum<A>(v); }
  static Vector offsets() { return iota<A>(); }
  static void sync() {}
};

template <typename V, size_t... i> static V reversed(V v, std::index_sequence<i...>) { return V{v[kLanes - 1 - i]...}; }
template <typename A> static Vec<A> lowest() { return splat(-A(INFINITY)); }
template <typename A> static A without_nan(A a) { return a != a ? -A(INFINITY) : a; }

// One map, averaged with that of the mirrored image if there is one.
template <typename T> class Plane {
 public:
  using Element = T;
  using Value = Accumulator<T>;
  using A = Value;

  Plane(const DecodeHeatmaps& job, int64_t b, int64_t k) : job_(job), map_(job.maps.plane<const T>(b, k)) {
    if (!job.flipped.data) return;
    flipped_joint_ = flipped_joint(job, k);
    flipped_ = job.flipped.plane<const T>(b, flipped_joint_);
  }

  static void store(A value, T* p) { narrow(value, p); }

  bool exists() const { return !flipped_ || flipped_joint_ >= 0; }

  A at(int64_t y, int64_t x) const {
    A value = widen(map_[y * job_.maps.row + x * job_.maps.column]);
    if (flipped_) value = (value + widen(flipped_[y * job_.flipped.row + flipped_column(job_, x) * job_.flipped.column])) * A(0.5);
    return without_nan(value);
  }

  Vec<A> columns(int64_t y, int64_t x, A fill) const {
    if (y < 0 || y >= job_.height) return splat(fill);
    if (in_one_piece(x)) {
      const Vec<A> v = piece(y, x);
      return v != v ? lowest<A>() : v;
    }
    Vec<A> v = splat(fill);
    for (int64_t i = 0; i < kLanes; ++i)
      if (x + i >= 0 && x + i < job_.width) v[i] = at(y, x + i);
    return v;
  }

  // Each lane's largest value of row y; how the lanes share out the columns is nobody's business.
  Vec<A> row_maximum(int64_t y) const {
    Vec<A> top = lowest<A>();
    int64_t x = 0;
    if (flipped_)  // columns that the shift leaves without an image of their own
      for (; x < job_.flip_shift && x < job_.width; ++x) top = max(splat(at(y, x)), top);
    if (in_one_piece(x)) {
      const int64_t last = job_.width - kLanes;
      // max takes its second operand where the first is NaN. The last piece may overlap the one before.
      for (; x < last; x += kLanes) top = max(piece(y, x), top);
      return max(piece(y, last), top);
    }
    for (; x < job_.width; x += kLanes) top = max(columns(y, x, -A(INFINITY)), top);
    return top;
  }

 private:
  bool in_one_piece(int64_t x) const {
    if (x < 0 || x + kLanes > job_.width || job_.maps.column != 1) return false;
    return !flipped_ || (job_.flipped.column == 1 && x >= job_.flip_shift);
  }

  Vec<A> piece(int64_t y, int64_t x) const {
    const Vec<A> v = load(map_ + y * job_.maps.row + x);
    if (!flipped_) return v;
    const Vec<A> mirrored = load(flipped_ + y * job_.flipped.row + flipped_column(job_, x) - (kLanes - 1));
    return (v + reversed(mirrored, std::make_index_sequence<kLanes>())) * A(0.5);
  }

  const DecodeHeatmaps& job_;
  const T* map_;
  const T* flipped_ = nullptr;
  int64_t flipped_joint_ = 0;
};

// The cell y * W + x in the row that holds the maximum `top`; it is looked for in this one row only.
template <typename T>
static int64_t cell_in_row(const DecodeHeatmaps& job, const Plane<T>& h, int64_t y, Accumulator<T> top) {
  for (int64_t x = 0; x < job.width; ++x)
    if (h.at(y, x) == top) return y * job.width + x;
  return -1;
}

// Rows that hold the maximum so far, one for each lane.
template <typename A> struct RunningMaximum {
  using Row = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  Vec<A> top = lowest<A>();
  Mask<A> row = Mask<A>{} - 1;

  void update(Vec<A> values, int64_t y) {
    const Mask<A> larger = values > top;
    top = larger ? values : top;
    row = larger ? Mask<A>{} + Row(y) : row;
  }
};

// The first maximum of a plane, by rows; -1 if nothing lies above -infinity.
template <typename T> static int64_t first_maximum(const DecodeHeatmaps& job, const Plane<T>& h) {
  using A = Accumulator<T>;
  if (!h.exists()) return -1;
  RunningMaximum<A> lanes;
  for (int64_t y = 0; y < job.height; ++y) lanes.update(h.row_maximum(y), y);
  const A top = horizontal_max<A>(lanes.top);
  if (top == -A(INFINITY)) return -1;
  int64_t first = job.height;
  for (int i = 0; i < kLanes; ++i)
    if (lanes.top[i] == top && lanes.row[i] < first) first = lanes.row[i];
  return cell_in_row(job, h, first, top);
}

// What a thread needs to refine and write plane after plane.
template <typename T> class Writer {
 public:
  using A = Accumulator<T>;
  explicit Writer(const DecodeHeatmaps& job)
      : job_(job), weights_(job.blur_size + 8), scratch_(10 * Columns<A>::pitch(job.blur_size + 4)) {
    if (job.method != DecodeMethod::dark) return;
    fill_blur_weights(job, weights_.data, 0, 1);
    for (int64_t i = 0; i < 10 * Columns<A>::pitch(job.blur_size + 4); ++i) scratch_.data[i] = A(0);
  }

  void operator()(const Plane<T>& h, int64_t b, int64_t k, int64_t cell) {
    write(job_, b, k, cell, refine(job_, h, cell, weights_.data, scratch_.data, Columns<A>()));
  }

 private:
  const DecodeHeatmaps& job_;
  Scratch<A> weights_, scratch_;
};

template <typename T> static void decode_planes(const DecodeHeatmaps& job, int64_t begin, int64_t end) {
  Writer<T> write(job);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t b = plane / job.joints, k = plane % job.joints;
    const Plane<T> h(job, b, k);
    write(h, b, k, first_maximum(job, h));
  }
}

// Pixels whose joints lie side by side in memory: kLanes joints in a vector, averaged with those of the mirrored image.
template <typename T> class Pixels {
 public:
  using A = Accumulator<T>;
  explicit Pixels(const DecodeHeatmaps& job) : job_(job), partner_(padded(job.joints)) {
    for (int64_t k = 0; k < padded(job.joints); ++k) {
      const int64_t joint = flipped_joint(job, k < job.joints ? k : job.joints - 1);
      partner_.data[k] = joint < 0 ? 0 : joint * job.flipped.joint;
    }
  }

  // Joints k .. k+kLanes-1; lanes past the last joint hold anything.
  Vec<A> joints(int64_t b, int64_t k, int64_t y, int64_t x) const {
    const T* p = job_.maps.plane<const T>(b, k) + y * job_.maps.row + x * job_.maps.column;
    const int64_t left = job_.joints - k;
    Vec<A> v = lowest<A>();
    // A full vector may reach into the next pixel, but not past the last one of the row.
    if (left >= kLanes || (job_.width - 1 - x) * job_.maps.column + left >= kLanes) v = load(p);
    else
      for (int64_t i = 0; i < left; ++i) v[i] = widen(p[i]);
    if (!job_.flipped.data) return v;
    const T* f = job_.flipped.plane<const T>(b, 0) + y * job_.flipped.row + flipped_column(job_, x) * job_.flipped.column;
    A mirrored[kLanes];
    for (int i = 0; i < kLanes; ++i) mirrored[i] = widen(f[partner_.data[k + i]]);
    return (v + load(mirrored)) * A(0.5);
  }

 private:
  const DecodeHeatmaps& job_;
  Scratch<int64_t> partner_;  // offset of each joint's map in a flipped sample
};

// Lanes are joints; row by row, so that every group of joints finds the row in the cache.
template <typename T> static void decode_samples(const DecodeHeatmaps& job, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const Pixels<T> pixels(job);
  Writer<T> write(job);
  Scratch<RunningMaximum<A>> groups(padded(job.joints) / kLanes);
  for (int64_t b = begin; b < end; ++b) {
    for (int64_t k = 0; k < job.joints; k += kLanes) groups.data[k / kLanes] = RunningMaximum<A>();
    for (int64_t y = 0; y < job.height; ++y) {
      for (int64_t k = 0; k < job.joints; k += kLanes) {
        Vec<A> top = lowest<A>();
        for (int64_t x = 0; x < job.width; ++x) top = max(pixels.joints(b, k, y, x), top);
        groups.data[k / kLanes].update(top, y);
      }
    }
    for (int64_t k = 0; k < job.joints; ++k) {
      const RunningMaximum<A>& group = groups.data[k / kLanes];
      const int64_t y = group.row[k % kLanes];
      const Plane<T> h(job, b, k);
      write(h, b, k, y < 0 || !h.exists() ? -1 : cell_in_row(job, h, y, group.top[k % kLanes]));
    }
  }
}

void decode_heatmaps_planes(const DecodeHeatmaps& job, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) { decode_planes<T>(job, begin, end); });
}

void decode_heatmaps_samples(const DecodeHeatmaps& job, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) { decode_samples<T>(job, begin, end); });
}

void decode_heatmaps_backward_planes(const DecodeHeatmaps& job, const Maps& gradient, const Maps& flipped_gradient, int64_t begin,
                                     int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t b = plane / job.joints, k = plane % job.joints;
      if (job.cells[plane] < 0 || job.cells[plane] >= job.height * job.width) continue;
      const Plane<T> h(job, b, k);
      write_window(job, h, window_gradient(job, h, b, k, Columns<Accumulator<T>>()), gradient, flipped_gradient, b, k, 0, 1);
    }
  });
}

}  // namespace fastpose::FASTPOSE_SIMD
