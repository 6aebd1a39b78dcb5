#include "gaussian_conv2d.cuh"

namespace fastpose {

int64_t gaussian_conv2d_bytes(const GaussianConv& job) { return factor_count(job) * int64_t(sizeof(float)); }

static ConvFactors compute_factors(const GaussianConv& job, void* memory, void* stream) {
  auto* rows = static_cast<float*>(memory);
  const ConvFactors factors{rows, rows + job.gaussians.batch * (job.gaussians.joints + 1) * padded_height(job)};
  launch(gaussian_conv2d_factors_kernel, divide_up(factor_count(job), kFactorThreads), kFactorThreads, stream, job, factors);
  return factors;
}

void gaussian_conv2d_cuda(const GaussianConv& job, void* memory, void* stream) {
  const ConvFactors factors = compute_factors(job, memory, stream);
  for_device_dtype(job.dtype, [&]<typename T>(Type<T>) {
    launch(gaussian_conv2d_kernel<T>, conv_tiles(job), kConvThreads, stream, job, factors);
  });
}

void gaussian_conv2d_backward_cuda(const GaussianConv& job, void* memory, void* stream) {
  const ConvFactors factors = compute_factors(job, memory, stream);
  for_device_dtype(job.dtype, [&]<typename T>(Type<T>) {
    launch(gaussian_conv2d_backward_kernel<T>, weight_tiles(job), kWeightThreads, stream, job, factors);
  });
}

}  // namespace fastpose
