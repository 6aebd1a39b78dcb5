#pragma once
#include "device.cuh"
#include "soft_argmax2d.h"

namespace fastpose {

// ---- accumulation by one thread -------------------------------------------------------------------------------------------

// A thread's pixels. The sums are about the place of the largest value so far, and move with it: then the squares of a peaked map
// stay small and do not cancel.
template <bool kCovariance> struct Accumulated {
  float max = -INFINITY;
  int x = 0, y = 0;
  float weight = 0, wx = 0, wy = 0, xx = 0, yy = 0, xy = 0;

  // A new largest value at (new_x, new_y): weights shrink to be relative to it, sums move there.
  __device__ __forceinline__ void move(float new_max, int new_x, int new_y, float sharpness) {
    const float shrink = weight == 0 ? 0.0f : exp2f(sharpness * (max - new_max));
    const float dx = float(new_x - x), dy = float(new_y - y);
    if (kCovariance) {
      xx = shrink * (xx + dx * (dx * weight - 2 * wx));
      yy = shrink * (yy + dy * (dy * weight - 2 * wy));
      xy = shrink * (xy + dx * (dy * weight - wy) - dy * wx);
    }
    wx = shrink * (wx - dx * weight);
    wy = shrink * (wy - dy * weight);
    weight *= shrink;
    max = new_max;
    x = new_x;
    y = new_y;
  }

  // V neighbouring columns of row `row`, the first `count` of which exist.
  template <int V> __device__ __forceinline__ void add(const float* v, int column, int row, int count, float sharpness) {
    float largest = v[0];
#pragma unroll
    for (int e = 1; e < V; ++e) largest = fmaxf(largest, v[e]);  // NaN loses; it comes in by its weight
    if (largest > max) {
      int first = V - 1;
#pragma unroll
      for (int e = V - 2; e >= 0; --e) first = v[e] == largest ? e : first;
      move(largest, column + first, row, sharpness);
    }
    const float base = max == -INFINITY ? 0.0f : max;  // -inf - -inf would be NaN
    const float dx = float(column - x), dy = float(row - y);
    float sum = 0, along = 0, squared = 0;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const float w = e < count ? exp2f(sharpness * (v[e] - base)) : 0.0f;
      const float d = dx + float(e);  // not from the first column: the maximum itself, of weight 1, must add nothing
      sum += w;
      along = fmaf(w, d, along);
      if (kCovariance) squared = fmaf(w * d, d, squared);
    }
    weight += sum;
    wx += along;
    wy = fmaf(dy, sum, wy);
    if (kCovariance) {
      xx += squared;
      yy = fmaf(dy * dy, sum, yy);
      xy = fmaf(dy, along, xy);
    }
  }

  // These and the other pixels together, about the place of the larger maximum.
  __device__ __forceinline__ void merge(Accumulated other, float sharpness) {
    if (other.max > max || (other.max == max && (other.y < y || (other.y == y && other.x < x))))
      move(other.max, other.x, other.y, sharpness);
    else
      other.move(max, x, y, sharpness);
    weight += other.weight;
    wx += other.wx;
    wy += other.wy;
    if (!kCovariance) return;
    xx += other.xx;
    yy += other.yy;
    xy += other.xy;
  }

  // Lane 0 gets the pixels of the whole warp, always merged in the same order.
  __device__ __forceinline__ void merge_warp(float sharpness) {
#pragma unroll 1
    for (int offset = 16; offset; offset /= 2) {
      constexpr unsigned kAll = 0xffffffffu;
      Accumulated other;
      other.max = __shfl_xor_sync(kAll, max, offset);
      other.x = __shfl_xor_sync(kAll, x, offset);
      other.y = __shfl_xor_sync(kAll, y, offset);
      other.weight = __shfl_xor_sync(kAll, weight, offset);
      other.wx = __shfl_xor_sync(kAll, wx, offset);
      other.wy = __shfl_xor_sync(kAll, wy, offset);
      if (kCovariance) {
        other.xx = __shfl_xor_sync(kAll, xx, offset);
        other.yy = __shfl_xor_sync(kAll, yy, offset);
        other.xy = __shfl_xor_sync(kAll, xy, offset);
      }
      merge(other, sharpness);
    }
  }

