#include "gaussian_conv2d.h"

#include "simd.h"

namespace fastpose::FASTPOSE_SIMD {

// ---- a tile of a product of matrices ----------------------------------------------------------------------------------------

constexpr int kRows = 6, kVectors = 2;  // as many sums as there are registers
constexpr int64_t kColumns = kVectors * kLanes;

template <typename A> using Tile = Vec<A>[kRows][kVectors];

// tile = sum over n of left[n][row] right[n][column]
template <typename A> static inline void multiply(const A* left, const A* right, int64_t n, Tile<A>& tile) {
  for (auto& row : tile)
    for (Vec<A>& sum : row) sum = Vec<A>{};
  for (int64_t i = 0; i < n; ++i, left += kRows, right += kColumns)
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) tile[r][v] += left[r] * load(right + v * kLanes);
}

static int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// ---- the factors of a sample --------------------------------------------------------------------------------------------------

template <typename A> class Factors {
 public:
  explicit Factors(const GaussianConv& job)
      : job_(job), rows_length_(job.gaussians.height + 2 * job.padding), columns_length_(job.gaussians.width + 2 * job.padding),
        pitch_(blocks_of(job.width, kColumns) * kColumns), joints_(job.gaussians.joints + 1),
        rows_((job.gaussians.joints + 1) * rows_length_), columns_(columns_length_),
        shifted_((job.gaussians.joints + 1) * job.kernel_width * pitch_) {}

  // Takes up sample b; returns how many joints it has, the constant one last.
  int64_t start(int64_t b) {
    count_ = 0;
    for (int64_t k = 0; k < job_.gaussians.joints; ++k) {
      const Centre<A> c = centre_of<A>(job_.gaussians, b, 0, k);
      if (!c.labelled) continue;
      const A scale = A(-0.5) / (c.sigma * c.sigma), amplitude = A(job_.gaussians.amplitude);
      append(k, [&](Vec<A> x) { return exp((x - c.x) * (x - c.x) * scale); },
             [&](Vec<A> y) { return exp((y - c.y) * (y - c.y) * scale) * amplitude; });
    }
    if (job_.has_constant())
      append(job_.gaussians.joints, [&](Vec<A>) { return splat(A(1)); }, [&](Vec<A>) { return splat(A(job_.gaussians.offset)); });
    return count_;
  }

  int64_t terms() const { return count_ * job_.kernel_height; }
  int64_t joint(int64_t i) const { return joints_.data[i]; }  // of the i-th that is there
  int64_t pitch() const { return pitch_; }
  // gy of the i-th joint for output row y and kernel row dy.
  A row(int64_t i, int64_t y, int64_t dy) const { return rows_.data[i * rows_length_ + y * job_.stride + dy]; }
  // gx of the i-th joint under kernel column dx, for all output columns.
  const A* columns(int64_t i, int64_t dx) const { return shifted_.data + (i * job_.kernel_width + dx) * pitch_; }

 private:
  template <typename X, typename Y> void append(int64_t joint, X&& along, Y&& down) {
    fill(columns_.data, columns_length_, along);
    fill(rows_.data + count_ * rows_length_, rows_length_, down);
    for (int64_t dx = 0; dx < job_.kernel_width; ++dx) {
      A* shifted = shifted_.data + (count_ * job_.kernel_width + dx) * pitch_;
      for (int64_t x = 0; x < pitch_; ++x) shifted[x] = x < job_.width ? columns_.data[x * job_.stride + dx] : A(0);
    }
    joints_.data[count_++] = joint;
  }

  template <typename F> void fill(A* factors, int64_t length, F&& f) {
    for (int64_t i = 0; i < length; i += kLanes) {
      const Vec<A> at = iota<A>() + A(i - job_.padding);
      const Vec<A> inside = at < A(0) ? Vec<A>{} : at < A(length - 2 * job_.padding) ? f(at) : Vec<A>{};
      store_columns(inside, factors, i, length, 1);
    }
  }

  const GaussianConv& job_;
  int64_t rows_length_, columns_length_, pitch_, count_ = 0;
  Scratch<int64_t> joints_;
  Scratch<A> rows_, columns_, shifted_;
};

