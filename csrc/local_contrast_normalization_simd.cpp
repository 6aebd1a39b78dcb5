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

 private:
  int64_t rows_, pitch_, margin_;
  Scratch<A> memory_;
};

// Weighted sums over the window of rows that are filled one after the other.
template <typename A> class Window {
 public:
  Window(const LocalContrast& job, bool mirrored)
      : half(job.size / 2), rows(job.size, job.width, 0), job_(job), down_(1, job.width, half) {
    for (int64_t d = 0; d < job.size; ++d) weights_[d] = A(job.weights[mirrored ? job.size - 1 - d : d]);
  }

  const int64_t half;
  const Rows<A> rows;

  // The sum around row y: f(x, sum) for x = 0, kLanes, ...
  template <typename F> void sum(int64_t y, F&& f) const {
    const int64_t first = y < half ? -y : -half, last = y + half < job_.height ? half : job_.height - 1 - y;
    const A* row[kMaxWindow];
    for (int64_t d = first; d <= last; ++d) row[d - first] = rows[y + d];
    A* down = down_[0];
    for (int64_t x = 0; x < job_.width; x += kLanes) {
      Vec<A> v{};
      for (int64_t d = first; d <= last; ++d) v += weights_[half + d] * load(row[d - first] + x);
      if (x + kLanes > job_.width) v = iota<A>() < A(job_.width - x) ? v : Vec<A>{};
      store(v, down + x);
    }
    for (int64_t x = 0; x < job_.width; x += kLanes) {
      Vec<A> v{};
      for (int64_t d = 0; d < job_.size; ++d) v += weights_[d] * load(down + x + d - half);
      f(x, v);
    }
  }

 private:
  const LocalContrast& job_;
  A weights_[kMaxWindow];
  const Rows<A> down_;
};

