#include "local_contrast_normalization.h"

#include "simd.h"

namespace fastpose::FASTPOSE_SIMD {

// The last rows of something, as many as the window is high, with zeros left and right of them.
template <typename A> class Rows {
 public:
  Rows(int64_t rows, int64_t width, int64_t margin)
      : rows_(rows), pitch_(padded(width) + 2 * margin + kLanes), margin_(margin), memory_(rows * pitch_) {
    for (int64_t i = 0; i < rows * pitch_; ++i) memory_.data[i] = A(0);
  }
  A* operator[](int64_t y) const { return memory_.data + y % rows_ * pitch_ + margin_; }
  int64_t pitch() const { return pitch_; }

 private:
  const int64_t rows_, pitch_, margin_;
  Scratch<A> memory_;
};

// Weighted sums over the window of rows that are filled one after the other. Sums over a box have one weight, and it comes last.
template <typename A, bool kBox> class Window {
 public:
  Window(const LocalContrast& job, bool mirrored)
      : rows(job.size, job.width, 0), height_(job.height), width_(job.width), half_(job.size / 2), down_(1, job.width, half_) {
    for (int64_t d = 0; d < job.size; ++d) weights_[d] = A(job.weights[mirrored ? job.size - 1 - d : d]);
  }

  const Rows<A> rows;

  // The sum around row y: f(x, sum) for x = 0, kLanes, ...
  template <typename F> void sum(int64_t y, F&& f) const {
    const int64_t first = y < half_ ? y : half_, last = y + half_ < height_ ? half_ : height_ - 1 - y, count = first + last + 1;
    const A *row[kMaxWindow], *weights = weights_ + half_ - first;
    for (int64_t i = 0; i < count; ++i) row[i] = rows[y - first + i];
    A* const down = down_[0];
    for (int64_t x = 0; x < width_; x += kLanes) {
      Vec<A> v{};
      for (int64_t i = 0; i < count; ++i) add(weights[i], load(row[i] + x), v);
      if (x + kLanes > width_) v = iota<A>() < A(width_ - x) ? v : Vec<A>{};
      store(v, down + x);
    }
    const A scale = weights_[0] * weights_[0];
    for (int64_t x = 0; x < width_; x += kLanes) {
      const A* p = down + x - half_;
      Vec<A> v{};
      for (int64_t i = 0; i <= 2 * half_; ++i) add(weights_[i], load(p + i), v);
      f(x, kBox ? v * scale : v);
    }
  }

 private:
  static void add(A weight, Vec<A> value, Vec<A>& sum) { sum += kBox ? value : weight * value; }

  const int64_t height_, width_, half_;
  A weights_[kMaxWindow];
  const Rows<A> down_;
};

// A row of an image: channel c begins at data + c channel.
template <typename A> struct ImageRow {
  const A* data;
  int64_t channel, width;
  Vec<A> at(int64_t c, int64_t x) const { return load_columns(data + c * channel, x, width, 1, A(0)); }
};

// The rows of images, as far as they are needed: where they lie, or copied where they are not dense numbers of the accumulator's type.
template <typename T> class Images {
 public:
  using A = Accumulator<T>;
  Images(const LocalContrast& job, const Maps& maps)
      : job_(job), maps_(maps), direct_(std::is_same_v<T, A> && maps.column == 1),
        copies_(direct_ ? 1 : job.size * job.channels + 1, job.width, 0) {}  // one more, as there may be no channels

  void start(int64_t b) { b_ = b; }
  void read(int64_t y) const {
    if (direct_) return;
    for (int64_t c = 0; c < job_.channels; ++c) {
      const T* row = maps_.plane<const T>(b_, c) + y * maps_.row;
      A* copy = copies_[y % job_.size * job_.channels + c];
      for (int64_t x = 0; x < job_.width; x += kLanes) store(load_columns(row, x, job_.width, maps_.column, A(0)), copy + x);
    }
  }
  ImageRow<A> row(int64_t y) const {
    if constexpr (std::is_same_v<T, A>)
      if (direct_) return {maps_.plane<const T>(b_, 0) + y * maps_.row, maps_.joint, job_.width};
    return {copies_[y % job_.size * job_.channels], copies_.pitch(), copies_.pitch()};
  }

 private:
  const LocalContrast& job_;
  const Maps maps_;
  const bool direct_;
  const Rows<A> copies_;
  int64_t b_ = 0;
};

// What lies in the image of the window's weight around each place along one axis.
template <typename A> class Shares {
 public:
  Shares(const LocalContrast& job, int64_t length) : inverse_(padded(length)) {
    const int64_t half = job.size / 2;
    for (int64_t i = 0; i < padded(length); ++i) {
      double share = 0;
      for (int64_t d = -half; d <= half; ++d)
        if (i + d >= 0 && i + d < length) share += job.weights[half + d];
      inverse_.data[i] = share > 0 ? A(1 / share) : A(1);
    }
  }
  A inverse(int64_t i) const { return inverse_.data[i]; }
  Vec<A> inverses(int64_t i) const { return load(inverse_.data + i); }

 private:
  Scratch<A> inverse_;
};

// Calls first(y), second(y) and third(y) on the rows begin .. end-1 and, as often as they are needed for them, on those around: the
// window of second() are results of first(), that of third() results of second().
template <typename F, typename G, typename H>
static void down_the_rows(const LocalContrast& job, int64_t begin, int64_t end, F&& first, G&& second, H&& third) {
  const int64_t half = job.size / 2, last = end - 1;
  for (int64_t y = begin - 2 * half; y <= last + 2 * half; ++y) {
    const int64_t p = y - half, r = y - 2 * half;
    if (y >= 0 && y < job.height) first(y);
    if (p >= 0 && p < job.height && p >= begin - half && p <= last + half) second(p);
    if (r >= begin) third(r);
  }
}

template <typename T> static T* result_row(const LocalContrast& job, int64_t b, int64_t y) {
  return job.result.plane<T>(b, 0) + y * job.result.row;
}

template <typename A> static A* saved_row(const LocalContrast& job, void* saved, int64_t b, int64_t y) {
  return static_cast<A*>(saved) + (b * job.height + y) * job.width;
}

template <typename T, bool kBox> class Forward {
 public:
  using A = Accumulator<T>;
  explicit Forward(const LocalContrast& job)
      : job_(job), images_(job, job.images), sums_(job, false), squares_(job, false), means_(job.size, job.width, 0),
        columns_(job, job.width), rows_(job, job.height) {}

  void band(int64_t b, int64_t begin, int64_t end) {
    images_.start(b);
    const int64_t width = job_.width, channels = job_.channels;
    const A part = A(1) / A(channels);
    auto sum_channels = [&](int64_t y) {
      images_.read(y);
      const ImageRow<A> row = images_.row(y);
      A* sums = sums_.rows[y];
      for (int64_t x = 0; x < width; x += kLanes) {
        Vec<A> sum{};
        for (int64_t c = 0; c < channels; ++c) sum += row.at(c, x);
        store(sum * part, sums + x);
      }
    };
    auto subtract = [&](int64_t y) {
      const ImageRow<A> row = images_.row(y);
      const A inverse = rows_.inverse(y);
      A *means = means_[y], *squares = squares_.rows[y];
      sums_.sum(y, [&](int64_t x, Vec<A> sum) {
        const Vec<A> mean = sum * (columns_.inverses(x) * inverse);
        store(mean, means + x);
        Vec<A> square{};
        for (int64_t c = 0; c < channels; ++c) {
          const Vec<A> v = row.at(c, x) - mean;
          square += v * v;
        }
        store(square * part, squares + x);
      });
    };
    auto divide = [&](int64_t y) {
      const ImageRow<A> row = images_.row(y);
      const A *means = means_[y], threshold = A(job_.threshold), down = rows_.inverse(y);
      const bool even = job_.even;
      T* out = result_row<T>(job_, b, y);
      squares_.sum(y, [&](int64_t x, Vec<A> sum) {
        const Vec<A> inverse = columns_.inverses(x) * down, mean = load(means + x);
        const Vec<A> root = sqrt(sum * (even ? inverse : inverse * inverse));
        const Vec<A> deviation = root > threshold ? root : splat(threshold), scale = A(1) / deviation;
        for (int64_t c = 0; c < channels; ++c)
          store_columns((row.at(c, x) - mean) * scale, out + c * job_.result.joint, x, width, job_.result.column);
        if (!job_.mean) return;
        store_columns(mean, saved_row<A>(job_, job_.mean, b, y), x, width, 1);
        store_columns(deviation, saved_row<A>(job_, job_.deviation, b, y), x, width, 1);
      });
    };
    down_the_rows(job_, begin, end, sum_channels, subtract, divide);
  }

 private:
  const LocalContrast& job_;
  Images<T> images_;
  const Window<A, kBox> sums_, squares_;
  const Rows<A> means_;
  const Shares<A> columns_, rows_;
};

template <typename T, bool kBox> class Backward {
 public:
  using A = Accumulator<T>;
  explicit Backward(const LocalContrast& job)
      : job_(job), images_(job, job.images), gradients_(job, job.gradient), slopes_(job, true), sums_(job, true),
        terms_(job.size, job.width, 0), columns_(job, job.width), rows_(job, job.height) {}

  void band(int64_t b, int64_t begin, int64_t end) {
    images_.start(b);
    gradients_.start(b);
    const int64_t width = job_.width, channels = job_.channels;
    const A part = A(1) / A(channels);
    auto slopes_of_variances = [&](int64_t y) {
      images_.read(y);
      gradients_.read(y);
      const auto [row, gradient, means, deviations] = read_rows(b, y);
      const A down = rows_.inverse(y), threshold = A(job_.threshold);
      const bool even = job_.even;
      A* slopes = slopes_.rows[y];
      for (int64_t x = 0; x < width; x += kLanes) {
        const Vec<A> mean = means.at(0, x), deviation = deviations.at(0, x);
        Vec<A> sum{};
        for (int64_t c = 0; c < channels; ++c) sum += gradient.at(c, x) * (row.at(c, x) - mean);
        const Vec<A> inverse = columns_.inverses(x) * down, scale = A(1) / deviation;
        const Vec<A> slope = sum * A(-0.5) * (even ? inverse : inverse * inverse) * scale * scale * scale;
        store(deviation > threshold ? slope : Vec<A>{}, slopes + x);
      }
    };
    auto sum_channels = [&](int64_t y) {
      const auto [row, gradient, means, deviations] = read_rows(b, y);
      const A down = rows_.inverse(y);
      A *terms = terms_[y], *sums = sums_.rows[y];
      slopes_.sum(y, [&](int64_t x, Vec<A> slope) {
        const Vec<A> term = slope * (A(2) * part), mean = means.at(0, x);
        store(term, terms + x);
        Vec<A> all{}, value{};
        for (int64_t c = 0; c < channels; ++c) {
          all += gradient.at(c, x);
          value += row.at(c, x) - mean;
        }
        const Vec<A> sum = all / deviations.at(0, x) + term * value;
        store(sum * part * (columns_.inverses(x) * down), sums + x);
      });
    };
    auto finish = [&](int64_t y) {
      const auto [row, gradient, means, deviations] = read_rows(b, y);
      const A* terms = terms_[y];
      T* out = result_row<T>(job_, b, y);
      sums_.sum(y, [&](int64_t x, Vec<A> sum) {
        const Vec<A> term = load(terms + x), mean = means.at(0, x), scale = A(1) / deviations.at(0, x);
        for (int64_t c = 0; c < channels; ++c)
          store_columns(gradient.at(c, x) * scale + term * (row.at(c, x) - mean) - sum, out + c * job_.result.joint, x, width,
                        job_.result.column);
      });
    };
    down_the_rows(job_, begin, end, slopes_of_variances, sum_channels, finish);
  }

 private:
  struct InputRows {
    ImageRow<A> image, gradient, mean, deviation;
  };
  InputRows read_rows(int64_t b, int64_t y) const {
    auto saved = [&](void* maps) { return ImageRow<A>{saved_row<A>(job_, maps, b, y), 0, job_.width}; };
    return {images_.row(y), gradients_.row(y), saved(job_.mean), saved(job_.deviation)};
  }

  const LocalContrast& job_;
  Images<T> images_, gradients_;
  const Window<A, kBox> slopes_, sums_;
  const Rows<A> terms_;
  const Shares<A> columns_, rows_;
};

template <typename Pass> static void bands(const LocalContrast& job, int64_t band_rows, int64_t begin, int64_t end) {
  const int64_t bands = (job.height + band_rows - 1) / band_rows;
  Pass pass(job);
  for (int64_t band = begin; band < end; ++band) {
    const int64_t first = band % bands * band_rows, last = first + band_rows;
    pass.band(band / bands, first, last < job.height ? last : job.height);
  }
}

// Whether all weights are alike, as they are by default: then the sums need additions only.
static bool is_box(const LocalContrast& job) {
  for (int64_t i = 1; i < job.size; ++i)
    if (job.weights[i] != job.weights[0]) return false;
  return true;
}

void local_contrast_normalization(const LocalContrast& job, int64_t band_rows, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) {
    if (is_box(job)) bands<Forward<T, true>>(job, band_rows, begin, end);
    else bands<Forward<T, false>>(job, band_rows, begin, end);
  });
}

void local_contrast_normalization_backward(const LocalContrast& job, int64_t band_rows, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) {
    if (is_box(job)) bands<Backward<T, true>>(job, band_rows, begin, end);
    else bands<Backward<T, false>>(job, band_rows, begin, end);
  });
}

}  // namespace fastpose::FASTPOSE_SIMD