// The weights of channel o, and their sums over the joints behind them.
template <typename T, typename A = Accumulator<T>> class Weights {
 public:
  explicit Weights(const GaussianConv& job) : job_(job), size_(job.kernel_height * job.kernel_width), values_((job.gaussians.joints + 1) * size_) {}

  void start(int64_t o) {
    const int64_t joints = job_.gaussians.joints;
    const T* weight = static_cast<const T*>(job_.weight) + o * joints * size_;
    A* sums = values_.data + joints * size_;
    for (int64_t i = 0; i < size_; ++i) sums[i] = A(0);
    for (int64_t k = 0; k < joints; ++k)
      for (int64_t i = 0; i < size_; ++i) {
        values_.data[k * size_ + i] = widen(weight[k * size_ + i]);
        sums[i] += values_.data[k * size_ + i];
      }
  }
  A at(int64_t joint, int64_t dy, int64_t dx) const { return values_.data[joint * size_ + dy * job_.kernel_width + dx]; }

 private:
  const GaussianConv& job_;
  int64_t size_;
  Scratch<A> values_;
};

// ---- forward ----------------------------------------------------------------------------------------------------------------------

template <typename T> class Forward {
 public:
  using A = Accumulator<T>;
  explicit Forward(const GaussianConv& job)
      : job_(job), factors_(job), weights_(job), left_(blocks_of(job.height, kRows) * kRows * most_terms(job)),
        right_(most_terms(job) * kColumns) {}

  void start(int64_t b) {
    b_ = b;
    const int64_t joints = factors_.start(b);
    A* left = left_.data;
    for (int64_t y = 0; y < job_.height; y += kRows)
      for (int64_t i = 0; i < joints; ++i)
        for (int64_t dy = 0; dy < job_.kernel_height; ++dy)
          for (int64_t r = 0; r < kRows; ++r) *left++ = y + r < job_.height ? factors_.row(i, y + r, dy) : A(0);
  }

  void channel(int64_t o) {
    weights_.start(o);
    const int64_t terms = factors_.terms();
    const Maps &base = job_.base, &result = job_.result;
    for (int64_t x = 0; x < job_.width; x += kColumns) {
      pack_columns(x);
      for (int64_t y = 0; y < job_.height; y += kRows) {
        Tile<A> tile;
        multiply(left_.data + y * terms, right_.data, terms, tile);
        for (int64_t r = 0; r < kRows && y + r < job_.height; ++r) {
          const T* from = base.plane<const T>(b_, o) + (y + r) * base.row;
          T* to = result.plane<T>(b_, o) + (y + r) * result.row;
          for (int64_t v = 0; v < kVectors && x + v * kLanes < job_.width; ++v) {
            const int64_t at = x + v * kLanes;
            store_columns(load_columns(from, at, job_.width, base.column, A(0)) + tile[r][v], to, at, job_.width, result.column);
          }
        }
      }
    }
  }

 private:
  static int64_t most_terms(const GaussianConv& job) { return (job.gaussians.joints + 1) * job.kernel_height; }

  // R of all terms at kColumns output columns.
  void pack_columns(int64_t x) {
    A* right = right_.data;
    const int64_t joints = factors_.terms() / job_.kernel_height;
    for (int64_t i = 0; i < joints; ++i)
      for (int64_t dy = 0; dy < job_.kernel_height; ++dy, right += kColumns)
        for (int64_t v = 0; v < kVectors; ++v) {
          Vec<A> sum{};
          for (int64_t dx = 0; dx < job_.kernel_width; ++dx)
            sum += weights_.at(factors_.joint(i), dy, dx) * load(factors_.columns(i, dx) + x + v * kLanes);
          store(sum, right + v * kLanes);
        }
  }

  const GaussianConv& job_;
  Factors<A> factors_;
  Weights<T> weights_;
  Scratch<A> left_, right_;
  int64_t b_ = 0;
};

