#include "crop_windows.h"

#include "simd.h"

namespace fastpose::FASTPOSE_SIMD {

// ---- a banded matrix ------------------------------------------------------------------------------------------------------
// The filters of all cells along one axis, or its transpose: out[i] = sum_t weight(t, i) in[first[i] + t] for i = begin .. end-1.

template <typename A> class Band {
 public:
  const int64_t begin, end;  // of the rows that are not empty
  int64_t in_begin = 0, in_end = 0;

  static Band of_filters(const Filter<A>* filters, int64_t cells) {
    int64_t taps = 0;
    for (int64_t i = 0; i < cells; ++i) taps = filters[i].end - filters[i].begin > taps ? filters[i].end - filters[i].begin : taps;
    return Band(0, cells, taps, [&](Band& band) {
      for (int64_t i = 0; i < cells; ++i)
        for (int32_t x = filters[i].begin; x < filters[i].end; ++x) band.append(i, x, filters[i].weight(x));
    });
  }

  static Band transposed(const Filter<A>* filters, int64_t cells) {
    int64_t begin = INT32_MAX, end = 0;
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
  A weight(int64_t t, int64_t i) const { return weights_.data[t * pitch_ + i - begin]; }

  // Rows i .. i+kLanes-1, which begin a group; in[x] lies at in + (x - in_begin) stride. What has weight 0 is not looked at: 0 times
  // NaN would be NaN.
  Vec<A> times(const A* in, int64_t stride, int64_t i) const {
    const int64_t at = i - begin;
    const Group group = groups_.data[at / kLanes];
    const int32_t* first = first_.data + at;
    Vec<A> sum{};
    if (group.consecutive && stride == 1) {
      const A* p = in + (first[0] - in_begin);
      for (int64_t t = 0; t < group.taps; ++t) add(load(weights_.data + t * pitch_ + at), load(p + t), sum);
      return sum;
    }
    Mask<A> place;
    for (int lane = 0; lane < kLanes; ++lane) place[lane] = int32_t((first[lane] - in_begin) * stride);
    for (int64_t t = 0; t < group.taps; ++t) add(load(weights_.data + t * pitch_ + at), gather(in + t * stride, place), sum);
    return sum;
  }

  // How many numbers beyond the last that is needed times() may read.
  int64_t room() const { return taps_ + kLanes; }

 private:
  struct Group {
    bool consecutive;  // each row begins one further than the row before
    int32_t taps;
  };

  template <typename F>
  Band(int64_t begin, int64_t end, int64_t taps, F&& fill)
      : begin(begin), end(end), pitch_(padded(end - begin)), taps_(taps), first_(pitch_), count_(pitch_), weights_(taps * pitch_),
        groups_(pitch_ / kLanes) {
    for (int64_t i = 0; i < pitch_; ++i) first_.data[i] = count_.data[i] = 0;
    for (int64_t i = 0; i < taps * pitch_; ++i) weights_.data[i] = A(0);
    fill(*this);
    finish();
  }

  static void add(Vec<A> weight, Vec<A> value, Vec<A>& sum) { sum += weight * (weight == A(0) ? Vec<A>{} : value); }

  void append(int64_t i, int64_t in, A weight) {
    int32_t& count = count_.data[i - begin];
    if (count == 0) first_.data[i - begin] = int32_t(in);
    weights_.data[count++ * pitch_ + i - begin] = weight;
  }

  void finish() {
    in_begin = INT32_MAX;
    for (int64_t i = 0; i < end - begin; ++i) {
      if (count_.data[i] == 0) continue;
      const int64_t first = first_.data[i];
      in_begin = first < in_begin ? first : in_begin;
      in_end = first + count_.data[i] > in_end ? first + count_.data[i] : in_end;
    }
    if (in_begin > in_end) in_begin = in_end;
    for (int64_t i = 0; i < pitch_; ++i)
      if (count_.data[i] == 0) first_.data[i] = int32_t(in_begin);  // a place that can be read
    for (int64_t i = 0; i < pitch_; i += kLanes) {
      Group group{true, 0};
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        if (i + lane < end - begin) group.consecutive &= first_.data[i + lane] == first_.data[i] + lane;
        group.taps = count_.data[i + lane] > group.taps ? count_.data[i + lane] : group.taps;
      }
      groups_.data[i / kLanes] = group;
    }
  }

  int64_t pitch_, taps_;
  Scratch<int32_t> first_, count_;
  Scratch<A> weights_;
  Scratch<Group> groups_;
};

template <typename A> class Filters {
 public:
  Filters(const CropWindows& job, int64_t n) : rows_(job.height), columns_(job.width), job_(job) {
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

 private:
  Scratch<Filter<A>> rows_, columns_;
  const CropWindows& job_;
};

template <typename A, typename S> static Vec<A> load_source(const S* row, int64_t x, int64_t width, int64_t stride) {
  if constexpr (!std::is_same_v<S, uint8_t>) {
    return load_columns(row, x, width, stride, A(0));
  } else if (stride == 1 && x + kLanes <= width) {
    Vec<uint8_t> bytes;
    __builtin_memcpy(&bytes, row + x, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, Vec<int32_t>), Vec<A>);
  } else {
    Vec<A> v{};
    for (int i = 0; i < kLanes && x + i < width; ++i) v[i] = A(row[(x + i) * stride]);
    return v;
  }
}

// Row i of the product of `rows` and a plane of rows `width` wide: columns begin .. end-1 into out[0 .. end-begin), and up to kLanes-1
// more numbers.
template <typename A, typename S>
static void combine_rows(const Band<A>& rows, int64_t i, const S* plane, int64_t row, int64_t column, int64_t width, int64_t begin,
                         int64_t end, A* out) {
  const int64_t count = rows.count(i);
  const S* first = plane + rows.first(i) * row;
  for (int64_t x = begin; x < end; x += kLanes) {
    Vec<A> sum{};
    for (int64_t t = 0; t < count; ++t) {
      const A weight = rows.weight(t, i);
      if (weight != A(0)) sum += weight * load_source<A>(first + t * row, x, width, column);
    }
    store(sum, out + (x - begin));
  }
}

// Whether the channels of a pixel lie side by side, and the pixels of a row too: then a row is one long row.
static bool channels_inner(const Maps& m, int64_t channels) { return m.joint == 1 && m.column == channels && channels > 1; }

// ---- forward --------------------------------------------------------------------------------------------------------------

// What becomes of sums of the source's values, channel by channel.
template <typename A> struct Normalisation {
  A factor, inside, outside;
  Normalisation(const CropWindows& job, int64_t channel) {
    const int64_t i = job.normalisation(channel);
    factor = A(job.factor[i]);
    inside = A(job.inside[i]);
    outside = A(job.outside[i]);
  }
  Vec<A> operator()(Vec<A> sum, Vec<A> share) const { return sum * factor + share * inside + (A(1) - share) * outside; }
};

template <typename S, typename T> class Forward {
 public:
  using A = Accumulator<T>;
  explicit Forward(const CropWindows& job) : job_(job) {}

  void window(int64_t n) const {
    const Filters<A> filters(job_, n);
    if (!filters.exist()) return clear(n);
    const Band<A> rows = filters.rows(), columns = filters.columns();
    const bool inner = channels_inner(job_.source, job_.channels);
    const int64_t pixel = inner ? job_.channels : 1;  // numbers a column in `combined`
    Scratch<A> combined((columns.in_end - columns.in_begin + columns.room()) * pixel + kLanes), share(padded(job_.width));
    for (int64_t i = 0; i < (columns.in_end - columns.in_begin + columns.room()) * pixel + kLanes; ++i) combined.data[i] = A(0);
    for (int64_t j = 0; j < padded(job_.width); ++j) share.data[j] = j < job_.width ? filters.column(j).share : A(0);
    auto combine = [&](int64_t i, int64_t c) {
      combine_rows<A>(rows, i, job_.source.plane<const S>(n / job_.count, c), job_.source.row, inner ? 1 : job_.source.column,
                      job_.source_width * pixel, columns.in_begin * pixel, columns.in_end * pixel, combined.data);
    };
    if (!inner) {
      for (int64_t c = 0; c < job_.channels; ++c)
        for (int64_t i = 0; i < job_.height; ++i) {
          combine(i, c);
          finish_row(n, c, i, columns, combined.data, 1, filters.row(i).share, share.data);
        }
      return;
    }
    for (int64_t i = 0; i < job_.height; ++i) {
      combine(i, 0);
      if (job_.windows.joint == 1) finish_pixels(n, i, columns, combined.data, filters.row(i).share, share.data);
      else
        for (int64_t c = 0; c < job_.channels; ++c)
          finish_row(n, c, i, columns, combined.data + c, pixel, filters.row(i).share, share.data);
    }
  }

 private:
  T* out_row(int64_t n, int64_t c, int64_t i) const { return job_.windows.plane<T>(n, c) + i * job_.windows.row; }

  void clear(int64_t n) const {
    for (int64_t c = 0; c < job_.channels; ++c)
      for (int64_t i = 0; i < job_.height; ++i)
        for (int64_t j = 0; j < job_.width; j += kLanes)
          store_columns(Vec<A>{}, out_row(n, c, i), j, job_.width, job_.windows.column);
  }

  void finish_row(int64_t n, int64_t c, int64_t i, const Band<A>& columns, const A* combined, int64_t stride, A row_share,
                  const A* share) const {
    const Normalisation<A> normalise(job_, c);
    T* out = out_row(n, c, i);
    for (int64_t j = 0; j < job_.width; j += kLanes)
      store_columns(normalise(columns.times(combined, stride, j), load(share + j) * row_share), out, j, job_.width,
                    job_.windows.column);
  }

  // All channels of a row, which lie side by side in the windows too.
  void finish_pixels(int64_t n, int64_t i, const Band<A>& columns, const A* combined, A row_share, const A* share) const {
    for (int64_t j = 0; j < job_.width; ++j) {
      const A* first = combined + (columns.first(j) - columns.in_begin) * job_.channels;
      T* out = out_row(n, 0, i) + j * job_.windows.column;
      for (int64_t c = 0; c < job_.channels; c += kLanes) {
        Vec<A> sum{};
        for (int64_t t = 0; t < columns.count(j); ++t)
          if (columns.weight(t, j) != A(0)) sum += columns.weight(t, j) * load(first + t * job_.channels + c);
        const Vec<A> s = splat(row_share * share[j]);
        if (job_.normalisations == 1) {
          store_columns(Normalisation<A>(job_, 0)(sum, s), out, c, job_.channels, 1);
          continue;
        }
        for (int64_t lane = 0; lane < kLanes && c + lane < job_.channels; ++lane)
          narrow(A(Normalisation<A>(job_, c + lane)(sum, s)[lane]), out + c + lane);
      }
    }
  }

  const CropWindows& job_;
};

template <typename T, typename F> static void for_source(const CropWindows& job, F&& f) {
  if (job.image) f(Type<uint8_t>());
  else f(Type<T>());
}

void crop_windows(const CropWindows& job, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) {
    for_source<T>(job, [&]<typename S>(Type<S>) {
      for (int64_t n = begin; n < end; ++n) Forward<S, T>(job).window(n);
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
        pixel_(inner_ ? job.channels : 1), planes_(inner_ ? 1 : job.channels), pitch_(padded(job.source_width * pixel_) + kLanes),
        sums_(planes_ * rows * pitch_) {}

  // Rows begin .. end-1 of the gradient of sample b.
  void rows(int64_t b, int64_t begin, int64_t end) {
    for (int64_t i = 0; i < planes_ * (end - begin) * pitch_; ++i) sums_.data[i] = A(0);
    for (int64_t k = 0; k < job_.count; ++k) add_window(b * job_.count + k, begin, end);
    for (int64_t plane = 0; plane < planes_; ++plane) {
      const A factor = A(job_.factor[job_.normalisation(plane)]);
      for (int64_t y = begin; y < end; ++y) {
        const A* sums = row_sums(plane, y - begin, end - begin);
        T* out = job_.source.plane<T>(b, plane) + y * job_.source.row;
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

  void add_window(int64_t n, int64_t begin, int64_t end) {
    const Filters<A> filters(job_, n);
    if (!filters.exist()) return;
    const Band<A> rows = filters.transposed_rows();
    const int64_t first = rows.begin > begin ? rows.begin : begin, last = rows.end < end ? rows.end : end;
    if (first >= last) return;
    const Band<A> columns = filters.transposed_columns();
    Scratch<A> combined((columns.in_end - columns.in_begin + columns.room()) * pixel_ + kLanes);
    for (int64_t i = 0; i < (columns.in_end - columns.in_begin + columns.room()) * pixel_ + kLanes; ++i) combined.data[i] = A(0);
    for (int64_t plane = 0; plane < planes_; ++plane)
      for (int64_t y = first; y < last; ++y) {
        combine_rows<A>(rows, y, job_.windows.plane<const T>(n, plane), job_.windows.row, inner_ ? 1 : job_.windows.column,
                        job_.width * pixel_, columns.in_begin * pixel_, columns.in_end * pixel_, combined.data);
        A* sums = row_sums(plane, y - begin, end - begin);
        if (inner_) add_pixels(columns, combined.data, sums);
        else
          for (int64_t x = columns.begin; x < columns.end; x += kLanes)
            store(load(sums + x) + columns.times(combined.data, 1, x), sums + x);
      }
  }

  void add_pixels(const Band<A>& columns, const A* combined, A* sums) const {
    for (int64_t x = columns.begin; x < columns.end; ++x) {
      const A* first = combined + (columns.first(x) - columns.in_begin) * pixel_;
      for (int64_t t = 0; t < columns.count(x); ++t) {
        const A weight = columns.weight(t, x);
        if (weight == A(0)) continue;
        // In whole vectors but for the last: what lies behind are the sums of the next pixel.
        A* p = sums + x * pixel_;
        int64_t c = 0;
        for (; c + kLanes <= pixel_; c += kLanes) store(load(p + c) + weight * load(first + t * pixel_ + c), p + c);
        for (; c < pixel_; ++c) p[c] += weight * first[t * pixel_ + c];
      }
    }
  }

  const CropWindows& job_;
  bool inner_;
  int64_t pixel_, planes_, pitch_;  // numbers a column; planes; numbers a row of sums
  Scratch<A> sums_;
};

void crop_windows_backward(const CropWindows& job, int64_t band_rows, int64_t begin, int64_t end) {
  const int64_t bands = (job.source_height + band_rows - 1) / band_rows;
  for_dtype(job.dtype, [&]<typename T>(Type<T>) {
    Backward<T> backward(job, band_rows);
    for (int64_t band = begin; band < end; ++band) {
      const int64_t first = band % bands * band_rows, last = first + band_rows;
      backward.rows(band / bands, first, last < job.source_height ? last : job.source_height);
    }
  });
}

}  // namespace fastpose::FASTPOSE_SIMD
