#include "soft_argmax2d.cuh"

namespace fastpose {

static int element_size(const SoftArgmax2d& job) { return job.dtype == DType::float32 ? 4 : 2; }

// More than one joint a pixel, side by side in whole packs.
static bool joint_packs(const SoftArgmax2d& job) { return joint_packs_fit(job.heatmaps, job.joints, element_size(job)); }

static int64_t parts_of(const SoftArgmax2d& job) { return divide_up(job.height * job.width, kPixelsPerPart); }

static int64_t joint_blocks(const SoftArgmax2d& job) {
  return job.batch * parts_of(job) * divide_up(job.joints, kJointGroup);
}

int64_t soft_argmax2d_state_bytes(const SoftArgmax2d& job) {
  return joint_packs(job) ? job.batch * parts_of(job) * job.joints * int64_t(sizeof(Accumulated<true>)) : 0;
}

template <typename T, bool kCovariance> static void forward(const SoftArgmax2d& job, void* states, void* stream) {
  const int64_t planes = job.batch * job.joints;
  if (joint_packs(job)) {
    auto* parts = static_cast<Accumulated<kCovariance>*>(states);
    launch(soft_argmax2d_joints_kernel<T, kCovariance>, joint_blocks(job), kJointThreads, stream, job, parts, parts_of(job));
    launch(soft_argmax2d_parts_kernel<kCovariance>, divide_up(planes, kJointThreads), kJointThreads, stream, job, parts, parts_of(job));
    return;
  }
  const bool packs = row_packs_fit(job.heatmaps, job.width, sizeof(T));
  launch(packs ? soft_argmax2d_kernel<T, true, kCovariance> : soft_argmax2d_kernel<T, false, kCovariance>, planes,
         kSoftArgmaxThreads<T>, stream, job);
}

void soft_argmax2d_cuda(const SoftArgmax2d& job, void* states, void* stream) {
  for_device_dtype(job.dtype, [&]<typename T>(Type<T>) {
    if (job.covariance) forward<T, true>(job, states, stream);
    else forward<T, false>(job, states, stream);
  });
}

void soft_argmax2d_backward_cuda(const SoftArgmax2dBackward& job, void* stream) {
  const SoftArgmax2d& f = job.forward;
  for_device_dtype(f.dtype, [&]<typename T>(Type<T>) {
    if (joint_packs(f) && joint_packs_fit(job.gradient, f.joints, sizeof(T))) {
      launch(soft_argmax2d_joints_backward_kernel<T>, joint_blocks(f), kJointThreads, stream, job, parts_of(f));
      return;
    }
    const bool packs = row_packs_fit(f.heatmaps, f.width, sizeof(T)) && row_packs_fit(job.gradient, f.width, sizeof(T));
    const int64_t pieces = divide_up(f.height * divide_up(f.width, kPack<T>), kPacksPerBlock<T>);
    launch(packs ? soft_argmax2d_backward_kernel<T, true> : soft_argmax2d_backward_kernel<T, false>, f.batch * f.joints * pieces,
           kBackwardThreads, stream, job, pieces);
  });
}

}  // namespace fastpose
