#include "crop_windows.h"

#include "simd.h"

namespace fastpose::FASTPOSE_SIMD {

// ---- a banded matrix ------------------------------------------------------------------------------------------------------
// The filters of all cells along one axis, or its transpose: out[i] = sum_t weight(t, i) in[first(i) + t] for i = begin .. end-1. What
// has weight 0 is not looked at: 0 times NaN would be NaN.

template <typename A> class Band {
 public:
  const int64_t begin, end;                // of the rows that are not empty
  int64_t in_begin = INT64_MAX, in_end = 0;  // of what they look at

  static Band of_filters(const Filter<A>* filters, int64_t cells) {
    int64_t taps = 0;
    for (int64_t i = 0; i < cells; ++i) taps = filters[i].end - filters[i].begin > taps ? filters[i].end - filters[i].begin : taps;
    return Band(0, cells, taps, [&](Band& band) {
      for (int64_t i = 0; i < cells; ++i)
        for (int32_t x = filters[i].begin; x < filters[i].end; ++x) band.append(i, x, filters[i].weight(x));
    });
  }

  static Band transposed(const Filter<A>* filters, int64_t cells) {
    int64_t begin = INT64_MAX, end = 0;
    for (int64_t i = 0; i < cells; ++i)
      if (filters[i].begin < filters[i].end) {
        begin = filters[i].begin < begin ? filters[i].begin : begin;
        end = filters[i].end > end ? filters[i].end : end;
      }
    if (begin > end) begin = end;
    Scratch<int64_t> counts(end - begin);
    for (int64_t x = begin; x < end; ++x) counts.data[x - begin] = 0;
    int64_t taps = 0;
    for (int64_t i = 0; i < cells; ++i)
      for (int32_t x = filters[i].begin; x < filters[i].end; ++x) {
        const int64_t count = ++counts.data[x - begin];
        taps = count > taps ? count : taps;
      }
    return Band(begin, end, taps, [&](Band& band) {
      for (int64_t i = 0; i < cells; ++i)
        for (int32_t x = filters[i].begin; x < filters[i].end; ++x) band.append(x, i, filters[i].weight(x));
    });
  }

  int64_t first(int64_t i) const { return first_.data[i - begin]; }
  int64_t count(int64_t i) const { return count_.data[i - begin]; }
  const A* weights(int64_t i) const { return weights_.data + (i - begin) * taps_; }

 private:
  template <typename F>
  Band(int64_t begin, int64_t end, int64_t taps, F&& fill)
      : begin(begin), end(end), taps_(taps), first_(end - begin), count_(end - begin), weights_(taps * (end - begin)) {
    for (int64_t i = 0; i < end - begin; ++i) first_.data[i] = count_.data[i] = 0;
    fill(*this);
    if (in_begin > in_end) in_begin = in_end;
    for (int64_t i = 0; i < end - begin; ++i)
      if (count_.data[i] == 0) first_.data[i] = in_begin;
  }

  void append(int64_t i, int64_t in, A weight) {
    if (weight == A(0)) return;
    int64_t& count = count_.data[i - begin];
    if (count == 0) first_.data[i - begin] = in;
    weights_.data[(i - begin) * taps_ + count++] = weight;
    in_begin = in < in_begin ? in : in_begin;
    in_end = in + 1 > in_end ? in + 1 : in_end;
  }

  int64_t taps_;
  Scratch<int64_t> first_, count_;
  Scratch<A> weights_;
};

// The filters along the columns where the cells lie as far apart as the pixels, as in windows cut out of feature maps:
//   out[i] = near in[i + shift] + far in[i + shift + 1]
// That takes two shifted loads a vector, and no turning over of rows.
template <typename A> struct UnitStep {
  bool applies;
  int64_t shift;
  A near, far;
  UnitStep transposed() const { return {applies, -shift - 1, far, near}; }
};

template <typename A> class Filters {
 public:
  Filters(const CropWindows& job, int64_t n) : rows_(job.height), columns_(job.width), job_(job), n_(n) {
    for (int64_t i = 0; i < job.height; ++i) rows_.data[i] = window_filter<A, false>(job, n, i);
    for (int64_t j = 0; j < job.width; ++j) columns_.data[j] = window_filter<A, true>(job, n, j);
  }
  bool exist() const { return rows_.data[0].exists(); }
  const Filter<A>& row(int64_t i) const { return rows_.data[i]; }
  const Filter<A>& column(int64_t j) const { return columns_.data[j]; }
  Band<A> rows() const { return Band<A>::of_filters(rows_.data, job_.height); }
  Band<A> columns() const { return Band<A>::of_filters(columns_.data, job_.width); }
  Band<A> transposed_rows() const { return Band<A>::transposed(rows_.data, job_.height); }
  Band<A> transposed_columns() const { return Band<A>::transposed(columns_.data, job_.width); }

  UnitStep<A> step() const {
    const A* box = static_cast<const A*>(job_.boxes) + 4 * n_;
    const double first = double(box[0]) - double(job_.width - 1) * 0.5, pixel = std::floor(first);
    const bool applies = double(box[2]) == double(job_.width) && std::abs(first) < 1e9;  // farther away integers overflow
    return {applies, applies ? int64_t(pixel) : 0, A(1 - (first - pixel)), A(first - pixel)};
  }

 private:
  Scratch<Filter<A>> rows_, columns_;
  const CropWindows& job_;
  const int64_t n_;
};

template <typename A, typename S> static A widen_source(S value) {
  if constexpr (std::is_same_v<S, uint8_t>) return A(value);
  else return widen(value);
}

template <typename A, typename S> static Vec<A> load_whole(const S* p) {
  if constexpr (std::is_same_v<S, uint8_t>) return __builtin_convertvector(load_bytes(p), Vec<A>);
  else return load(p);
}

// A plane of the source, or of the windows' gradient, whose rows are `width` numbers of step `column`.
template <typename S> struct Plane {
  const S* data;
  int64_t row, column, width;
};

// Where whole vectors cannot be loaded: at the end of a row, or where columns do not lie side by side. Rare, so not inlined: that
// would cost the usual path registers.
template <typename A, typename S>
__attribute__((noinline)) static Vec<A> combine_scattered(const A* weights, int64_t count, const S* p, const Plane<S>& plane, int64_t x) {
  Vec<A> sum{};
  for (int64_t t = 0; t < count; ++t, p += plane.row)
    for (int lane = 0; lane < kLanes && x + lane < plane.width; ++lane) sum[lane] += weights[t] * widen_source<A>(p[lane * plane.column]);
  return sum;
}

// Columns x .. x+kLanes-1 of row i of the product of `rows` and a plane.
template <typename A, typename S> static inline Vec<A> combine_rows(const Band<A>& rows, int64_t i, const Plane<S>& plane, int64_t x) {
  const S* p = plane.data + rows.first(i) * plane.row + x * plane.column;
  const A* weights = rows.weights(i);
  const int64_t count = rows.count(i);  // 0 where the filter lies outside
  if (plane.column != 1 || x + kLanes > plane.width) return combine_scattered<A>(weights, count, p, plane, x);
  if (count == 2) return weights[0] * load_whole<A>(p) + weights[1] * load_whole<A>(p + plane.row);
  Vec<A> sum{};
  for (int64_t t = 0; t < count; ++t, p += plane.row) sum += weights[t] * load_whole<A>(p);
  return sum;
}

// Columns begin .. end-1 of that, and up to kLanes-1 more, into out.
template <typename A, typename S>
static void combine_row(const Band<A>& rows, int64_t i, const Plane<S>& plane, int64_t begin, int64_t end, A* out) {
  int64_t x = begin;
  if (plane.column == 1 && rows.count(i) == 2) {  // as a rule; what does not change is kept out of the loop
    const S *p = plane.data + rows.first(i) * plane.row, *q = p + plane.row;
    const A a = rows.weights(i)[0], b = rows.weights(i)[1];
    for (; x < end && x + kLanes <= plane.width; x += kLanes, out += kLanes)
      store(a * load_whole<A>(p + x) + b * load_whole<A>(q + x), out);
  }
  for (; x < end; x += kLanes, out += kLanes) store(combine_rows<A>(rows, i, plane, x), out);
}

// rows P columns^T for a plane P, kLanes rows at a time. These are combined first and, unless the columns have a unit step, turned over,
// so that the columns too are combined in whole vectors, whatever their step, and turned back.
template <typename A> class Product {
 public:
  // `pixel` numbers lie side by side in every column of a plane.
  Product(const Band<A>& rows, const Band<A>& columns, const UnitStep<A>& step, int64_t pixel)
      : rows_(rows), columns_(columns), step_(step), unit_(step.applies && pixel == 1), pixel_(pixel),
        pitch_(unit_ ? padded(columns.end - columns.begin) + 2 * kLanes : 0),
        memory_(unit_ ? kLanes * pitch_ : ((columns.in_end - columns.in_begin) * pixel + kLanes) * kLanes) {
    if (!unit_) return;
    for (int64_t i = 0; i < kLanes * pitch_; ++i) memory_.data[i] = A(0);  // combine() fills what lies in the source
  }

  // Combines rows i .. i+kLanes-1, or fewer at the end.
  template <typename S> void combine(int64_t i, int64_t end, const Plane<S>& plane) {
    count_ = end - i < kLanes ? end - i : kLanes;
    const int64_t first = columns_.in_begin * pixel_, last = columns_.in_end * pixel_;
    if (unit_) {
      for (int64_t r = 0; r < count_; ++r)
        combine_row(rows_, i + r, plane, first, last, shifted(r) + (first - columns_.begin - step_.shift));
      return;
    }
    A* out = memory_.data;
    for (int64_t x = first; x < last; x += kLanes, out += kLanes * kLanes) {
      Vec<A> v[kLanes];
      for (int64_t r = 0; r < kLanes; ++r)
        v[r] = r < count_ ? combine_rows<A>(rows_, i + r, plane, x) : Vec<A>{};
      transpose(v);
      for (int64_t r = 0; r < kLanes; ++r) store(v[r], out + r * kLanes);
    }
  }

  // f(r, j, columns j .. j+kLanes-1 of the r-th row) of number c of every pixel, for all columns begin .. end-1. The last ones come with
  // those before them, a second time, if `again` and there are so many; else with zeros behind them.
  template <typename F> void finish(int64_t c, bool again, F&& f) const {
    const int64_t last = again && columns_.end - columns_.begin >= kLanes ? columns_.end - kLanes : columns_.end;
    for (int64_t next = columns_.begin; next < columns_.end; next += kLanes) {
      const int64_t j = next < last ? next : last;
      Vec<A> v[kLanes];
      if (unit_) {
        for (int64_t r = 0; r < count_; ++r) f(r, j, two_columns(shifted(r) + (j - columns_.begin), j));
        continue;
      }
      for (int64_t lane = 0; lane < kLanes; ++lane) v[lane] = j + lane < columns_.end ? combine_columns(c, j + lane) : Vec<A>{};
      transpose(v);
      for (int64_t r = 0; r < count_; ++r) f(r, j, v[r]);
    }
  }

 private:
  // Of combined row r, the numbers that column `begin` and those behind it look at, with zeros where there are none.
  A* shifted(int64_t r) const { return memory_.data + r * pitch_; }

  Vec<A> two_columns(const A* p, int64_t j) const {
    Vec<A> v{};
    if (step_.near != A(0)) v = step_.near * load(p);
    if (step_.far != A(0)) v += step_.far * load(p + 1);
    return j + kLanes <= columns_.end ? v : iota<A>() < A(columns_.end - j) ? v : Vec<A>{};
  }

  Vec<A> combine_columns(int64_t c, int64_t j) const {
    const A *p = memory_.data + ((columns_.first(j) - columns_.in_begin) * pixel_ + c) * kLanes, *weight = columns_.weights(j);
    if (columns_.count(j) == 2) return weight[0] * load(p) + weight[1] * load(p + pixel_ * kLanes);
    Vec<A> sum{};
    for (int64_t t = columns_.count(j); t > 0; --t, p += pixel_ * kLanes) sum += *weight++ * load(p);
    return sum;
  }

  const Band<A>&rows_, &columns_;
  const UnitStep<A> step_;
  const bool unit_;
  const int64_t pixel_, pitch_;
  int64_t count_ = 0;
  Scratch<A> memory_;
};

// ---- forward --------------------------------------------------------------------------------------------------------------

// What becomes of sums of the source's values, channel by channel.
template <typename A> struct Normalisation {
  A factor, inside, outside;
  bool adds;
  Normalisation(const CropWindows& job, int64_t channel) {
    const int64_t i = job.normalisation(channel);
    factor = A(job.factor[i]);
    inside = A(job.inside[i]);
    outside = A(job.outside[i]);
    adds = inside != A(0) || outside != A(0);
  }
  Vec<A> operator()(Vec<A> sum, Vec<A> share) const { return sum * factor + share * inside + (A(1) - share) * outside; }
};

template <typename S, typename T> class Forward {
 public:
  using A = Accumulator<T>;
  explicit Forward(const CropWindows& job)
      : job_(job), inner_(channels_inner(job.source, job.channels)), share_(padded(job.width)) {}

  // Channels begin .. end-1 of window n.
  void window(int64_t n, int64_t begin, int64_t end) const {
    const Filters<A> filters(job_, n);
    if (!filters.exist()) return clear(n, begin, end);
    const Band<A> rows = filters.rows(), columns = filters.columns();
    for (int64_t j = 0; j < padded(job_.width); ++j) share_.data[j] = j < job_.width ? filters.column(j).share : A(0);
    if (inner_ && job_.windows.joint == 1) return pixels(n, filters, rows, columns);
    Product<A> product(rows, columns, filters.step(), inner_ ? job_.channels : 1);
    for (int64_t c = begin; c < end; c += inner_ ? job_.channels : 1) {
      const Plane<S> plane = source(n, c);
      for (int64_t i = 0; i < job_.height; i += kLanes) {
        product.combine(i, job_.height, plane);
        for (int64_t channel = c; channel < (inner_ ? job_.channels : c + 1); ++channel) {
          const Normalisation<A> normalise(job_, channel);
          T* out = out_row(n, channel, i);
          product.finish(channel - c, true, [&](int64_t r, int64_t j, Vec<A> sum) {
            const Vec<A> v = normalise.adds ? normalise(sum, load(share_.data + j) * filters.row(i + r).share) : sum * normalise.factor;
            store_columns(v, out + r * job_.windows.row, j, job_.width, job_.windows.column);
          });
        }
      }
    }
  }

 private:
  Plane<S> source(int64_t n, int64_t c) const {
    const S* data = job_.source.plane<const S>(n / job_.count, c);
    if (inner_) return {data, job_.source.row, 1, job_.source_width * job_.channels};
    return {data, job_.source.row, job_.source.column, job_.source_width};
  }
  T* out_row(int64_t n, int64_t c, int64_t i) const { return job_.windows.plane<T>(n, c) + i * job_.windows.row; }

  void clear(int64_t n, int64_t begin, int64_t end) const {
    for (int64_t c = begin; c < end; ++c)
      for (int64_t i = 0; i < job_.height; ++i)
        for (int64_t j = 0; j < job_.width; j += kLanes)
          store_columns(Vec<A>{}, out_row(n, c, i), j, job_.width, job_.windows.column);
  }

  // Where the channels lie side by side in the windows too, vectors are channels.
  void pixels(int64_t n, const Filters<A>& filters, const Band<A>& rows, const Band<A>& columns) const {
    const int64_t begin = columns.in_begin * job_.channels, end = columns.in_end * job_.channels;
    const Scratch<A> combined(end - begin + kLanes);
    const Plane<S> plane = source(n, 0);
    for (int64_t i = 0; i < job_.height; ++i) {
      combine_row(rows, i, plane, begin, end, combined.data);
      for (int64_t j = 0; j < job_.width; ++j) {
        const A *first = combined.data + columns.first(j) * job_.channels - begin, *weights = columns.weights(j);
        T* out = out_row(n, 0, i) + j * job_.windows.column;
        const Vec<A> share = splat(filters.row(i).share * share_.data[j]);
        for (int64_t c = 0; c < job_.channels; c += kLanes) {
          Vec<A> sum{};
          for (int64_t t = 0; t < columns.count(j); ++t) sum += weights[t] * load(first + t * job_.channels + c);
          store_columns(normalised(sum, share, c), out, c, job_.channels, 1);
        }
      }
    }
  }

  Vec<A> normalised(Vec<A> sum, Vec<A> share, int64_t c) const {
    if (job_.normalisations == 1) return Normalisation<A>(job_, 0)(sum, share);
    Vec<A> v{};
    for (int64_t lane = 0; lane < kLanes && c + lane < job_.channels; ++lane)
      v[lane] = Normalisation<A>(job_, c + lane)(sum, share)[lane];
    return v;
  }

  const CropWindows& job_;
  const bool inner_;
  const Scratch<A> share_;
};

template <typename T, typename F> static void for_source(const CropWindows& job, F&& f) {
  if (job.image) f(Type<uint8_t>());
  else f(Type<T>());
}

void crop_windows(const CropWindows& job, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) {
    for_source<T>(job, [&]<typename S>(Type<S>) {
      const Forward<S, T> forward(job);
      const bool inner = channels_inner(job.source, job.channels);
      const int64_t group = crop_group(job, inner), groups = crop_groups(job, inner);
      for (int64_t part = begin; part < end; ++part) {
        const int64_t b = part / job.count / groups, first = part / job.count % groups * group, last = first + group;
        forward.window(b * job.count + part % job.count, first, last < job.channels ? last : job.channels);
      }
    });
  });
}

