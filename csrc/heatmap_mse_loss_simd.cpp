#include "heatmap_mse_loss.h"

#include "gaussian_simd.h"

namespace fastpose::FASTPOSE_SIMD {

template <typename A> static A weight_of(const HeatmapMSELoss& job, int64_t b, int64_t k, bool labelled) {
  if (job.ignore_unlabelled && !labelled) return A(0);
  return job.weights ? static_cast<const A*>(job.weights)[b * job.gaussians.joints + k] : A(1);
}

// ---- targets: at(y, x) is columns x .. x+kLanes-1 of row y -----------------------------------------------------------

template <typename A> struct DrawnTarget {
  const A* rows;
  int64_t length;
  Vec<A> at(int64_t y, int64_t x) const { return load(rows + y * length + x); }
};

// One person in a square window, the rule in training: the target is a product, cheaper to form than to store and load.
template <typename A> struct SeparableTarget {
  const A *x_factor, *y_factor;
  A amplitude, offset;
  Vec<A> at(int64_t y, int64_t x) const { return load(x_factor + x) * (y_factor[y] * amplitude) + offset; }
};

// The same with the joints innermost; see GaussianPixels.
template <typename A> struct SeparableTiles {
  const A *x_factor, *y_factor;
  int64_t length;
  A offset;
  Vec<A> at(int64_t tile, int64_t i) const { return load(x_factor + tile * length + i) * load(y_factor + i) + offset; }
};

// ---- one strip -------------------------------------------------------------------------------------------------------

// Some rows of one stack, `elements` in rows of `width` or, the last one, fewer.
template <typename T> struct Strip {
  const T* prediction;
  int64_t row, column;  // strides
  T* gradient;          // null: none is wanted
  int64_t gradient_row, gradient_column;
  int64_t elements, width;
  bool streams;
};

// Writes the strip's gradient and returns its weighted squares. `weight` has one number for each column; unless kWeighted all are 1.
template <bool kWeighted, typename T, typename Target, typename A = Accumulator<T>>
static A strip_loss(const Strip<T>& strip, const Target& target, const A* weight, A gradient_scale) {
  constexpr int kSums = 4;  // vectors at a time, each with a sum that waits for itself only
  constexpr int64_t kAhead = ahead<T>();
  auto gradient_of = [&](Vec<A> d, int64_t x, Vec<A>& sum) {
    if constexpr (!kWeighted) {
      sum += d * d;
      return d * gradient_scale;
    }
    const Vec<A> w = load(weight + x);
    d = w == A(0) ? Vec<A>{} : d;  // 0 times NaN would be NaN
    sum += w * d * d;
    return w * d * gradient_scale;
  };
  const bool dense = strip.column == 1 && (!strip.gradient || strip.gradient_column == 1);
  const T* prediction = strip.prediction;
  T* gradient = strip.gradient;
  Vec<A> sums[kSums]{};
  for (int64_t y = 0, left = strip.elements; left > 0; ++y, left -= strip.width) {
    const int64_t width = left < strip.width ? left : strip.width, whole = dense ? width - (kSums * kLanes - 1) : 0;
    const bool streams = strip.streams && reinterpret_cast<uintptr_t>(gradient) % (kLanes * sizeof(T)) == 0;
    int64_t x = 0;
    for (; x < whole; x += kSums * kLanes) {
      Vec<A> v[kSums];
      for (int i = 0; i < kSums; ++i)
        v[i] = gradient_of(load(prediction + x + i * kLanes) - target.at(y, x + i * kLanes), x + i * kLanes, sums[i]);
      constexpr int kLine = 64 / int(sizeof(T));
      for (int64_t i = kAhead; i < kAhead + kSums * kLanes; i += kLine) __builtin_prefetch(prediction + x + i);
      if (!gradient) continue;
      if (streams) {
        for (int i = 0; i < kSums; ++i) stream(v[i], gradient + x + i * kLanes);
        continue;
      }
      for (int64_t i = kAhead; i < kAhead + kSums * kLanes; i += kLine) __builtin_prefetch(gradient + x + i, 1);
      for (int i = 0; i < kSums; ++i) store(v[i], gradient + x + i * kLanes);
    }
    for (; x < width; x += kLanes) {
      const Vec<A> t = iota<A>() + A(x) < A(width) ? target.at(y, x) : Vec<A>{};
      const Vec<A> v = gradient_of(load_columns(prediction, x, width, strip.column, A(0)) - t, x, sums[0]);
      if (gradient) store_columns(v, gradient, x, width, strip.gradient_column);
    }
    prediction += strip.row;
    if (gradient) gradient += strip.gradient_row;
  }
  return horizontal_sum<A>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// So many elements are drawn at a time, to serve all stacks from the cache, and summed before the sum is widened to double.
constexpr int64_t kBand = 128 * kLanes;

template <typename T> static void planes(const HeatmapMSELoss& job, double* out, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const Gaussians& g = job.gaussians;
  const int64_t length = padded(g.width), band = length < kBand ? kBand / length : 1, parts = g.batch * g.joints;
  GaussianRows<A> rows(g);
  Scratch<A> drawn(length * band), nothing(length);
  for (int64_t x = 0; x < length; ++x) nothing.data[x] = A(0);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t b = plane / g.joints, k = plane % g.joints, labelled = rows.start(b, k);
    const A w = weight_of<A>(job, b, k, labelled > 0), gradient_scale = A(job.gradient_scale) * w;
    const bool separable = labelled == 1 && !g.circular;
    for (int64_t s = 0; s < job.stack_count; ++s) out[s * parts + plane] = 0;
    for (int64_t y = 0; y < g.height; y += band) {
      const int64_t count = y + band < g.height ? band : g.height - y;
      for (int64_t i = 0; i < count && !separable; ++i) rows.row(y + i, drawn.data + i * length);
      for (int64_t s = 0; s < job.stack_count; ++s) {
        const Maps &p = job.stacks[s].prediction, &q = job.stacks[s].gradient;
        const Strip<T> strip{p.plane<T>(b, k) + y * p.row, p.row, p.column,
                             q.data ? q.plane<T>(b, k) + y * q.row : nullptr, q.row, q.column, count * g.width, g.width,
                             job.streams};
        auto loss = [&](const auto& target) -> double {
          if (w == A(0)) return strip_loss<true>(strip, target, nothing.data, A(0));
          return w * strip_loss<false>(strip, target, nothing.data, gradient_scale);
        };
        if (separable) {
          const Person<A>& person = rows.person(0);
          out[s * parts + plane] += loss(SeparableTarget<A>{person.x.value, person.y.value + y, A(g.amplitude), A(g.offset)});
        } else {
          out[s * parts + plane] += loss(DrawnTarget<A>{drawn.data, length});
        }
      }
    }
  }
}

// ---- joints innermost ------------------------------------------------------------------------------------------------

// The target of a sample whose joints lie innermost: element x * K + k of row y. Tiles of kLanes pixels are whole vectors whatever
// K is. A pixel's joints are written kLanes at a time, and what that writes past the pixel is overwritten by the next one.
template <typename A> class GaussianPixels {
 public:
  explicit GaussianPixels(const Gaussians& g)
      : tile(g.joints * kLanes), x_length(g.width * g.joints + kLanes), y_length(g.height * g.joints + kLanes), g_(g),
        joints_(padded(g.joints)), x_(g.people * x_length), y_(g.people * y_length), tile_(tile + kLanes),
        centre_x_(g.people * joints_), centre_y_(g.people * joints_), scale_(joints_), peak_(joints_) {}

  const int64_t tile, x_length, y_length;  // elements of a tile, of a row, of a column, the last two with room to write past

  // Prepares sample b; labelled[k] is how many people are labelled for joint k.
  void start(int64_t b, int64_t* labelled) {
    for (int64_t k = 0; k < g_.joints; ++k) labelled[k] = 0;
    for (int64_t p = 0; p < g_.people; ++p) {
      A *centre_x = centre_x_.data + p * joints_, *centre_y = centre_y_.data + p * joints_;
      for (int64_t k = 0; k < joints_; ++k) {
        Centre<A> c{0, 0, 1, false};
        if (k < g_.joints) c = centre_of<A>(g_, b, p, k);
        centre_x[k] = c.labelled ? c.x : A(0);
        centre_y[k] = c.labelled ? c.y : A(0);
        scale_.data[k] = c.labelled ? A(-0.5) / (c.sigma * c.sigma) : A(0);
        peak_.data[k] = c.labelled ? A(1) : A(0);
        if (c.labelled) ++labelled[k];
      }
      fill(x_.data + p * x_length, centre_x, g_.width);
      fill(y_.data + p * y_length, centre_y, g_.height);
    }
  }

  // Row y of a single person in a square window.
  SeparableTiles<A> tiles(int64_t y) {
    for (int64_t i = 0; i < kLanes; ++i)
      for (int64_t k = 0; k < g_.joints; k += kLanes)
        store(load(y_.data + y * g_.joints + k) * A(g_.amplitude), tile_.data + i * g_.joints + k);
    return {x_.data, tile_.data, tile, A(g_.offset)};
  }

  // Row y in general, into out[0 .. x_length).
  DrawnTarget<A> draw(int64_t y, A* out) const {
    const A radius = A(g_.radius);
    for (int64_t x = 0; x < g_.width; ++x) {
      for (int64_t k = 0; k < g_.joints; k += kLanes) {
        Vec<A> v{};
        for (int64_t p = 0; p < g_.people; ++p) {
          const Vec<A> gx = load(x_.data + p * x_length + x * g_.joints + k), gy = load(y_.data + p * y_length + y * g_.joints + k);
          Vec<A> one = gx * gy;
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
    return {out, tile};
  }

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
  Scratch<A> x_, y_, tile_, centre_x_, centre_y_, scale_, peak_;
};

template <typename T> static void samples(const HeatmapMSELoss& job, double* out, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const Gaussians& g = job.gaussians;
  GaussianPixels<A> pixels(g);
  Scratch<A> drawn(pixels.x_length), weight(pixels.tile);
  Scratch<int64_t> labelled(g.joints);
  for (int64_t b = begin; b < end; ++b) {
    pixels.start(b, labelled.data);
    for (int64_t i = 0; i < pixels.tile; ++i)
      weight.data[i] = weight_of<A>(job, b, i % g.joints, labelled.data[i % g.joints] > 0);
    for (int64_t s = 0; s < job.stack_count; ++s) out[s * g.batch + b] = 0;
    for (int64_t y = 0; y < g.height; ++y) {
      auto all_stacks = [&](auto target) {
        for (int64_t s = 0; s < job.stack_count; ++s) {
          const Maps &p = job.stacks[s].prediction, &q = job.stacks[s].gradient;
          const Strip<T> strip{p.plane<T>(b, 0) + y * p.row, pixels.tile, 1,
                               q.data ? q.plane<T>(b, 0) + y * q.row : nullptr, pixels.tile, 1,
                               g.width * g.joints, pixels.tile, job.streams};
          out[s * g.batch + b] += strip_loss<true>(strip, target, weight.data, A(job.gradient_scale));
        }
      };
      if (g.people == 1 && !g.circular) all_stacks(pixels.tiles(y));
      else all_stacks(pixels.draw(y, drawn.data));
    }
  }
}

template <typename T> static void scale(const HeatmapMSELossScale& job, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const T* saved = static_cast<const T*>(job.saved);
  T* gradient = static_cast<T*>(job.gradient);
  const A factor = job.multiplier<A>();
  for (int64_t i = begin; i < end; i += kLanes)
    store_columns(load_columns(saved, i, end, 1, A(0)) * factor, gradient, i, end, 1);
}

void heatmap_mse_loss_planes(const HeatmapMSELoss& job, double* sums, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) { planes<T>(job, sums, begin, end); });
  if (job.streams) end_stream();
}

void heatmap_mse_loss_samples(const HeatmapMSELoss& job, double* sums, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) { samples<T>(job, sums, begin, end); });
  if (job.streams) end_stream();
}

void heatmap_mse_loss_scale(const HeatmapMSELossScale& job, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) { scale<T>(job, begin, end); });
}

}  // namespace fastpose::FASTPOSE_SIMD
