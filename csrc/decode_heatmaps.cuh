#pragma once
#include "decode_heatmaps.h"
#include "device.cuh"

namespace fastpose {

constexpr int kSearchThreads = 128;

// Whether there is a flip test, and whether 16-byte packs of the flipped maps line up with the heatmaps' own.
enum class Flip { none, packs, elements };

// The float32 Plane and Team that the refinement in decode_heatmaps.h is written for.
template <typename T> class Plane {
 public:
  using Element = T;
  using Value = float;

  __device__ __forceinline__ Plane(const DecodeHeatmaps& job, int64_t b, int64_t k)
      : job_(job), map_(job.maps.plane<const T>(b, k)), flipped_joint_(flipped_joint(job, k)) {
    if (job.flipped.data) flipped_ = job.flipped.plane<const T>(b, flipped_joint_);
  }

  static __device__ __forceinline__ void store(float value, T* p) { narrow(value, p); }

  __device__ __forceinline__ bool exists() const { return flipped_joint_ >= 0; }

  __device__ __forceinline__ float at(int64_t y, int64_t x) const {
    float value = widen(map_[y * job_.maps.row + x * job_.maps.column]);
    if (flipped_) value = 0.5f * (value + flipped(y, x));
    return value != value ? -INFINITY : value;
  }

  __device__ __forceinline__ float columns(int64_t y, int64_t x, float fill) const {
    x += threadIdx.x % 32;
    return y >= 0 && y < job_.height && x >= 0 && x < job_.width ? at(y, x) : fill;
  }

  // Columns x .. x+V-1 of row y; V elements are one pack.
  template <int V, Flip kFlip> __device__ __forceinline__ void load(int64_t y, int64_t x, float* v) const {
    const T* row = map_ + y * job_.maps.row;
    if constexpr (V == 1) v[0] = widen(row[x * job_.maps.column]);
    else load_pack<T>(row + x, v);
    if constexpr (kFlip != Flip::none) {
      constexpr bool kPacks = kFlip == Flip::packs;
      float mirrored[V];
      if constexpr (kPacks) load_pack<T>(flipped_ + y * job_.flipped.row + flipped_column(job_, x) - (V - 1), mirrored);
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] = 0.5f * (v[e] + (kPacks ? mirrored[V - 1 - e] : flipped(y, x + e)));
    }
  }

 private:
  __device__ __forceinline__ float flipped(int64_t y, int64_t x) const {
    return widen(flipped_[y * job_.flipped.row + flipped_column(job_, x) * job_.flipped.column]);
  }

  const DecodeHeatmaps& job_;
  const T* map_;
  const T* flipped_ = nullptr;
  int64_t flipped_joint_;
};

struct WarpTeam {
  using Vector = float;
  static constexpr int64_t kWidth = 32;
  // With room behind, for sums along a row read past its end.
  static constexpr int64_t pitch(int64_t columns) { return (columns + 31) / 32 * 32 + 32; }
  static __device__ __forceinline__ float load(const float* p) { return p[threadIdx.x % 32]; }
  static __device__ __forceinline__ void store(float v, float* p) { p[threadIdx.x % 32] = v; }
  static __device__ __forceinline__ float exp(float v) { return expf(v); }
  static __device__ __forceinline__ float offsets() { return float(threadIdx.x % 32); }
  static __device__ __forceinline__ void sync() { __syncwarp(); }
  static __device__ __forceinline__ float sum(float v) {
#pragma unroll
    for (int offset = 16; offset; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
  }
};

// A candidate for the first maximum; the order of merging does not matter.
struct Candidate {
  float top;
  int64_t at;