  __device__ __forceinline__ void write(const SoftArgmax2d& job, int64_t plane) const {
    const float mx = wx / weight, my = wy / weight;
    const SoftmaxState<float> state{max, x, y, weight, mx, my, xx - mx * wx, yy - my * wy, xy - mx * wy};
    finish(job, plane, state);
  }
};

// Shared memory has no constructors to run: plain words that a T is read from and written to.
template <typename T> struct Words {
  uint32_t words[sizeof(T) / 4];
  __device__ __forceinline__ void operator=(const T& value) { memcpy(words, &value, sizeof(T)); }
  __device__ __forceinline__ operator T() const {
    T value;
    memcpy(&value, words, sizeof(T));
    return value;
  }
};

// ---- one block a plane ------------------------------------------------------------------------------------------------------

// Half precision brings twice the exponentials a byte: fewer threads with more to do each leave time for them.
template <typename T> constexpr int kSoftArgmaxThreads = sizeof(T) == 4 ? 128 : 64;
constexpr int kPacksInFlight = 4;

// Online softmax: every element read once, one exponential each. Bytes: the heatmaps.
template <typename T, bool kPacked, bool kCovariance>
__global__ void __launch_bounds__(kSoftArgmaxThreads<T>) soft_argmax2d_kernel(SoftArgmax2d job) {
  constexpr int V = kPack<T>, kThreads = kSoftArgmaxThreads<T>;
  const T* plane = job.heatmaps.plane<const T>(blockIdx.x / job.joints, blockIdx.x % job.joints);
  const float sharpness = sharpness_of<float>(job);
  const int packs = int((job.width + V - 1) / V), height = int(job.height);
  const int step_rows = kThreads / packs, step_packs = kThreads % packs;
  Accumulated<kCovariance> sums;
  for (int y = threadIdx.x / packs, pack = threadIdx.x % packs; y < height;) {
    float v[kPacksInFlight][V];
    int rows[kPacksInFlight], columns[kPacksInFlight];
#pragma unroll
    for (int i = 0; i < kPacksInFlight; ++i) {  // all loads on their way before the first is used
      rows[i] = y;
      columns[i] = pack * V;
      if (y < height) {
        const T* p = plane + y * job.heatmaps.row + columns[i] * job.heatmaps.column;
        if (kPacked) load_pack<T>(p, v[i]);
        else load_scattered<T>(p, job.heatmaps.column, int(min(int64_t(V), job.width - columns[i])), -INFINITY, v[i]);
      }
      y += step_rows;
      pack += step_packs;
      if (pack >= packs) {
        pack -= packs;
        ++y;
      }
    }
#pragma unroll
    for (int i = 0; i < kPacksInFlight; ++i)
      if (rows[i] < height)
        sums.template add<V>(v[i], columns[i], rows[i], kPacked ? V : int(min(int64_t(V), job.width - columns[i])), sharpness);
  }
  __shared__ Words<Accumulated<kCovariance>> warps[kThreads / 32];
  sums.merge_warp(sharpness);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sums;
  __syncthreads();
  if (threadIdx.x != 0) return;
#pragma unroll 1
  for (int i = 1; i < kThreads / 32; ++i) sums.merge(warps[i], sharpness);
  sums.write(job, int64_t(blockIdx.x));
}

// A thread's packs of one plane; blocks run over the plane's pieces, then planes.
constexpr int kBackwardThreads = 128;
template <typename T> constexpr int64_t kPacksPerBlock = kBackwardThreads * kPacksInFlight;

