#include "soft_argmax2d.cuh"

namespace fastpose {

// Enough blocks for any GPU: then planes are not shared out any further.
constexpr int64_t kEnoughBlocks = 512;

static int element_size(const SoftArgmax2d& job) { return job.dtype == DType::float32 ? 4 : 2; }

// Rows are shared out in whole steps of a block, over as few parts as give enough blocks.
static int64_t rows_a_part(int64_t height, int64_t step, int64_t blocks) {
  const int64_t steps = divide_up(height, step), parts = std::min(steps, divide_up(kEnoughBlocks, std::max<int64_t>(blocks, 1)));
  return divide_up(steps, parts) * step;
}

static PlaneTiling plane_tiling(const SoftArgmax2d& job) {
  const int64_t packs = divide_up(job.width * element_size(job), 16), threads = element_size(job) == 4 ? kPlaneThreads<float> : kPlaneThreads<Half>;
  const int64_t rows = rows_a_part(job.height, divide_up(kInFlight * threads, packs), job.batch * job.joints);
  return {int(divide_up(job.height, rows)), int(rows)};
}

static JointTiling joint_tiling(const SoftArgmax2d& job) {
  const int64_t pixels = kJointThreads / (kJointGroup * element_size(job) / 16);  // at a time
  JointTiling t;
  t.groups = int(divide_up(job.joints, kJointGroup));
  t.tiles = int(divide_up(job.width, pixels));
  t.columns = int(divide_up(job.width, t.tiles));
  t.lanes = int(std::min(pixels / t.columns, job.height));
  t.rows = int(rows_a_part(job.height, kInFlight * t.lanes, job.batch * t.groups * t.tiles));
  t.parts = int(divide_up(job.height, t.rows));
  return t;
}

static int64_t parts_of(const SoftArgmax2d& job) {
  if (!joints_innermost(job)) return plane_tiling(job).parts;
  const JointTiling t = joint_tiling(job);
  return int64_t(t.tiles) * t.parts;
}

int64_t soft_argmax2d_state_bytes(const SoftArgmax2d& job) {
  return parts_of(job) == 1 ? 0 : job.batch * job.joints * parts_of(job) * int64_t(sizeof(SoftmaxState<float>));
}

static int64_t joint_blocks(const SoftArgmax2d& job, const JointTiling& t) { return job.batch * t.groups * t.tiles * t.parts; }

template <typename T> static int joint_threads(const JointTiling& t) {
  return int(divide_up(kGroupPacks<T> * t.columns * t.lanes, 32)) * 32;
}

template <typename T, bool kCovariance> static void forward(const SoftArgmax2d& job, void* memory, void* stream) {
  const float sharpness = sharpness_of<float>(job);
  auto* states = static_cast<SoftmaxState<float>*>(memory);
  if (joints_innermost(job)) {
    const JointTiling t = joint_tiling(job);
    const bool packs = joint_packs_fit(job.heatmaps, job.joints, sizeof(T));
    launch(packs ? soft_argmax2d_joints_kernel<T, kCovariance> : soft_argmax2d_odd_joints_kernel<T, kCovariance>, joint_blocks(job, t), joint_threads<T>(t), stream, job, sharpness, t, states);
  } else {
    const PlaneTiling t = plane_tiling(job);
    const bool packs = row_packs_fit(job.heatmaps, job.width, sizeof(T));
    launch(packs ? soft_argmax2d_kernel<T, true, kCovariance> : soft_argmax2d_kernel<T, false, kCovariance>,
           job.batch * job.joints * t.parts, kPlaneThreads<T>, stream, job, sharpness, t, states);
  }
  const int parts = int(parts_of(job));
  if (parts > 1)
    launch(soft_argmax2d_parts_kernel, divide_up(job.batch * job.joints, kMergeThreads), kMergeThreads, stream, job, sharpness, states, parts);
}

void soft_argmax2d_cuda(const SoftArgmax2d& job, void* states, void* stream) {
  for_device_dtype(job.dtype, [&]<typename T>(Type<T>) {
    if (job.covariance) forward<T, true>(job, states, stream);
    else forward<T, false>(job, states, stream);
  });
}

void soft_argmax2d_backward_cuda(const SoftArgmax2dBackward& job, void* stream) {
  const SoftArgmax2d& f = job.forward;
  const float sharpness = sharpness_of<float>(f);
  for_device_dtype(f.dtype, [&]<typename T>(Type<T>) {
    if (joints_innermost(f)) {
      const JointTiling t = joint_tiling(f);
      const bool packs = joint_packs_fit(f.heatmaps, f.joints, sizeof(T)) && joint_packs_fit(job.gradient, f.joints, sizeof(T));
      launch(packs ? soft_argmax2d_joints_backward_kernel<T> : soft_argmax2d_odd_joints_backward_kernel<T>, joint_blocks(f, t), joint_threads<T>(t), stream, job, sharpness, t);
      return;
    }
    const PlaneTiling t = plane_tiling(f);
    const bool packs = row_packs_fit(f.heatmaps, f.width, sizeof(T)) && row_packs_fit(job.gradient, f.width, sizeof(T));
    launch(packs ? soft_argmax2d_backward_kernel<T, true> : soft_argmax2d_backward_kernel<T, false>,
           f.batch * f.joints * t.parts, kPlaneThreads<T>, stream, job, sharpness, t);
  });
}

}  // namespace fastpose