  __device__ __forceinline__ void merge(float other_top, int64_t other_at) {
    if (other_top > top || (other_top == top && other_at < at)) {
      top = other_top;
      at = other_at;
    }
  }
  __device__ __forceinline__ void merge_warp() {
#pragma unroll
    for (int offset = 16; offset; offset /= 2)
      merge(__shfl_xor_sync(0xffffffffu, top, offset), __shfl_xor_sync(0xffffffffu, at, offset));
  }
};

// One whole warp refines plane (b, k) around the maximum in `cell` and writes the results.
template <typename T>
__device__ __forceinline__ void refine_and_write(const DecodeHeatmaps& job, const Plane<T>& h, int64_t b, int64_t k,
                                                 int64_t cell) {
  __shared__ float weights[kMaxBlurSize + 8], scratch[10 * WarpTeam::pitch(kMaxBlurSize + 4)];
  if (job.method == DecodeMethod::dark) fill_blur_weights(job, weights, threadIdx.x, 32);
  const Decoded<float> decoded = refine(job, h, cell, weights, scratch, WarpTeam());
  if (threadIdx.x == 0) write(job, b, k, cell, decoded);
}

// One block a plane. A thread walks over packs of V columns in row-major order, kInFlight at a time, and remembers the
// first one that holds its largest value. A dense plane without a flip test is one long row: rows = 1, columns = H * W.
// Bytes: the maps, read once, and with a flip test the flipped ones.
template <typename T, int V, Flip kFlip>
__global__ void __launch_bounds__(kSearchThreads) decode_planes_kernel(DecodeHeatmaps job, int rows, int columns) {
  constexpr int kInFlight = V == 1 ? 8 : 4;
  const int64_t b = blockIdx.x / job.joints, k = blockIdx.x % job.joints;
  const Plane<T> h(job, b, k);
  const int packs = columns / V, step_rows = kSearchThreads / packs, step_packs = kSearchThreads % packs;
  int y = threadIdx.x / packs, pack = threadIdx.x % packs;
  float top = -INFINITY;
  int best = -1;  // in steps of the thread
  for (int step = 0; h.exists() && y < rows;) {
    float v[kInFlight][V];
    bool inside[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      // Past the end the first pack is loaded and not looked at: a branch would keep the loads from overlapping.
      inside[i] = y < rows;
      h.template load<V, kFlip>(inside[i] ? y : 0, inside[i] ? int64_t(pack) * V : 0, v[i]);
      y += step_rows;
      pack += step_packs;
      if (pack >= packs) {
        pack -= packs;
        ++y;
      }
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i, ++step) {
      float largest = v[i][0];
#pragma unroll
      for (int e = 1; e < V; ++e) largest = fmaxf(largest, v[i][e]);  // NaN loses
      if (inside[i] && largest > top) {
        top = largest;
        best = step;
      }
    }
  }

  __shared__ Candidate warps[kSearchThreads / 32];
  Candidate candidate{top, best < 0 ? -1 : (int64_t(best) * kSearchThreads + threadIdx.x) * V};
  candidate.merge_warp();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = candidate;
  __syncthreads();
  if (threadIdx.x >= 32) return;
#pragma unroll
  for (int i = 1; i < kSearchThreads / 32; ++i) candidate.merge(warps[i].top, warps[i].at);
  int64_t cell = __shfl_sync(0xffffffffu, candidate.at, 0);
  const float largest = __shfl_sync(0xffffffffu, candidate.top, 0);
  for (int e = 1; e < V && cell >= 0 && h.at(cell / job.width, cell % job.width) != largest; ++e) ++cell;
  refine_and_write(job, h, b, k, cell);
}

// How the search of samples whose joints lie side by side is cut up: a block takes `packs` packs of joints in one part of
// the pixels, and `lanes` threads share out the pixels of a pack.
struct JointSearch {
  int64_t packs, groups, lanes, pixels, parts;
};

template <typename T, int V> constexpr JointSearch joint_search(const DecodeHeatmaps& job) {
  constexpr int kSteps = 8 * kPack<T> / V;  // 128 bytes a thread
  JointSearch s{};
  s.packs = job.joints / V < kSearchThreads ? job.joints / V : kSearchThreads;
  s.groups = (job.joints / V + s.packs - 1) / s.packs;
  s.lanes = kSearchThreads / s.packs;
  s.pixels = s.lanes * kSteps;
  s.parts = (job.height * job.width + s.pixels - 1) / s.pixels;
  return s;
}

// Joints innermost: a thread walks over pixels with V joints at once. Blocks run over groups, parts, samples, fastest first.
// Bytes: the maps, read once, and with a flip test the flipped ones; 12 B a joint and part are written and read again.
template <typename T, int V, bool kFlip>
__global__ void __launch_bounds__(kSearchThreads)
    decode_joints_kernel(DecodeHeatmaps job, float* part_values, int64_t* part_cells) {
  constexpr int kInFlight = V == 1 ? 8 : 4;
  const JointSearch search = joint_search<T, V>(job);
  const int64_t group = blockIdx.x % search.groups, part = blockIdx.x / search.groups % search.parts;
  const int64_t b = blockIdx.x / search.groups / search.parts, lane = threadIdx.x / search.packs;
  const int64_t k = (group * search.packs + threadIdx.x % search.packs) * V;
  const int64_t begin = part * search.pixels + lane, end = min((part + 1) * search.pixels, job.height * job.width);
  const bool works = lane < search.lanes && k < job.joints;
  const int width = int(job.width), step_rows = int(search.lanes) / width, step_columns = int(search.lanes) % width;
  int y = int(begin / width), x = int(begin % width);
  const T *map = job.maps.plane<const T>(b, k), *mirrored = job.flipped.plane<const T>(b, 0);
  float top[V];
  int best[V];         // in steps of the thread
  int64_t partner[V];  // offset of the joint's map in the flipped sample
#pragma unroll
  for (int e = 0; e < V; ++e) {
    top[e] = -INFINITY;
    best[e] = -1;
    const int64_t joint = kFlip && works ? flipped_joint(job, k + e) : 0;
    partner[e] = joint < 0 ? 0 : joint * job.flipped.joint;
  }
  int64_t pixel = begin;
  for (int step = 0; works && pixel < end;) {
    float v[kInFlight][V];
    bool inside[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i, pixel += search.lanes) {
      inside[i] = pixel < end;
      const int64_t row = inside[i] ? y : 0, column = inside[i] ? x : 0;
      const T* p = map + row * job.maps.row + column * job.maps.column;
      if constexpr (V == 1) v[i][0] = widen(*p);
      else load_pack<T>(p, v[i]);
      if constexpr (kFlip) {
        const T* f = mirrored + row * job.flipped.row + flipped_column(job, column) * job.flipped.column;
#pragma unroll
        for (int e = 0; e < V; ++e) v[i][e] = 0.5f * (v[i][e] + widen(f[partner[e]]));
      }
      y += step_rows;
      x += step_columns;
      if (x >= width) {
        x -= width;
        ++y;
      }
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i, ++step) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        if (inside[i] && v[i][e] > top[e]) {
          top[e] = v[i][e];
          best[e] = step;
        }
      }
    }
  }

  __shared__ Candidate shared[V][kSearchThreads];
