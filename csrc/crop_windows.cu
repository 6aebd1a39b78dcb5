#include "crop_windows.cuh"

namespace fastpose {

int64_t crop_windows_bytes(const CropWindows& job, bool backward) {
  return filter_count(job) * int64_t(sizeof(Filter<float>)) + (backward ? range_count(job) * int64_t(sizeof(CropRange)) : 0);
}

static CropFilters compute_filters(const CropWindows& job, void* memory, void* stream) {
  auto* rows = static_cast<Filter<float>*>(memory);
  const CropFilters filters{rows, rows + job.batch * job.count * job.height};
  launch(crop_filters_kernel, divide_up(filter_count(job), kCropThreads), kCropThreads, stream, job, filters);
  return filters;
}

static bool packs_fit(const CropWindows& job, int element_size) {
  return joint_packs_fit(job.source, job.channels, element_size) && joint_packs_fit(job.windows, job.channels, element_size);
}

template <typename S, typename T, bool kPacked>
static void forward(const CropWindows& job, const CropFilters& filters, void* stream) {
  const int64_t items = crop_items(job.batch * job.count, job.channels, job.height, job.width, kCropChannels<T, kPacked>);
  launch(crop_windows_kernel<S, T, kPacked>, divide_up(items, kCropThreads), kCropThreads, stream, job, filters, items);
}

void crop_windows_cuda(const CropWindows& job, void* memory, void* stream) {
  const CropFilters filters = compute_filters(job, memory, stream);
  for_device_dtype(job.dtype, [&]<typename T>(Type<T>) {
    if (job.image) forward<uint8_t, T, false>(job, filters, stream);
    else if (packs_fit(job, sizeof(T))) forward<T, T, true>(job, filters, stream);
    else forward<T, T, false>(job, filters, stream);
  });
}

template <typename T, bool kPacked>
static void backward(const CropWindows& job, const CropFilters& filters, const CropRanges& ranges, void* stream) {
  const int64_t items = crop_items(job.batch, job.channels, job.source_height, job.source_width, kCropChannels<T, kPacked>);
  launch(crop_windows_backward_kernel<T, kPacked>, divide_up(items, kCropThreads), kCropThreads, stream, job, filters, ranges, items);
}

void crop_windows_backward_cuda(const CropWindows& job, void* memory, void* stream) {
  const CropFilters filters = compute_filters(job, memory, stream);
  auto* rows = reinterpret_cast<CropRange*>(static_cast<Filter<float>*>(memory) + filter_count(job));
  const CropRanges ranges{rows, rows + job.batch * job.count * job.source_height};
  launch(crop_ranges_kernel, divide_up(range_count(job), kCropThreads), kCropThreads, stream, job, filters, ranges);
  for_device_dtype(job.dtype, [&]<typename T>(Type<T>) {
    if (packs_fit(job, sizeof(T))) backward<T, true>(job, filters, ranges, stream);
    else backward<T, false>(job, filters, ranges, stream);
  });
}

}  // namespace fastpose
