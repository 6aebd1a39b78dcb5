#pragma once
#include "device.cuh"
#include "gaussian_conv2d.h"

namespace fastpose {

// ---- the factors ------------------------------------------------------------------------------------------------------------

// gy and gx of every sample's joints, the constant one behind them, over the padded maps: (B, K + 1, H + 2 p) and (B, K + 1, W + 2 p).
struct ConvFactors {
  float *rows, *columns;
};

constexpr int kFactorThreads = 256;

inline int64_t padded_height(const GaussianConv& job) { return job.gaussians.height + 2 * job.padding; }
inline int64_t padded_width(const GaussianConv& job) { return job.gaussians.width + 2 * job.padding; }
inline int64_t factor_count(const GaussianConv& job) {
  return job.gaussians.batch * (job.gaussians.joints + 1) * (padded_height(job) + padded_width(job));
}

__global__ void __launch_bounds__(kFactorThreads) gaussian_conv2d_factors_kernel(GaussianConv job, ConvFactors factors) {
  const Gaussians& g = job.gaussians;
  const int64_t height = g.height + 2 * job.padding, width = g.width + 2 * job.padding;
  const int64_t at = int64_t(blockIdx.x) * kFactorThreads + threadIdx.x, plane = at / (height + width), i = at % (height + width);
  const int64_t b = plane / (g.joints + 1), k = plane % (g.joints + 1);
  if (b >= g.batch) return;
  const bool down = i < height;
  const int64_t place = (down ? i : i - height) - job.padding;
  float value = 1.0f;
  if (k < g.joints) {
    const Centre<float> c = centre_of<float>(g, b, 0, k);
    const float d = float(place) - (down ? c.y : c.x);
    value = c.labelled ? expf(-0.5f / (c.sigma * c.sigma) * d * d) : 0.0f;
  }
  if (down) value *= float(k < g.joints ? g.amplitude : g.offset);
  if (place < 0 || place >= (down ? g.height : g.width)) value = 0.0f;
  if (down) factors.rows[plane * height + i] = value;
  else factors.columns[plane * width + i - height] = value;
}

// ---- forward ----------------------------------------------------------------------------------------------------------------
// A block has a tile of one channel of one sample, a thread 8 x 4 of it. Joint by joint and kernel row by kernel row, it forms R at the
// tile's columns and multiplies it with gy at the tile's rows.

constexpr int kConvThreads = 128, kConvTile = 64, kConvRows = 8, kConvColumns = 4;
constexpr int kConvTerms = 8;  // kernel rows in shared memory at a time

inline int64_t conv_tiles(const GaussianConv& job) {
  return job.gaussians.batch * job.channels * divide_up(job.height, kConvTile) * divide_up(job.width, kConvTile);
}

// Bytes: base read, result written; FMAs: K kernel_height an output, and R's, a 64th of kernel_width of it.
template <typename T>
__global__ void __launch_bounds__(kConvThreads, 6) gaussian_conv2d_kernel(GaussianConv job, ConvFactors factors) {
  __shared__ float left[kConvTerms][kConvTile], right[kConvTerms][kConvTile];
  const Gaussians& g = job.gaussians;
  const int64_t across = (job.width + kConvTile - 1) / kConvTile, down = (job.height + kConvTile - 1) / kConvTile;
  const int64_t x = blockIdx.x % across * kConvTile, y = blockIdx.x / across % down * kConvTile;
  const int64_t plane = blockIdx.x / (across * down), o = plane % job.channels, b = plane / job.channels;
  const int64_t height = g.height + 2 * job.padding, width = g.width + 2 * job.padding, size = job.kernel_height * job.kernel_width;
  const int column = int(threadIdx.x) % (kConvTile / kConvColumns) * kConvColumns, row = int(threadIdx.x) / (kConvTile / kConvColumns) * kConvRows;
  const T* weight = static_cast<const T*>(job.weight) + o * g.joints * size;
  const int64_t joints = g.joints + job.has_constant();
  float sum[kConvRows][kConvColumns] = {};
  for (int64_t k = 0; k < joints; ++k) {
    const float* gy = factors.rows + (b * (g.joints + 1) + k) * height;
    const float* gx = factors.columns + (b * (g.joints + 1) + k) * width;
    for (int64_t dy = 0; dy < job.kernel_height; dy += kConvTerms) {
      const int terms = int(min(int64_t(kConvTerms), job.kernel_height - dy));
      for (int i = int(threadIdx.x); i < terms * kConvTile; i += kConvThreads) {
        const int term = i / kConvTile, at = i % kConvTile;
        left[term][at] = y + at < job.height ? gy[(y + at) * job.stride + dy + term] : 0.0f;
        float r = 0.0f;
        for (int64_t dx = 0; x + at < job.width && dx < job.kernel_width; ++dx) {
          const int64_t w = (dy + term) * job.kernel_width + dx;
          float value = 0.0f;
          if (k < g.joints) value = widen(weight[k * size + w]);
          else
            for (int64_t other = 0; other < g.joints; ++other) value += widen(weight[other * size + w]);
          r = fmaf(value, gx[(x + at) * job.stride + dx], r);
        }
        right[term][at] = r;
      }
      __syncthreads();
      for (int term = 0; term < terms; ++term) {
        float a[kConvRows], r[kConvColumns];
#pragma unroll
        for (int i = 0; i < kConvRows; ++i) a[i] = left[term][row + i];
#pragma unroll
        for (int j = 0; j < kConvColumns; ++j) r[j] = right[term][column + j];
#pragma unroll
        for (int i = 0; i < kConvRows; ++i)
#pragma unroll
          for (int j = 0; j < kConvColumns; ++j) sum[i][j] = fmaf(a[i], r[j], sum[i][j]);
      }
      __syncthreads();  // the next terms are written there
    }
  }
  const T* from = job.base.plane<const T>(b, o);
  T* to = job.result.plane<T>(b, o);
#pragma unroll
  for (int i = 0; i < kConvRows; ++i)
#pragma unroll
    for (int j = 0; j < kConvColumns; ++j) {
      const int64_t at_y = y + row + i, at_x = x + column + j;
      if (at_y >= job.height || at_x >= job.width) continue;
      narrow(widen(from[at_y * job.base.row + at_x * job.base.column]) + sum[i][j], to + at_y * job.result.row + at_x * job.result.column);
    }
}

// ---- backward ---------------------------------------------------------------------------------------------------------------
// A block has up to 8 x 8 weights of one channel and joint. A thread sums a column of every sample down, weighted by gy under each
// kernel row, then along by gx under each kernel column.

constexpr int kWeightThreads = 128, kWeightTile = 8;

inline int64_t weight_tiles(const GaussianConv& job) {
  return job.channels * (job.gaussians.joints + 1) * divide_up(job.kernel_height, kWeightTile) * divide_up(job.kernel_width, kWeightTile);
}

// Bytes: the gradient read K times, from the cache after the first.
template <typename T>
__global__ void __launch_bounds__(kWeightThreads) gaussian_conv2d_backward_kernel(GaussianConv job, ConvFactors factors) {
  const Gaussians& g = job.gaussians;
  const int64_t across = (job.kernel_width + kWeightTile - 1) / kWeightTile, down = (job.kernel_height + kWeightTile - 1) / kWeightTile;
  const int64_t dx = blockIdx.x % across * kWeightTile, dy = blockIdx.x / across % down * kWeightTile;
  const int64_t plane = blockIdx.x / (across * down), k = plane % (g.joints + 1), o = plane / (g.joints + 1);
  const int rows = int(min(int64_t(kWeightTile), job.kernel_height - dy)), columns = int(min(int64_t(kWeightTile), job.kernel_width - dx));
  const int64_t height = g.height + 2 * job.padding, width = g.width + 2 * job.padding;
  float sum[kWeightTile][kWeightTile] = {};
  for (int64_t b = 0; b < g.batch; ++b) {
    const float* gy = factors.rows + (b * (g.joints + 1) + k) * height + dy;
    const float* gx = factors.columns + (b * (g.joints + 1) + k) * width + dx;
    for (int64_t x = threadIdx.x; x < job.width; x += kWeightThreads) {
      const T* p = job.result.plane<const T>(b, o) + x * job.result.column;
      float of_row[kWeightTile] = {};
      for (int64_t y = 0; y < job.height; ++y) {
        const float value = widen(p[y * job.result.row]);
#pragma unroll
        for (int i = 0; i < kWeightTile; ++i)
          if (i < rows) of_row[i] = fmaf(gy[y * job.stride + i], value, of_row[i]);
      }
#pragma unroll
      for (int j = 0; j < kWeightTile; ++j) {
        const float factor = j < columns ? gx[x * job.stride + j] : 0.0f;
#pragma unroll
        for (int i = 0; i < kWeightTile; ++i) sum[i][j] = fmaf(of_row[i], factor, sum[i][j]);
      }
    }
  }
  __shared__ float warps[kWeightThreads / 32][kWeightTile][kWeightTile];
#pragma unroll
  for (int i = 0; i < kWeightTile; ++i)
#pragma unroll
    for (int j = 0; j < kWeightTile; ++j) {
      const float total = warp_sum(sum[i][j]);
      if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32][i][j] = total;
    }
  __syncthreads();
  const int i = int(threadIdx.x) / kWeightTile, j = int(threadIdx.x) % kWeightTile;
  if (i >= rows || j >= columns) return;
  float total = 0;
  for (int warp = 0; warp < kWeightThreads / 32; ++warp) total += warps[warp][i][j];
  static_cast<float*>(job.weight_gradient)[(plane * job.kernel_height + dy + i) * job.kernel_width + dx + j] = total;
}

}  // namespace fastpose
