// A block walks down a strip of columns, one thread a column, with the last rows of the sums in shared memory: every image row comes
// from memory once, and twice more from the cache. Sums down a column are its thread's own; those along a row need the neighbours.
#pragma once
#include "device.cuh"
#include "local_contrast_normalization.h"

namespace fastpose {

constexpr int kStripThreads = 128;
constexpr int kStripRows = 64;

// Columns that a block brings to an end: the others, half a window twice on either side, are there for their sums.
inline int64_t strip_columns(const LocalContrast& job) { return kStripThreads - 4 * (job.size / 2); }
inline int64_t strip_count(const LocalContrast& job) {
  return job.batch * divide_up(job.height, kStripRows) * divide_up(job.width, strip_columns(job));
}

// In float, and the window mirrored for the backward pass.
struct StripWeights {
  float plain[kMaxWindow], window[kMaxWindow];
};
inline StripWeights strip_weights(const LocalContrast& job, bool mirrored) {
  StripWeights weights{};
  for (int64_t i = 0; i < job.size; ++i) {
    weights.plain[i] = float(job.weights[i]);
    weights.window[i] = float(job.weights[mirrored ? job.size - 1 - i : i]);
  }
  return weights;
}

// Where a block and a thread are.
struct Strip {
  int64_t b;
  int first, last;  // rows to be brought to an end
  int column;       // of the thread, may lie outside of the image
  int half;
  bool inside, middle, inner;  // of the image; the column has a mean; it is brought to an end

