#pragma once
#include "device.cuh"
#include "distance_transform2d.h"

namespace fastpose {

constexpr int kTransformThreads = 128;
constexpr int kTransformRows = 4;  // that a thread has; they share what it loads or computes for one u

// The first pass's maxima and their columns, (B K, H, W) each.
struct FirstPass {
  float* best;
  int32_t* columns;
};

inline int64_t cell_count(const DistanceTransform& job) { return job.batch * job.joints * job.height * job.width; }
inline int64_t transform_items(const DistanceTransform& job) {
  return job.batch * job.joints * divide_up(job.height, kTransformRows) * job.width;
}

// Columns run fastest, then groups of rows, then planes.
struct TransformItem {
  int64_t plane;
  int row, rows, column, height, width;

  __device__ __forceinline__ TransformItem(const DistanceTransform& job, int64_t item)
      : height(int(job.height)), width(int(job.width)) {
    const int groups = (height + kTransformRows - 1) / kTransformRows;
    column = int(item % width);
    row = int(item / width % groups) * kTransformRows;
    rows = min(kTransformRows, height - row);
    plane = item / width / groups;
  }
};

struct BestOf {
  float value = -INFINITY;
  int number = 0;
  __device__ __forceinline__ void offer(float v, int n) {
    const bool better = v > value;  // never NaN
    value = better ? v : value;
    number = better ? n : number;
  }
};

// best(u_y, q_x): a thread a q_x and four u_y. Neighbouring threads read the same scores. Bytes: the scores read, the pass written.
template <typename T>
__global__ void __launch_bounds__(kTransformThreads, 8) distance_transform2d_rows_kernel(DistanceTransform job, FirstPass pass, int64_t items) {
  const int64_t item = int64_t(blockIdx.x) * kTransformThreads + threadIdx.x;
  if (item >= items) return;
  const TransformItem at(job, item);
  const Spring<float> spring = spring_x<float>(job, at.plane);
  const T* p = job.scores.plane<const T>(at.plane / job.joints, at.plane % job.joints) + at.row * job.scores.row;
  BestOf best[kTransformRows];
  for (int u = 0; u < at.width; ++u, p += job.scores.column) {
    const float cost = spring.cost(float(u - at.column));
#pragma unroll
    for (int i = 0; i < kTransformRows; ++i)
      if (i < at.rows) best[i].offer(widen(p[i * job.scores.row]) - cost, u);
  }
  const int64_t first = (at.plane * at.height + at.row) * at.width + at.column;
#pragma unroll
  for (int i = 0; i < kTransformRows; ++i) {
    if (i >= at.rows) break;
    pass.best[first + int64_t(i) * at.width] = best[i].value;
    pass.columns[first + int64_t(i) * at.width] = best[i].number;
  }
}

// A thread has a column and four rows of the result. Bytes: the pass read, values and cells written.
template <typename T>
__global__ void __launch_bounds__(kTransformThreads, 8) distance_transform2d_columns_kernel(DistanceTransform job, FirstPass pass, int64_t items) {
  const int64_t item = int64_t(blockIdx.x) * kTransformThreads + threadIdx.x;
  if (item >= items) return;
  const TransformItem at(job, item);
  const Spring<float> spring = spring_y<float>(job, at.plane);
  const int64_t plane = at.plane * at.height * at.width;
  BestOf best[kTransformRows];
  for (int u = 0; u < at.height; ++u) {
    const float v = pass.best[plane + int64_t(u) * at.width + at.column];
#pragma unroll
    for (int i = 0; i < kTransformRows; ++i) best[i].offer(v - spring.cost(float(u - at.row - i)), u);
  }
  T* values = job.values.plane<T>(at.plane / job.joints, at.plane % job.joints) + at.column * job.values.column;
#pragma unroll
  for (int i = 0; i < kTransformRows; ++i) {
    if (i >= at.rows) break;
    const int u = best[i].number;
    narrow(best[i].value, values + (at.row + i) * job.values.row);
    job.cells[plane + int64_t(at.row + i) * at.width + at.column] = u * at.width + pass.columns[plane + int64_t(u) * at.width + at.column];
  }
}

// One block a plane, in the order of the passes backward, so that every sum has one thread and a fixed order: down its columns the
// gradient goes to the row of each maximum, along the rows from there to its column. Bytes: upstream gradient and cells read, the
// gradient written, and working memory in the cache.
template <typename T>
__global__ void __launch_bounds__(kTransformThreads, 8)
    distance_transform2d_backward_kernel(DistanceTransform job, FirstPass pass, float* sums) {
  const int64_t plane = blockIdx.x, first = plane * job.height * job.width;
  const int height = int(job.height), width = int(job.width), count = height * width;
  const Spring<float> along = spring_x<float>(job, plane), down = spring_y<float>(job, plane);
  float* best = pass.best + first;
  int32_t* columns = pass.columns + first;
  SpringSums<float> total;
  for (int x = int(threadIdx.x); x < width; x += kTransformThreads) {
    for (int y = 0; y < height; ++y) {
      best[y * width + x] = 0;
      columns[y * width + x] = -1;
    }
    const T* upstream = job.values.plane<const T>(plane / job.joints, plane % job.joints) + x * job.values.column;
    for (int y = 0; y < height; ++y) {
      const int cell = job.cells[first + y * width + x];
      if (unsigned(cell) >= unsigned(count)) continue;
      const float g = widen(upstream[y * job.values.row]);
      const int row = cell / width, column = cell - row * width;
      best[row * width + x] += g;
      columns[row * width + x] = column;  // the same for all that go to this row
      total.add(g, float(column - x) - along.anchor, float(row - y) - down.anchor);
    }
  }
  __syncthreads();
  for (int y = int(threadIdx.x); y < height; y += kTransformThreads) {
    float* to = sums + first + y * width;
    for (int x = 0; x < width; ++x) to[x] = 0;
    for (int x = 0; x < width; ++x)
      if (columns[y * width + x] >= 0) to[columns[y * width + x]] += best[y * width + x];
  }
  SpringSums<float> all;
  all.xx = block_sum<kTransformThreads>(total.xx);
  all.x = block_sum<kTransformThreads>(total.x);
  all.yy = block_sum<kTransformThreads>(total.yy);
  all.y = block_sum<kTransformThreads>(total.y);
  all.all = block_sum<kTransformThreads>(total.all);
  if (threadIdx.x == 0) all.write<float>(job, plane);
  // The sums over the block have waited for all of its rows.
  T* out = job.scores.plane<T>(plane / job.joints, plane % job.joints);
  for (int i = int(threadIdx.x); i < count; i += kTransformThreads)
    narrow(sums[first + i], out + i / width * job.scores.row + i % width * job.scores.column);
}

}  // namespace fastpose