void gaussian_conv2d(const GaussianConv& job, int64_t begin, int64_t end) {
  const int64_t groups = blocks_of(job.channels, kConvChannels);
  for_dtype(job.dtype, [&]<typename T>(Type<T>) {
    Forward<T> forward(job);
    for (int64_t part = begin; part < end; ++part) {
      if (part == begin || part % groups == 0) forward.start(part / groups);
      const int64_t first = part % groups * kConvChannels;
      for (int64_t o = first; o < first + kConvChannels && o < job.channels; ++o) forward.channel(o);
    }
  });
}

// ---- backward ---------------------------------------------------------------------------------------------------------------------
// The gradient of weight(o, k, dy, dx) is sum_b sum_j gx_k(s j + dx - p) sum_i gy_k(s i + dy - p) gradient(o, i, j).

template <typename T> class Backward {
 public:
  using A = Accumulator<T>;
  explicit Backward(const GaussianConv& job)
      : job_(job), size_(job.kernel_height * job.kernel_width), joints_(job.gaussians.joints + 1), factors_(job),
        left_(blocks_of(joints_ * job.kernel_height, kRows) * kRows * job.height), right_(job.height * kColumns),
        sums_(kConvChannels * joints_ * size_) {}

  // Channels first .. last-1, summed over the samples in their order.
  void channels(int64_t first, int64_t last) {
    for (int64_t i = 0; i < kConvChannels * joints_ * size_; ++i) sums_.data[i] = Vec<A>{};
    for (int64_t b = 0; b < job_.gaussians.batch; ++b) {
      start(b);
      for (int64_t o = first; o < last; ++o)
        for (int64_t x = 0; x < job_.width; x += kColumns) add_columns(b, o, x, sums_.data + (o - first) * joints_ * size_);
    }
    A* to = static_cast<A*>(job_.weight_gradient) + first * joints_ * size_;
    for (int64_t i = 0; i < (last - first) * joints_ * size_; ++i) to[i] = horizontal_sum<A>(sums_.data[i]);
  }

 private:
  void start(int64_t b) {
    factors_.start(b);
    A* left = left_.data;
    for (int64_t t = 0; t < factors_.terms(); t += kRows)
      for (int64_t y = 0; y < job_.height; ++y)
        for (int64_t r = 0; r < kRows; ++r)
          *left++ = t + r < factors_.terms() ? factors_.row((t + r) / job_.kernel_height, y, (t + r) % job_.kernel_height) : A(0);
  }

  void add_columns(int64_t b, int64_t o, int64_t x, Vec<A>* sums) {
    for (int64_t y = 0; y < job_.height; ++y) {
      const T* row = job_.result.plane<const T>(b, o) + y * job_.result.row;
      for (int64_t v = 0; v < kVectors; ++v)
        store(load_columns(row, x + v * kLanes, job_.width, job_.result.column, A(0)), right_.data + y * kColumns + v * kLanes);
    }
    for (int64_t t = 0; t < factors_.terms(); t += kRows) {
      Tile<A> tile;
      multiply(left_.data + t * job_.height, right_.data, job_.height, tile);
      for (int64_t r = 0; r < kRows && t + r < factors_.terms(); ++r) {
        const int64_t i = (t + r) / job_.kernel_height, dy = (t + r) % job_.kernel_height;
        Vec<A>* sum = sums + factors_.joint(i) * size_ + dy * job_.kernel_width;
        for (int64_t dx = 0; dx < job_.kernel_width; ++dx)
          for (int64_t v = 0; v < kVectors; ++v) sum[dx] += tile[r][v] * load(factors_.columns(i, dx) + x + v * kLanes);
      }
    }
  }

  const GaussianConv& job_;
  int64_t size_, joints_;
  Factors<A> factors_;
  Scratch<A> left_, right_;
  Scratch<Vec<A>> sums_;
};

void gaussian_conv2d_backward(const GaussianConv& job, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) {
    Backward<T> backward(job);
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * kConvChannels, last = first + kConvChannels;
      backward.channels(first, last < job.channels ? last : job.channels);
    }
  });
}

}  // namespace fastpose::FASTPOSE_SIMD
