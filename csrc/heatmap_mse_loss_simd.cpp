#include "heatmap_mse_loss.h"

#include "gaussian_simd.h"

namespace fastpose::FASTPOSE_SIMD {

template <typename A> static A weight_of(const HeatmapMSELoss& job, int64_t b, int64_t k, bool labelled) {
  if (job.ignore_unlabelled && !labelled) return A(0);
  return job.weights ? static_cast<const A*>(job.weights)[b * job.gaussians.joints + k] : A(1);
}

// A row of n elements of one stack: writes its gradient, returns its weighted squares. Target and weight are padded to whole
// vectors; there the weight is 0.
template <typename T>
static Vec<double> row_loss(const T* prediction, int64_t stride, T* gradient, int64_t gradient_stride, int64_t n,
                            const Accumulator<T>* target, const Accumulator<T>* weight, Accumulator<T> gradient_scale) {
  using A = Accumulator<T>;
  Vec<A> sum{};
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec<A> w = load(weight + i);
    Vec<A> d = load_columns(prediction, i, n, stride, A(0)) - load(target + i);
    d = w == A(0) ? Vec<A>{} : d;  // 0 times NaN would be NaN
    sum += w * d * d;
    if (gradient) store_columns(w * d * gradient_scale, gradient, i, n, gradient_stride);
  }
  return __builtin_convertvector(sum, Vec<double>);
}

// The sums over one part, for all stacks.
class StackSums {
 public:
  explicit StackSums(int64_t stacks) : stacks_(stacks), sums_(stacks) {}
  void clear() {
    for (int64_t s = 0; s < stacks_; ++s) sums_.data[s] = Vec<double>{};
  }
  void add(int64_t s, Vec<double> v) { sums_.data[s] += v; }
  void store(double* out, int64_t part, int64_t parts) const {
    for (int64_t s = 0; s < stacks_; ++s) out[s * parts + part] = horizontal_sum<double>(sums_.data[s]);
  }

 private:
  int64_t stacks_;
  Scratch<Vec<double>> sums_;
};

template <typename T> static void planes(const HeatmapMSELoss& job, double* out, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const Gaussians& g = job.gaussians;
  GaussianRows<A> rows(g);
  Scratch<A> target(padded(g.width)), weight(padded(g.width));
  StackSums sums(job.stack_count);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t b = plane / g.joints, k = plane % g.joints;
    const A w = weight_of<A>(job, b, k, rows.start(b, k) > 0);
    for (int64_t x = 0; x < padded(g.width); ++x) weight.data[x] = x < g.width ? w : A(0);
    sums.clear();
    for (int64_t y = 0; y < g.height; ++y) {
      rows.row(y, target.data);
      for (int64_t s = 0; s < job.stack_count; ++s) {
        const Maps &p = job.stacks[s].prediction, &q = job.stacks[s].gradient;
        T* gradient = q.data ? q.plane<T>(b, k) + y * q.row : nullptr;
        sums.add(s, row_loss<T>(p.plane<T>(b, k) + y * p.row, p.column, gradient, q.column, g.width, target.data, weight.data,
                                A(job.gradient_scale)));
      }
    }
    sums.store(out, plane, g.batch * g.joints);
  }
}