// ---- backward -------------------------------------------------------------------------------------------------------------
// The same products with the transposed filters, summed over the windows in their order.

template <typename T> class Backward {
 public:
  using A = Accumulator<T>;
  Backward(const CropWindows& job, int64_t rows)
      : job_(job), inner_(channels_inner(job.source, job.channels) && channels_inner(job.windows, job.channels)),
        pixel_(inner_ ? job.channels : 1), group_(inner_ ? 1 : crop_group(job, false)),
        pitch_(padded(job.source_width * pixel_) + kLanes), sums_(group_ * rows * pitch_) {}

  // Rows begin .. end-1 of the gradient of sample b, in group number g of the channels.
  void band(int64_t b, int64_t g, int64_t begin, int64_t end) {
    const int64_t first = g * group_, left = (inner_ ? 1 : job_.channels) - first, planes = left < group_ ? left : group_;
    for (int64_t i = 0; i < planes * (end - begin) * pitch_; ++i) sums_.data[i] = A(0);
    for (int64_t k = 0; k < job_.count; ++k) add_window(b * job_.count + k, first, planes, begin, end);
    for (int64_t plane = 0; plane < planes; ++plane) {
      const A factor = A(job_.factor[job_.normalisation(first + plane)]);
      for (int64_t y = begin; y < end; ++y) {
        const A* sums = row_sums(plane, y - begin, end - begin);
        T* out = job_.source.plane<T>(b, first + plane) + y * job_.source.row;
        const int64_t length = job_.source_width * pixel_;
        for (int64_t x = 0; x < length; x += kLanes)
          store_columns(load(sums + x) * factors(factor, x), out, x, length, inner_ ? 1 : job_.source.column);
      }
    }
  }

 private:
  A* row_sums(int64_t plane, int64_t y, int64_t rows) const { return sums_.data + (plane * rows + y) * pitch_; }

  Vec<A> factors(A of_plane, int64_t x) const {
    Vec<A> v = splat(of_plane);
    if (inner_ && job_.normalisations > 1)
      for (int i = 0; i < kLanes; ++i) v[i] = A(job_.factor[(x + i) % job_.channels]);
    return v;
  }

  Plane<T> upstream(int64_t n, int64_t plane) const {
    return {job_.windows.plane<const T>(n, plane), job_.windows.row, inner_ ? 1 : job_.windows.column, job_.width * pixel_};
  }

  void add_window(int64_t n, int64_t first_plane, int64_t planes, int64_t begin, int64_t end) {
    const Filters<A> filters(job_, n);
    if (!filters.exist()) return;
    const Band<A> rows = filters.transposed_rows();
    const int64_t first = rows.begin > begin ? rows.begin : begin, last = rows.end < end ? rows.end : end;
    if (first >= last) return;
    const Band<A> columns = filters.transposed_columns();
    if (inner_) return add_pixels(n, rows, columns, begin, end, first, last);
    Product<A> product(rows, columns, filters.step().transposed(), 1);
    for (int64_t plane = 0; plane < planes; ++plane)
      for (int64_t y = first; y < last; y += kLanes) {
        product.combine(y, last, upstream(n, first_plane + plane));
        product.finish(0, false, [&](int64_t r, int64_t x, Vec<A> sum) {
          A* sums = row_sums(plane, y + r - begin, end - begin) + x;
          store(load(sums) + sum, sums);
        });
      }
  }

  void add_pixels(int64_t n, const Band<A>& rows, const Band<A>& columns, int64_t begin, int64_t end, int64_t first, int64_t last) const {
    const int64_t in_begin = columns.in_begin * pixel_, in_end = columns.in_end * pixel_;
    const Scratch<A> combined(in_end - in_begin + kLanes);
    const Plane<T> plane = upstream(n, 0);
    for (int64_t y = first; y < last; ++y) {
      combine_row(rows, y, plane, in_begin, in_end, combined.data);
      for (int64_t x = columns.begin; x < columns.end; ++x)
        for (int64_t t = 0; t < columns.count(x); ++t)
          add_scaled(columns.weights(x)[t], combined.data + (columns.first(x) + t) * pixel_ - in_begin,
                     row_sums(0, y - begin, end - begin) + x * pixel_);
    }
  }

  // In whole vectors but for the last: what lies behind are the sums of the next pixel.
  void add_scaled(A weight, const A* values, A* sums) const {
    int64_t c = 0;
    for (; c + kLanes <= pixel_; c += kLanes) store(load(sums + c) + weight * load(values + c), sums + c);
    for (; c < pixel_; ++c) sums[c] += weight * values[c];
  }

  const CropWindows& job_;
  const bool inner_;
  const int64_t pixel_, group_, pitch_;  // numbers a column; planes at a time; numbers a row of sums
  const Scratch<A> sums_;
};

void crop_windows_backward(const CropWindows& job, int64_t band_rows, int64_t begin, int64_t end) {
  const int64_t bands = (job.source_height + band_rows - 1) / band_rows;
  const int64_t groups = crop_groups(job, channels_inner(job.source, job.channels) && channels_inner(job.windows, job.channels));
  for_dtype(job.dtype, [&]<typename T>(Type<T>) {
    Backward<T> backward(job, band_rows);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part % bands * band_rows, last = first + band_rows;
      backward.band(part / bands / groups, part / bands % groups, first, last < job.source_height ? last : job.source_height);
    }
  });
}

}  // namespace fastpose::FASTPOSE_SIMD