// w (constant + x dx + y dy + xx dx^2 + yy dy^2 + xy dx dy), see Slope. Bytes: heatmaps read once, gradient written once.
template <typename T, bool kPacked>
__global__ void __launch_bounds__(kBackwardThreads) soft_argmax2d_backward_kernel(SoftArgmax2dBackward job, int64_t pieces) {
  constexpr int V = kPack<T>;
  const SoftArgmax2d& f = job.forward;
  const int64_t plane = blockIdx.x / pieces, b = plane / f.joints, k = plane % f.joints;
  const T* heatmap = f.heatmaps.plane<const T>(b, k);
  T* gradient = job.gradient.plane<T>(b, k);
  const float sharpness = sharpness_of<float>(f);
  const Slope<float> s = slope_of<float>(job, plane);
  const float max = widen(s.at_peak(heatmap, f.heatmaps));
  const int64_t packs = (f.width + V - 1) / V, first = blockIdx.x % pieces * kPacksPerBlock<T> + threadIdx.x;
  float v[kPacksInFlight][V];
#pragma unroll
  for (int i = 0; i < kPacksInFlight; ++i) {
    const int64_t index = first + i * kBackwardThreads, y = index / packs, x = index % packs * V;
    if (y >= f.height) continue;
    const T* p = heatmap + y * f.heatmaps.row + x * f.heatmaps.column;
    if (kPacked) load_pack<T>(p, v[i]);
    else load_scattered<T>(p, f.heatmaps.column, int(min(int64_t(V), f.width - x)), 0.0f, v[i]);
  }
#pragma unroll
  for (int i = 0; i < kPacksInFlight; ++i) {
    const int64_t index = first + i * kBackwardThreads, y = index / packs, x = index % packs * V;
    if (y >= f.height) continue;
    const float dy = float(y) - s.mean_y;
    const float constant = s.constant + dy * (s.y + s.yy * dy), slope = s.x + s.xy * dy;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const float dx = float(x + e) - s.mean_x, w = exp2f(sharpness * (v[i][e] - max));
      const bool peak = y == s.peak_y && x + e == s.peak_x;
      v[i][e] = w * (constant + dx * (slope + s.xx * dx)) + (peak ? s.peak : 0.0f);
    }
    T* q = gradient + y * job.gradient.row + x * job.gradient.column;
    if (kPacked) store_pack<T>(v[i], q);
    else store_scattered<T>(v[i], q, job.gradient.column, int(min(int64_t(V), f.width - x)));
  }
}

// ---- joints innermost (channels_last) --------------------------------------------------------------------------------------------

// A block takes 16 joints of a sample in one part of the pixels: 16 / V threads share the joints of a pixel, `kLanes` the pixels.
constexpr int kJointThreads = 128, kJointGroup = 16;
constexpr int64_t kPixelsPerPart = 512;

template <int V> struct JointLanes {
  static constexpr int packs = kJointGroup / V, lanes = kJointThreads / packs;
  int64_t b, k, part;  // of the thread's first joint
  int pack, lane;

  __device__ __forceinline__ JointLanes(const SoftArgmax2d& job, int64_t parts) {
    const int64_t groups = (job.joints + kJointGroup - 1) / kJointGroup;
    pack = threadIdx.x % packs;
    lane = threadIdx.x / packs;
    k = blockIdx.x % groups * kJointGroup + pack * V;
    part = blockIdx.x / groups % parts;
    b = blockIdx.x / groups / parts;
  }
};