// Rows of a sample's target with the joints innermost: element x * K + k. A pixel's joints are written kLanes at a time, past its
// end if K is no multiple of kLanes; the next pixel overwrites that.
template <typename A> class GaussianPixels {
 public:
  explicit GaussianPixels(const Gaussians& g)
      : g_(g), joints_(padded(g.joints)), x_(g.people * length(g.width)), y_(g.people * length(g.height)),
        centre_x_(g.people * joints_), centre_y_(g.people * joints_), scale_(joints_), peak_(joints_) {}

  // Prepares sample b; labelled[k] is how many people are labelled for joint k.
  void start(int64_t b, int64_t* labelled) {
    for (int64_t k = 0; k < joints_; ++k) labelled[k] = 0;
    for (int64_t p = 0; p < g_.people; ++p) {
      A *cx = centre_x_.data + p * joints_, *cy = centre_y_.data + p * joints_;
      for (int64_t k = 0; k < joints_; ++k) {
        Centre<A> c{0, 0, 1, false};
        if (k < g_.joints) c = centre_of<A>(g_, b, p, k);
        cx[k] = c.labelled ? c.x : A(0);
        cy[k] = c.labelled ? c.y : A(0);
        scale_.data[k] = c.labelled ? A(-0.5) / (c.sigma * c.sigma) : A(0);
        peak_.data[k] = c.labelled ? A(1) : A(0);
        labelled[k] += c.labelled;
      }
      fill(x_.data + p * length(g_.width), cx, g_.width);
      fill(y_.data + p * length(g_.height), cy, g_.height);
    }
  }

  void row(int64_t y, A* out) const {
    const A radius = A(g_.radius);
    for (int64_t x = 0; x < g_.width; ++x) {
      for (int64_t k = 0; k < g_.joints; k += kLanes) {
        Vec<A> v{};
        for (int64_t p = 0; p < g_.people; ++p) {
          Vec<A> one = load(x_.data + p * length(g_.width) + x * g_.joints + k) *
                       load(y_.data + p * length(g_.height) + y * g_.joints + k);
          if (g_.circular) {
            const Vec<A> dx = splat(A(x)) - load(centre_x_.data + p * joints_ + k);
            const Vec<A> dy = splat(A(y)) - load(centre_y_.data + p * joints_ + k);
            one = dx * dx + dy * dy <= radius * radius ? one : Vec<A>{};
          }
          v = g_.add ? v + one : max(v, one);
        }
        store(min(v, splat(A(1))) * A(g_.amplitude) + A(g_.offset), out + x * g_.joints + k);
      }
    }
  }

  int64_t length(int64_t positions) const { return positions * g_.joints + kLanes; }

 private:
  void fill(A* value, const A* centre, int64_t positions) {
    for (int64_t i = 0; i < positions; ++i) {
      for (int64_t k = 0; k < g_.joints; k += kLanes) {
        const Vec<A> d = splat(A(i)) - load(centre + k);
        Vec<A> v = exp(d * d * load(scale_.data + k)) * load(peak_.data + k);
        if (!g_.circular) v = max(d, -d) <= A(g_.radius) ? v : Vec<A>{};
        store(v, value + i * g_.joints + k);
      }
    }
  }

  const Gaussians& g_;
  int64_t joints_;
  Scratch<A> x_, y_, centre_x_, centre_y_, scale_, peak_;
};

template <typename T> static void samples(const HeatmapMSELoss& job, double* out, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const Gaussians& g = job.gaussians;
  const int64_t n = g.width * g.joints;
  GaussianPixels<A> pixels(g);
  Scratch<A> target(pixels.length(g.width)), weight(padded(n));
  Scratch<int64_t> labelled(padded(g.joints));
  StackSums sums(job.stack_count);
  for (int64_t b = begin; b < end; ++b) {
    pixels.start(b, labelled.data);
    for (int64_t k = 0; k < g.joints; ++k) {
      const A w = weight_of<A>(job, b, k, labelled.data[k] > 0);
      for (int64_t x = 0; x < g.width; ++x) weight.data[x * g.joints + k] = w;
    }
    for (int64_t i = n; i < padded(n); ++i) weight.data[i] = A(0);
    sums.clear();
    for (int64_t y = 0; y < g.height; ++y) {
      pixels.row(y, target.data);
      for (int64_t s = 0; s < job.stack_count; ++s) {
        const Maps &p = job.stacks[s].prediction, &q = job.stacks[s].gradient;
        T* gradient = q.data ? q.plane<T>(b, 0) + y * q.row : nullptr;
        sums.add(s, row_loss<T>(p.plane<T>(b, 0) + y * p.row, 1, gradient, 1, n, target.data, weight.data, A(job.gradient_scale)));
      }
    }
    sums.store(out, b, g.batch);
  }
}

template <typename T> static void scale(const HeatmapMSELossScale& job, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const T* saved = static_cast<const T*>(job.saved);
  T* gradient = static_cast<T*>(job.gradient);
  for (int64_t i = begin; i < end; i += kLanes)
    store_columns(load_columns(saved, i, end, 1, A(0)) * A(job.factor), gradient, i, end, 1);
}

void heatmap_mse_loss_planes(const HeatmapMSELoss& job, double* sums, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) { planes<T>(job, sums, begin, end); });
}

void heatmap_mse_loss_samples(const HeatmapMSELoss& job, double* sums, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) { samples<T>(job, sums, begin, end); });
}

void heatmap_mse_loss_scale(const HeatmapMSELossScale& job, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) { scale<T>(job, begin, end); });
}

}  // namespace fastpose::FASTPOSE_SIMD