  __device__ __forceinline__ explicit Strip(const LocalContrast& job) : half(int(job.size / 2)) {
    const int columns = kStripThreads - 4 * half;
    const int64_t across = (job.width + columns - 1) / columns, down = (job.height + kStripRows - 1) / kStripRows;
    b = blockIdx.x / (across * down);
    first = int(blockIdx.x / across % down) * kStripRows;
    last = int(min(int64_t(first + kStripRows), job.height)) - 1;
    const int thread = int(threadIdx.x);
    column = int(blockIdx.x % across) * columns + thread - 2 * half;
    inside = column >= 0 && column < job.width;
    middle = inside && thread >= half && thread < kStripThreads - half;
    inner = inside && thread >= 2 * half && thread < kStripThreads - 2 * half;
  }
};

// The window's weight in the image around place i of an axis.
__device__ __forceinline__ float share_of(const StripWeights& weights, int half, int i, int64_t length) {
  float share = 0;
  for (int d = -half; d <= half; ++d)
    if (i + d >= 0 && i + d < length) share += weights.plain[half + d];
  return share;
}

// One of the two windows: its last rows, and the row of sums down the columns that is summed along next.
template <int kSize> struct StripWindow {
  float rows[kSize][kStripThreads];
  float down[kStripThreads];
};

// The thread's own sum down its column around row y.
template <int kSize>
__device__ __forceinline__ float sum_down(const StripWeights& weights, const StripWindow<kSize>& window, int half, int y, int64_t height) {
  const int size = 2 * half + 1, first = y < half ? -y : -half, last = int(min(int64_t(half), height - 1 - y));
  int slot = (y + first) % size;
  float sum = 0;
  for (int d = first; d <= last; ++d) {
    sum = fmaf(weights.window[half + d], window.rows[slot][threadIdx.x], sum);
    slot = slot + 1 < size ? slot + 1 : 0;
  }
  return sum;
}

template <int kSize>
__device__ __forceinline__ float sum_along(const StripWeights& weights, const StripWindow<kSize>& window, int half) {
  float sum = 0;
  for (int d = -half; d <= half; ++d) sum = fmaf(weights.window[half + d], window.down[int(threadIdx.x) + d], sum);
  return sum;
}

// first(y) gives what the first window sums, second(y, its sum) what the second one sums, and third(y, its sum) ends a row.
template <int kSize, typename F, typename G, typename H>
__device__ __forceinline__ void down_the_rows(const LocalContrast& job, const StripWeights& weights, const Strip& s, F&& first,
                                              G&& second, H&& third) {
  __shared__ StripWindow<kSize> a, b;
  const int size = int(job.size);
  for (int y = s.first - 2 * s.half; y <= s.last + 2 * s.half; ++y) {
    const int p = y - s.half, r = y - 2 * s.half;
    if (y >= 0 && y < job.height) a.rows[y % size][threadIdx.x] = s.inside ? first(y) : 0.0f;
    const bool has_second = p >= 0 && p < job.height && p >= s.first - s.half && p <= s.last + s.half;
    if (has_second) a.down[threadIdx.x] = sum_down(weights, a, s.half, p, job.height);
    __syncthreads();
    if (has_second) b.rows[p % size][threadIdx.x] = s.middle ? second(p, sum_along(weights, a, s.half)) : 0.0f;
    if (r >= s.first) b.down[threadIdx.x] = sum_down(weights, b, s.half, r, job.height);
    __syncthreads();
    if (r >= s.first && s.inner) third(r, sum_along(weights, b, s.half));
  }
}

template <typename T> __device__ __forceinline__ T* pixel_of(const Maps& m, int64_t b, int y, int x) {
  return m.plane<T>(b, 0) + y * m.row + x * m.column;
}

// Bytes: the images read, the result written; with a gradient to come, two numbers a pixel more.
template <typename T, int kSize>
__global__ void __launch_bounds__(kStripThreads) local_contrast_normalization_kernel(LocalContrast job, StripWeights weights) {
  __shared__ float means[kSize][kStripThreads];
  const Strip s(job);
  const int size = int(job.size), channels = int(job.channels), x = s.column;
  const float part = 1.0f / float(channels), column_share = share_of(weights, s.half, x, job.width), threshold = float(job.threshold);
  auto sum_channels = [&](int y) {
    const T* p = pixel_of<const T>(job.images, s.b, y, x);
    float sum = 0;
    for (int c = 0; c < channels; ++c) sum += widen(p[c * job.images.joint]);
    return sum * part;
  };
  auto subtract = [&](int y, float sum) {
    const float mean = sum / (column_share * share_of(weights, s.half, y, job.height));
    means[y % size][threadIdx.x] = mean;
    const T* p = pixel_of<const T>(job.images, s.b, y, x);
    float square = 0;
    for (int c = 0; c < channels; ++c) {
      const float v = widen(p[c * job.images.joint]) - mean;
      square = fmaf(v, v, square);
    }
    return square * part;
  };
  auto divide = [&](int y, float sum) {
    const float share = column_share * share_of(weights, s.half, y, job.height), mean = means[y % size][threadIdx.x];
    const float root = sqrtf(sum / (job.even ? share : share * share)), deviation = root > threshold ? root : threshold;
    const T* p = pixel_of<const T>(job.images, s.b, y, x);
    T* q = pixel_of<T>(job.result, s.b, y, x);
    const float scale = 1.0f / deviation;
    for (int c = 0; c < channels; ++c) narrow((widen(p[c * job.images.joint]) - mean) * scale, q + c * job.result.joint);
    if (!job.mean) return;
    const int64_t at = (s.b * job.height + y) * job.width + x;
    static_cast<float*>(job.mean)[at] = mean;
    static_cast<float*>(job.deviation)[at] = deviation;
  };
  down_the_rows<kSize>(job, weights, s, sum_channels, subtract, divide);
}

// Bytes: images, their gradient and two numbers a pixel read, the gradient written.
template <typename T, int kSize>
__global__ void __launch_bounds__(kStripThreads) local_contrast_normalization_backward_kernel(LocalContrast job, StripWeights weights) {
  __shared__ float terms[kSize][kStripThreads];
  const Strip s(job);
  const int size = int(job.size), channels = int(job.channels), x = s.column;
  const float part = 1.0f / float(channels), column_share = share_of(weights, s.half, x, job.width), threshold = float(job.threshold);
  auto saved = [&](const void* maps, int y) { return static_cast<const float*>(maps)[(s.b * job.height + y) * job.width + x]; };
  auto for_channels = [&](int y, auto&& f) {
    const T *p = pixel_of<const T>(job.images, s.b, y, x), *g = pixel_of<const T>(job.gradient, s.b, y, x);
    const float mean = saved(job.mean, y);
    for (int c = 0; c < channels; ++c) f(c, widen(g[c * job.gradient.joint]), widen(p[c * job.images.joint]) - mean);
  };
  auto slope_of_variance = [&](int y) {
    float sum = 0;
    for_channels(y, [&](int, float g, float v) { sum = fmaf(g, v, sum); });
    const float share = column_share * share_of(weights, s.half, y, job.height), deviation = saved(job.deviation, y);
    const float scale = 1.0f / deviation, slope = -0.5f * sum / (job.even ? share : share * share) * scale * scale * scale;
    return deviation > threshold ? slope : 0.0f;
  };
  auto sum_channels = [&](int y, float slope) {
    const float term = slope * (2 * part);
    terms[y % size][threadIdx.x] = term;
    float gradient = 0, value = 0;
    for_channels(y, [&](int, float g, float v) {
      gradient += g;
      value += v;
    });
    return (gradient / saved(job.deviation, y) + term * value) * part / (column_share * share_of(weights, s.half, y, job.height));
  };
  auto finish = [&](int y, float sum) {
    const float term = terms[y % size][threadIdx.x], scale = 1.0f / saved(job.deviation, y);
    T* q = pixel_of<T>(job.result, s.b, y, x);
    for_channels(y, [&](int c, float g, float v) { narrow(g * scale + term * v - sum, q + c * job.result.joint); });
  };
  down_the_rows<kSize>(job, weights, s, slope_of_variance, sum_channels, finish);
}

}  // namespace fastpose