// Bytes: the heatmaps, read once; 36 B a joint and part written and read again.
template <typename T, bool kCovariance>
__global__ void __launch_bounds__(kJointThreads)
    soft_argmax2d_joints_kernel(SoftArgmax2d job, Accumulated<kCovariance>* states, int64_t parts) {
  constexpr int V = kPack<T>;
  using Lanes = JointLanes<V>;
  const Lanes at(job, parts);
  const float sharpness = sharpness_of<float>(job);
  const int64_t end = min((at.part + 1) * kPixelsPerPart, job.height * job.width);
  Accumulated<kCovariance> sums[V];
  if (at.k < job.joints) {
    const T* maps = job.heatmaps.plane<const T>(at.b, at.k);
    for (int64_t pixel = at.part * kPixelsPerPart + at.lane; pixel < end; pixel += Lanes::lanes) {
      const int y = int(pixel / job.width), x = int(pixel % job.width);
      float v[V];
      load_pack<T>(maps + y * job.heatmaps.row + x * job.heatmaps.column, v);
#pragma unroll
      for (int e = 0; e < V; ++e) sums[e].template add<1>(v + e, x, y, 1, sharpness);
    }
  }
  __shared__ Words<Accumulated<kCovariance>> lanes[kJointThreads];
#pragma unroll
  for (int e = 0; e < V; ++e) {
    lanes[threadIdx.x] = sums[e];
    for (int half = Lanes::lanes / 2; half; half /= 2) {
      __syncthreads();
      if (at.lane >= half) continue;
      sums[e].merge(lanes[threadIdx.x + half * Lanes::packs], sharpness);
      lanes[threadIdx.x] = sums[e];
    }
    if (at.lane == 0 && at.k < job.joints) states[(at.b * parts + at.part) * job.joints + at.k + e] = sums[e];
    __syncthreads();
  }
}

// One thread a plane merges its parts, first to last.
template <bool kCovariance>
__global__ void __launch_bounds__(kJointThreads)
    soft_argmax2d_parts_kernel(SoftArgmax2d job, const Accumulated<kCovariance>* states, int64_t parts) {
  const int64_t plane = int64_t(blockIdx.x) * kJointThreads + threadIdx.x;
  if (plane >= job.batch * job.joints) return;
  const Accumulated<kCovariance>* mine = states + plane / job.joints * parts * job.joints + plane % job.joints;
  Accumulated<kCovariance> sums = mine[0];
  for (int64_t part = 1; part < parts; ++part) sums.merge(mine[part * job.joints], sharpness_of<float>(job));
  sums.write(job, plane);
}

// Bytes: heatmaps read once, gradient written once.
template <typename T>
__global__ void __launch_bounds__(kJointThreads) soft_argmax2d_joints_backward_kernel(SoftArgmax2dBackward job, int64_t parts) {
  constexpr int V = kPack<T>;
  using Lanes = JointLanes<V>;
  const SoftArgmax2d& f = job.forward;
  const Lanes at(f, parts);
  __shared__ Slope<float> slopes[kJointGroup];
  if (threadIdx.x < kJointGroup) {
    const int64_t k = at.k - at.pack * V + threadIdx.x;
    if (k < f.joints) {
      slopes[threadIdx.x] = slope_of<float>(job, at.b * f.joints + k);
      slopes[threadIdx.x].max = widen(slopes[threadIdx.x].at_peak(f.heatmaps.plane<const T>(at.b, k), f.heatmaps));
    }
  }
  __syncthreads();
  if (at.k >= f.joints) return;
  const float sharpness = sharpness_of<float>(f);
  const T* heatmaps = f.heatmaps.plane<const T>(at.b, at.k);
  T* gradient = job.gradient.plane<T>(at.b, at.k);
  const int64_t end = min((at.part + 1) * kPixelsPerPart, f.height * f.width);
  for (int64_t pixel = at.part * kPixelsPerPart + at.lane; pixel < end; pixel += Lanes::lanes) {
    const int64_t y = pixel / f.width, x = pixel % f.width;
    float v[V];
    load_pack<T>(heatmaps + y * f.heatmaps.row + x * f.heatmaps.column, v);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const Slope<float>& s = slopes[at.pack * V + e];
      const float dx = float(x) - s.mean_x, dy = float(y) - s.mean_y, w = exp2f(sharpness * (v[e] - s.max));
      const bool peak = y == s.peak_y && x == s.peak_x;
      v[e] = w * (s.constant + dy * (s.y + s.yy * dy) + dx * (s.x + s.xy * dy + s.xx * dx)) + (peak ? s.peak : 0.0f);
    }
    store_pack<T>(v, gradient + y * job.gradient.row + x * job.gradient.column);
  }
}

}  // namespace fastpose