// The rows of an image, all channels, as far as they are needed: where they lie, or copied where they are not dense numbers of the
// accumulator's type.
template <typename T> class Images {
 public:
  using A = Accumulator<T>;
  Images(const LocalContrast& job, const Maps& maps)
      : job_(job), maps_(maps), direct_(std::is_same_v<T, A> && maps.column == 1), copies_(direct_ ? 0 : job.size * job.channels, job.width, 0) {}

  void start(int64_t b) { b_ = b; }
  void read(int64_t y) const {
    if (direct_) return;
    for (int64_t c = 0; c < job_.channels; ++c) {
      const T* row = maps_.plane<const T>(b_, c) + y * maps_.row;
      for (int64_t x = 0; x < job_.width; x += kLanes) store(load_columns(row, x, job_.width, maps_.column, A(0)), copy(y, c) + x);
    }
  }
  Vec<A> at(int64_t y, int64_t c, int64_t x) const {
    if constexpr (std::is_same_v<T, A>)
      if (direct_) return load_columns(maps_.plane<const T>(b_, c) + y * maps_.row, x, job_.width, 1, A(0));
    return load(copy(y, c) + x);
  }

 private:
  A* copy(int64_t y, int64_t c) const { return copies_[y % job_.size * job_.channels + c]; }

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

template <typename T> static void store_result(const LocalContrast& job, Vec<Accumulator<T>> v, int64_t b, int64_t c, int64_t y, int64_t x) {
  store_columns(v, job.result.plane<T>(b, c) + y * job.result.row, x, job.width, job.result.column);
}

template <typename A> static A* saved_row(const LocalContrast& job, void* saved, int64_t b, int64_t y) {
  return static_cast<A*>(saved) + (b * job.height + y) * job.width;
}

template <typename T> class Forward {
 public:
  using A = Accumulator<T>;
  explicit Forward(const LocalContrast& job)
      : job_(job), images_(job, job.images), sums_(job, false), squares_(job, false), means_(job.size, job.width, 0),
        columns_(job, job.width), rows_(job, job.height) {}

  void band(int64_t b, int64_t begin, int64_t end) {
    images_.start(b);
    const A part = A(1) / A(job_.channels);
    auto sum_channels = [&](int64_t y) {
      images_.read(y);
      A* sums = sums_.rows[y];
      for (int64_t x = 0; x < job_.width; x += kLanes) {
        Vec<A> sum{};
        for (int64_t c = 0; c < job_.channels; ++c) sum += images_.at(y, c, x);
        store(sum * part, sums + x);
      }
    };
    auto subtract = [&](int64_t y) {
      A *means = means_[y], *squares = squares_.rows[y];
      sums_.sum(y, [&](int64_t x, Vec<A> sum) {
        const Vec<A> mean = sum * (columns_.inverses(x) * rows_.inverse(y));
        store(mean, means + x);
        Vec<A> square{};
        for (int64_t c = 0; c < job_.channels; ++c) {
          const Vec<A> v = images_.at(y, c, x) - mean;
          square += v * v;
        }
        store(square * part, squares + x);
      });
    };
    auto divide = [&](int64_t y) {
      const A *means = means_[y], threshold = A(job_.threshold);
      squares_.sum(y, [&](int64_t x, Vec<A> sum) {
        const Vec<A> inverse = columns_.inverses(x) * rows_.inverse(y), mean = load(means + x);
        const Vec<A> root = sqrt(sum * (job_.even ? inverse : inverse * inverse));
        const Vec<A> deviation = root > threshold ? root : splat(threshold), scale = A(1) / deviation;
        for (int64_t c = 0; c < job_.channels; ++c) store_result<T>(job_, (images_.at(y, c, x) - mean) * scale, b, c, y, x);
        if (!job_.mean) return;
        store_columns(mean, saved_row<A>(job_, job_.mean, b, y), x, job_.width, 1);
        store_columns(deviation, saved_row<A>(job_, job_.deviation, b, y), x, job_.width, 1);
      });
    };
    down_the_rows(job_, begin, end, sum_channels, subtract, divide);
  }

 private:
  const LocalContrast& job_;
  Images<T> images_;
  const Window<A> sums_, squares_;
  const Rows<A> means_;
  const Shares<A> columns_, rows_;
};

template <typename T> class Backward {
 public:
  using A = Accumulator<T>;
  explicit Backward(const LocalContrast& job)
      : job_(job), images_(job, job.images), gradients_(job, job.gradient), slopes_(job, true), sums_(job, true),
        terms_(job.size, job.width, 0), columns_(job, job.width), rows_(job, job.height) {}

  void band(int64_t b, int64_t begin, int64_t end) {
    images_.start(b);
    gradients_.start(b);
    const A part = A(1) / A(job_.channels);
    auto saved = [&](void* maps, int64_t y, int64_t x) {
      return load_columns(saved_row<const A>(job_, maps, b, y), x, job_.width, 1, A(1));
    };
    auto slopes_of_variances = [&](int64_t y) {
      images_.read(y);
      gradients_.read(y);
      A* slopes = slopes_.rows[y];
      for (int64_t x = 0; x < job_.width; x += kLanes) {
        const Vec<A> mean = saved(job_.mean, y, x), deviation = saved(job_.deviation, y, x);
        Vec<A> sum{};
        for (int64_t c = 0; c < job_.channels; ++c) sum += gradients_.at(y, c, x) * (images_.at(y, c, x) - mean);
        const Vec<A> inverse = columns_.inverses(x) * rows_.inverse(y), scale = A(1) / deviation;
        const Vec<A> slope = sum * A(-0.5) * (job_.even ? inverse : inverse * inverse) * scale * scale * scale;
        store(deviation > A(job_.threshold) ? slope : Vec<A>{}, slopes + x);
      }
    };
    auto sum_channels = [&](int64_t y) {
      A *terms = terms_[y], *sums = sums_.rows[y];
      slopes_.sum(y, [&](int64_t x, Vec<A> slope) {
        const Vec<A> term = slope * (A(2) * part), mean = saved(job_.mean, y, x);
        store(term, terms + x);
        Vec<A> gradient{}, value{};
        for (int64_t c = 0; c < job_.channels; ++c) {
          gradient += gradients_.at(y, c, x);
          value += images_.at(y, c, x) - mean;
        }
        const Vec<A> sum = gradient / saved(job_.deviation, y, x) + term * value;
        store(sum * part * (columns_.inverses(x) * rows_.inverse(y)), sums + x);
      });
    };
    auto finish = [&](int64_t y) {
      const A* terms = terms_[y];
      sums_.sum(y, [&](int64_t x, Vec<A> sum) {
        const Vec<A> term = load(terms + x), mean = saved(job_.mean, y, x), scale = A(1) / saved(job_.deviation, y, x);
        for (int64_t c = 0; c < job_.channels; ++c)
          store_result<T>(job_, gradients_.at(y, c, x) * scale + term * (images_.at(y, c, x) - mean) - sum, b, c, y, x);
      });
    };
    down_the_rows(job_, begin, end, slopes_of_variances, sum_channels, finish);
  }

 private:
  const LocalContrast& job_;
  Images<T> images_, gradients_;
  const Window<A> slopes_, sums_;
  const Rows<A> terms_;
  const Shares<A> columns_, rows_;
};

template <template <typename> typename Pass>
static void bands(const LocalContrast& job, int64_t band_rows, int64_t begin, int64_t end) {
  const int64_t bands = (job.height + band_rows - 1) / band_rows;
  for_dtype(job.dtype, [&]<typename T>(Type<T>) {
    Pass<T> pass(job);
    for (int64_t band = begin; band < end; ++band) {
      const int64_t first = band % bands * band_rows, last = first + band_rows;
      pass.band(band / bands, first, last < job.height ? last : job.height);
    }
  });
}

void local_contrast_normalization(const LocalContrast& job, int64_t band_rows, int64_t begin, int64_t end) {
  bands<Forward>(job, band_rows, begin, end);
}

void local_contrast_normalization_backward(const LocalContrast& job, int64_t band_rows, int64_t begin, int64_t end) {
  bands<Backward>(job, band_rows, begin, end);
}

}  // namespace fastpose::FASTPOSE_SIMD
