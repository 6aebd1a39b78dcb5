// Windows cut out of images or maps: what a call needs, the filter along one axis, and who carries it out.
//   window(i, j) = sum_y w_y(i) sum_x w_x(j) source(y, x),   w_x(j) = max(0, 1 - |x - x_j| / r) / (the same summed over all integers x)
#pragma once
#include <cmath>
#include <cstdint>

#include "dtype.h"
#include "simd_level.h"

namespace fastpose {

constexpr int64_t kMaxChannels = 4;  // that may be normalised differently

struct CropWindows {
  DType dtype;  // of the windows, and of a floating source
  bool image;   // the source is uint8
  bool antialias;
  int64_t batch, count, channels;  // samples, windows a sample
  int64_t source_height, source_width, height, width;
  Maps source;        // (B, C, H, W), read; in the backward pass its gradient, written
  Maps windows;       // (B count, C, h, w), written; in the backward pass the gradient of them, read
  const void* boxes;  // (B, count, 4): x, y of the centre, width, height; accumulator's type
  int64_t normalisations;  // 1: the first serves all channels
  // A value v of the source becomes factor v + inside, what lies outside of the source `outside`.
  double factor[kMaxChannels], inside[kMaxChannels], outside[kMaxChannels];

  FASTPOSE_HOST_DEVICE int64_t normalisation(int64_t channel) const { return normalisations == 1 ? 0 : channel; }
};

// On the CPU the work is shared out by groups of channels, so that what all windows of a sample look at stays in a core's own cache:
// kCropGroup, or all of them where they lie side by side in every pixel.
constexpr int64_t kCropGroup = 16;
FASTPOSE_HOST_DEVICE bool channels_inner(const Maps& m, int64_t channels) { return m.joint == 1 && m.column == channels && channels > 1; }
FASTPOSE_HOST_DEVICE int64_t crop_group(const CropWindows& job, bool inner) {
  return inner || job.channels < kCropGroup ? (job.channels > 0 ? job.channels : 1) : kCropGroup;
}
FASTPOSE_HOST_DEVICE int64_t crop_groups(const CropWindows& job, bool inner) {
  return (job.channels + crop_group(job, inner) - 1) / crop_group(job, inner);
}
// Parts begin .. end-1: the windows of a group, group after group, sample after sample.
FASTPOSE_SIMD_KERNEL(crop_windows, const CropWindows&, int64_t begin, int64_t end)
// The gradient, parts begin .. end-1: bands of so many rows of a group, group after group, sample after sample.
FASTPOSE_SIMD_KERNEL(crop_windows_backward, const CropWindows&, int64_t band_rows, int64_t begin, int64_t end)

// On a GPU, `memory` of so many bytes holds the filters of all windows.
int64_t crop_windows_bytes(const CropWindows&, bool backward);
void crop_windows_cuda(const CropWindows&, void* memory, void* stream);
void crop_windows_backward_cuda(const CropWindows&, void* memory, void* stream);

// ---- the filter of one cell along one axis --------------------------------------------------------------------------------

// Pixels begin .. end-1 of the source; none if the window does not exist, and then end is -1.
template <typename A> struct Filter {
  int32_t begin, end;
  A distance;        // of the first pixel from the cell's centre
  A slope, height;   // weights are height (1 - slope |distance|)
  A share;           // of the whole filter that lies in the source

  FASTPOSE_HOST_DEVICE bool exists() const { return end >= 0; }
  FASTPOSE_HOST_DEVICE A weight(int32_t pixel) const {
    const A d = distance + A(pixel - begin), w = height * (1 - slope * (d < 0 ? -d : d));
    return w > 0 ? w : A(0);
  }
};

// The sum of 1 - d / reach over the distances first, first + 1, ... up to reach.
FASTPOSE_HOST_DEVICE double sum_of_filter(double first, double reach) {
  const double count = std::floor(reach - first) + 1;
  return count * (1 - (first + (count - 1) / 2) / reach);
}

// Positions are in double: at column 1000 a float knows 1/16000 of a pixel.
template <typename A>
FASTPOSE_HOST_DEVICE Filter<A> filter_of(double centre, double side, int64_t cells, int64_t pixels, bool antialias, int64_t cell) {
  const double step = side / double(cells), x = centre + (double(cell) - double(cells - 1) * 0.5) * step;
  const double reach = antialias && step > 1 ? step : 1, fraction = x - std::floor(x);
  const double first = std::floor(x - reach) + 1, last = std::floor(x + reach), n = double(pixels);
  const double begin = first < 0 ? 0 : first > n ? n : first, end = last + 1 > n ? n : last + 1 < begin ? begin : last + 1;
  const double total = sum_of_filter(fraction, reach) + sum_of_filter(1 - fraction, reach);
  Filter<A> f{int32_t(begin), int32_t(end), A(begin - x), A(1 / reach), A(1 / total), A(1)};
  if (first >= 0 && last < n) return f;
  f.share = 0;
  for (int32_t pixel = f.begin; pixel < f.end; ++pixel) f.share += f.weight(pixel);
  return f;
}

// Of window n. Its filters on the two axes: along the columns if kColumns, else down the rows.
template <typename A, bool kColumns> FASTPOSE_HOST_DEVICE Filter<A> window_filter(const CropWindows& job, int64_t n, int64_t cell) {
  const A* box = static_cast<const A*>(job.boxes) + 4 * n;
  // a - a is 0 for a finite number only
  const bool exists = box[0] - box[0] == 0 && box[1] - box[1] == 0 && box[2] - box[2] == 0 && box[3] - box[3] == 0;
  if (!exists || !(box[2] > 0) || !(box[3] > 0)) return {0, -1, 0, 0, 0, 0};
  if (kColumns) return filter_of<A>(double(box[0]), double(box[2]), job.width, job.source_width, job.antialias, cell);
  return filter_of<A>(double(box[1]), double(box[3]), job.height, job.source_height, job.antialias, cell);
}

}  // namespace fastpose
