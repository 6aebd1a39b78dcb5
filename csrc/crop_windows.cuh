// The filters of all windows are computed first, one thread a cell and axis; then every element has one thread, which walks over
// the pixels under its filter, or in the backward pass over the cells that have its pixel under theirs.
#pragma once
#include "crop_windows.h"
#include "device.cuh"

namespace fastpose {

constexpr int kCropThreads = 128;

struct CropFilters {
  Filter<float>*rows, *columns;  // (B count, h) and (B count, w)
};

// Cells begin .. end-1.
struct CropRange {
  int32_t begin, end;
};
struct CropRanges {
  CropRange *rows, *columns;  // (B count, H) and (B count, W): which cells have a pixel under their filter
};

inline int64_t filter_count(const CropWindows& job) { return job.batch * job.count * (job.height + job.width); }
inline int64_t range_count(const CropWindows& job) { return job.batch * job.count * (job.source_height + job.source_width); }

__global__ void __launch_bounds__(kCropThreads) crop_filters_kernel(CropWindows job, CropFilters filters) {
  const int64_t at = int64_t(blockIdx.x) * kCropThreads + threadIdx.x, cells = job.height + job.width, n = at / cells, i = at % cells;
  if (n >= job.batch * job.count) return;
  if (i < job.height) filters.rows[n * job.height + i] = window_filter<float, false>(job, n, i);
  else filters.columns[n * job.width + i - job.height] = window_filter<float, true>(job, n, i - job.height);
}

// The filters' ends rise from cell to cell: two searches.
__device__ __forceinline__ CropRange cells_over(const Filter<float>* filters, int64_t cells, int32_t pixel) {
  int32_t begin = 0, end = 0;
  for (int32_t left = int32_t(cells); left > 0;) {
    const int32_t half = left / 2, next = begin + half + 1;
    if (filters[next - 1].end <= pixel) {
      begin = next;
      left -= half + 1;
    } else {
      left = half;
    }
  }
  for (int32_t left = int32_t(cells); left > 0;) {
    const int32_t half = left / 2, next = end + half + 1;
    if (filters[next - 1].begin <= pixel) {
      end = next;
      left -= half + 1;
    } else {
      left = half;
    }
  }
  return {begin, end};
}

__global__ void __launch_bounds__(kCropThreads) crop_ranges_kernel(CropWindows job, CropFilters filters, CropRanges ranges) {
  const int64_t at = int64_t(blockIdx.x) * kCropThreads + threadIdx.x, pixels = job.source_height + job.source_width;
  const int64_t n = at / pixels, i = at % pixels, x = i - job.source_height;
  if (n >= job.batch * job.count) return;
  if (x < 0) ranges.rows[n * job.source_height + i] = cells_over(filters.rows + n * job.height, job.height, int32_t(i));
  else ranges.columns[n * job.source_width + x] = cells_over(filters.columns + n * job.width, job.width, int32_t(x));
}

// ---- several channels a thread --------------------------------------------------------------------------------------------
// Lanes run along the columns, or where kPacked along packs of the channels.

template <typename T, bool kPacked> constexpr int kCropChannels = kPacked ? kPack<T> : 4;

struct CropElement {
  int64_t image, channel, y, x;  // sample or window; the first channel
};

template <bool kPacked, int V>
__device__ __forceinline__ CropElement crop_element(int64_t item, int64_t channels, int64_t height, int64_t width) {
  const int64_t groups = (channels + V - 1) / V;
  CropElement e;
  if (kPacked) {
    e.channel = item % groups * V;
    item /= groups;
  }
  e.x = item % width;
  item /= width;
  e.y = item % height;
  item /= height;
  if (!kPacked) {
    e.channel = item % groups * V;
    item /= groups;
  }
  e.image = item;
  return e;
}

inline int64_t crop_items(int64_t images, int64_t channels, int64_t height, int64_t width, int per_thread) {
  return images * divide_up(channels, per_thread) * height * width;
}

// sum += weight times V channels at p. They are read again for other elements: through the cache.
template <typename S, bool kPacked, int V>
__device__ __forceinline__ void add_channels(const S* p, int64_t stride, int count, float weight, float (&sum)[V]) {
  float v[V];
  if constexpr (kPacked) {
    load_cached_pack<S>(p, v);
  } else {
#pragma unroll
    for (int e = 0; e < V; ++e) v[e] = e < count ? widen(p[e * stride]) : 0.0f;
  }
#pragma unroll
  for (int e = 0; e < V; ++e) sum[e] = fmaf(weight, v[e], sum[e]);
}

template <typename T, bool kPacked, int V>
__device__ __forceinline__ void store_channels(const float (&v)[V], T* p, int64_t stride, int count) {
  if constexpr (kPacked) {
    store_pack<T>(v, p);
  } else {
#pragma unroll
    for (int e = 0; e < V; ++e)
      if (e < count) narrow(v[e], p + e * stride);
  }
}

// The number of channel e of a thread. Where channels differ there are no more than kMaxChannels, and the thread has the first.
__device__ __forceinline__ float of_channel(const double (&numbers)[kMaxChannels], int64_t normalisations, int e) {
  return float(normalisations == 1 || e >= kMaxChannels ? numbers[0] : numbers[e]);
}

// Bytes: the windows written once; the source read from memory once and from the caches for every filter that a pixel is under.
template <typename S, typename T, bool kPacked>
__global__ void __launch_bounds__(kCropThreads) crop_windows_kernel(CropWindows job, CropFilters filters, int64_t items) {
  constexpr int V = kCropChannels<T, kPacked>;
  const int64_t item = int64_t(blockIdx.x) * kCropThreads + threadIdx.x;
  if (item >= items) return;
  const CropElement at = crop_element<kPacked, V>(item, job.channels, job.height, job.width);
  const int count = int(min(int64_t(V), job.channels - at.channel));
  const Filter<float> row = filters.rows[at.image * job.height + at.y], column = filters.columns[at.image * job.width + at.x];
  const S* plane = job.source.plane<const S>(at.image / job.count, at.channel);
  float v[V] = {};
  for (int32_t y = row.begin; y < row.end; ++y) {
    const float row_weight = row.weight(y);
    const S* p = plane + y * job.source.row + column.begin * job.source.column;
    for (int32_t x = column.begin; x < column.end; ++x, p += job.source.column) {
      const float weight = row_weight * column.weight(x);
      if (weight > 0) add_channels<S, kPacked>(p, job.source.joint, count, weight, v);  // 0 times NaN would be NaN
    }
  }
  const float share = row.share * column.share;
#pragma unroll
  for (int e = 0; e < V; ++e) {
    const float inside = of_channel(job.inside, job.normalisations, e), outside = of_channel(job.outside, job.normalisations, e);
    v[e] = fmaf(v[e], of_channel(job.factor, job.normalisations, e), share * inside + (1 - share) * outside);
    if (!row.exists()) v[e] = 0.0f;
  }
  store_channels<T, kPacked>(v, job.windows.plane<T>(at.image, at.channel) + at.y * job.windows.row + at.x * job.windows.column,
                             job.windows.joint, count);
}

// Bytes: the gradient written once; of the windows' gradient what lies over a pixel, from the caches.
template <typename T, bool kPacked>
__global__ void __launch_bounds__(kCropThreads)
    crop_windows_backward_kernel(CropWindows job, CropFilters filters, CropRanges ranges, int64_t items) {
  constexpr int V = kCropChannels<T, kPacked>;
  const int64_t item = int64_t(blockIdx.x) * kCropThreads + threadIdx.x;
  if (item >= items) return;
  const CropElement at = crop_element<kPacked, V>(item, job.channels, job.source_height, job.source_width);
  const int count = int(min(int64_t(V), job.channels - at.channel));
  float v[V] = {};
  for (int64_t n = at.image * job.count; n < (at.image + 1) * job.count; ++n) {
    const CropRange rows = ranges.rows[n * job.source_height + at.y], columns = ranges.columns[n * job.source_width + at.x];
    for (int32_t i = rows.begin; i < rows.end; ++i) {
      const float row_weight = filters.rows[n * job.height + i].weight(int32_t(at.y));
      const T* p = job.windows.plane<const T>(n, at.channel) + i * job.windows.row + columns.begin * job.windows.column;
      for (int32_t j = columns.begin; j < columns.end; ++j, p += job.windows.column) {
        const float weight = row_weight * filters.columns[n * job.width + j].weight(int32_t(at.x));
        if (weight > 0) add_channels<T, kPacked>(p, job.windows.joint, count, weight, v);
      }
    }
  }
#pragma unroll
  for (int e = 0; e < V; ++e) v[e] *= of_channel(job.factor, job.normalisations, e);
  store_channels<T, kPacked>(v, job.source.plane<T>(at.image, at.channel) + at.y * job.source.row + at.x * job.source.column,
                             job.source.joint, count);
}

}  // namespace fastpose