#pragma unroll
  for (int e = 0; e < V; ++e) shared[e][threadIdx.x] = {top[e], best[e] < 0 ? -1 : begin + best[e] * search.lanes};
  for (int64_t left = search.lanes; left > 1; left = (left + 1) / 2) {
    __syncthreads();
    const int64_t half = (left + 1) / 2;
    if (lane + half < left) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const Candidate other = shared[e][threadIdx.x + half * search.packs];
        shared[e][threadIdx.x].merge(other.top, other.at);
      }
    }
  }
  if (!works || lane != 0) return;
  for (int e = 0; e < V; ++e) {
    const int64_t to = (b * search.parts + part) * job.joints + k + e;
    part_values[to] = shared[e][threadIdx.x].top;
    part_cells[to] = shared[e][threadIdx.x].at;
  }
}

// One warp a plane: the first maximum of the parts, then its refinement.
template <typename T>
__global__ void __launch_bounds__(32)
    decode_parts_kernel(DecodeHeatmaps job, const float* part_values, const int64_t* part_cells, int64_t parts) {
  const int64_t b = blockIdx.x / job.joints, k = blockIdx.x % job.joints;
  Candidate candidate{-INFINITY, -1};
  for (int64_t part = threadIdx.x; part < parts; part += 32) {
    const int64_t from = (b * parts + part) * job.joints + k;
    candidate.merge(part_values[from], part_cells[from]);
  }
  candidate.merge_warp();
  const Plane<T> h(job, b, k);
  refine_and_write(job, h, b, k, h.exists() ? candidate.at : -1);
}

// One warp a plane writes its window; the gradients are zero elsewhere. Bytes: (2 radius + 1)^2 elements a plane.
template <typename T>
__global__ void __launch_bounds__(32) decode_backward_kernel(DecodeHeatmaps job, Maps gradient, Maps flipped_gradient) {
  const int64_t b = blockIdx.x / job.joints, k = blockIdx.x % job.joints, cell = job.cells[blockIdx.x];
  if (cell < 0 || cell >= job.height * job.width) return;
  const Plane<T> h(job, b, k);
  write_window(job, h, window_gradient(job, h, b, k, WarpTeam()), gradient, flipped_gradient, b, k, threadIdx.x, 32);
}

}  // namespace fastpose
