#include "local_contrast_normalization.cuh"

namespace fastpose {

// Calls f(type, size of the shared memory's rows): for the usual windows, or the largest.
template <typename F> static void for_window(const LocalContrast& job, F&& f) {
  for_device_dtype(job.dtype, [&]<typename T>(Type<T> type) {
    if (job.size <= 9) f(type, std::integral_constant<int, 9>());
    else f(type, std::integral_constant<int, int(kMaxWindow)>());
  });
}

void local_contrast_normalization_cuda(const LocalContrast& job, void* stream) {
  for_window(job, [&]<typename T, int kSize>(Type<T>, std::integral_constant<int, kSize>) {
    launch(local_contrast_normalization_kernel<T, kSize>, strip_count(job), kStripThreads, stream, job, strip_weights(job, false));
  });
}

void local_contrast_normalization_backward_cuda(const LocalContrast& job, void* stream) {
  for_window(job, [&]<typename T, int kSize>(Type<T>, std::integral_constant<int, kSize>) {
    launch(local_contrast_normalization_backward_kernel<T, kSize>, strip_count(job), kStripThreads, stream, job,
           strip_weights(job, true));
  });
}

}  // namespace fastpose
