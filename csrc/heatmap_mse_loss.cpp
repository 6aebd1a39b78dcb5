// fastpose::heatmap_mse_loss and its backward: checks, allocation, launch. The definition is fastpose/ops/heatmap_mse_loss.py.
#include "heatmap_mse_loss.h"

#include "cache.h"
#include "gaussian_torch.h"

namespace fastpose {

// What the sum of squares is multiplied by, for the reductions in the order of fastpose/ops/heatmap_mse_loss.py.
static double scale_of(int64_t reduction, const Tensor& maps) {
  const double batch = double(std::max<int64_t>(1, maps.size(0)));
  switch (reduction) {
    case 0: return 1 / double(std::max<int64_t>(1, maps.numel()));
    case 1: return 1;
    case 2: return 1 / batch;
    case 3: return 0.5 / batch;
    default: STD_TORCH_CHECK(false, "fastpose: reduction must be 0, 1, 2 or 3"); return 0;
  }
}

// The gradient of a mean is about 1e-7, which float16 cannot hold: there it is saved without `scale`, which the backward pass
// applies together with the upstream gradient, a loss scaler's 2^16 for one.
static bool saved_unscaled(ScalarType dtype) { return dtype == ScalarType::Half; }

static int64_t bytes_of(const Tensor& t) { return t.numel() * int64_t(t.element_size()); }

template <typename A> static void run_on_cpu(const HeatmapMSELoss& job, A* losses) {
  const Gaussians& g = job.gaussians;
  const bool samples = job.joints_innermost();
  const int64_t parts = samples ? g.batch : g.batch * g.joints;
  std::vector<double> sums(job.stack_count * parts);
  parallel_parts(parts, g.height * g.width * (samples ? g.joints : 1) * job.stack_count, [&](int64_t begin, int64_t end) {
    if (samples) FASTPOSE_SIMD_BEST(heatmap_mse_loss_samples)(job, sums.data(), begin, end);
    else FASTPOSE_SIMD_BEST(heatmap_mse_loss_planes)(job, sums.data(), begin, end);
  });
  for (int64_t s = 0; s < job.stack_count; ++s) {
    double sum = 0;
    for (int64_t i = 0; i < parts; ++i) sum += sums[s * parts + i];
    losses[s] = A(job.scale * sum);
  }
}

std::tuple<Tensor, std::vector<Tensor>> heatmap_mse_loss(const std::vector<Tensor>& predictions, const Tensor& keypoints,
                                                         const std::optional<Tensor>& sigmas, double sigma, int64_t rounding,
                                                         double radius, bool circular, bool add, double amplitude, double offset,
                                                         const std::optional<Tensor>& weights, int64_t reduction,
                                                         bool ignore_unlabelled, bool listed, bool compute_gradient) {
  STD_TORCH_CHECK(!predictions.empty() && predictions[0].dim() == 4, "fastpose: predictions must be (B, K, H, W)");
  STD_TORCH_CHECK(listed || predictions.size() == 1, "fastpose: several predictions have a list of losses");
  const Tensor& first = predictions[0];
  const ScalarType dtype = first.scalar_type();
  const Gaussians g = gaussians_of(keypoints, sigmas, sigma, rounding, radius, circular, add, amplitude, offset, first.size(2),
                                   first.size(3), dtype);
  if (weights) check_dense(*weights, "weights", {g.batch, g.joints}, accumulator_of(dtype), keypoints);
  std::vector<Tensor> gradients;
  std::vector<Stack> stacks;
  for (const Tensor& prediction : predictions) {
    check_tensor(prediction, "a prediction", {g.batch, g.joints, g.height, g.width}, dtype, keypoints);
    stacks.push_back({maps_of(prediction), {}});
    if (!compute_gradient) continue;
    gradients.push_back(torch::stable::empty_like(prediction));
    stacks.back().gradient = maps_of(gradients.back());
  }
  const double scale = scale_of(reduction, first);
  const HeatmapMSELoss job{g, dtype_of(dtype), stacks.data(), int64_t(stacks.size()), weights ? weights->data_ptr() : nullptr,
                           ignore_unlabelled, scale, saved_unscaled(dtype) ? 2 : 2 * scale,
                           // What is saved unscaled is soon read again.
                           !saved_unscaled(dtype) && outgrow_cache(int64_t(predictions.size() + gradients.size()) * bytes_of(first))};
  const std::vector<int64_t> shape(listed ? 1 : 0, job.stack_count);
  Tensor losses = new_dense(keypoints, shape, accumulator_of(dtype));
  run_on(
      keypoints,
      [&] {
        if (dtype == ScalarType::Double) run_on_cpu(job, static_cast<double*>(losses.data_ptr()));
        else run_on_cpu(job, static_cast<float*>(losses.data_ptr()));
      },
      [&](void* stream) {
        Tensor partials = new_dense(keypoints, {job.stack_count, heatmap_mse_loss_tiles(job)}, ScalarType::Float);
        heatmap_mse_loss_cuda(job, static_cast<float*>(partials.data_ptr()), static_cast<float*>(losses.data_ptr()), stream);
      });
  return {losses, gradients};
}

// Strides that fill 0 .. numel - 1: what is done to the flat memory stays inside the tensor.
static void check_gap_free(const Tensor& t) {
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  STD_TORCH_CHECK(t.numel() == 0 || last == t.numel() - 1, "fastpose: a saved gradient must be dense");
}

// The saved buffers themselves become the gradients.
void heatmap_mse_loss_scale_(const std::vector<Tensor>& gradients, const Tensor& upstream, int64_t reduction) {
  if (gradients.empty()) return;
  const ScalarType dtype = gradients[0].scalar_type();
  check_tensor(upstream, "the upstream gradient", {int64_t(gradients.size())}, accumulator_of(dtype), gradients[0]);
  std::vector<HeatmapMSELossScale> jobs;
  for (const Tensor& t : gradients) {
    STD_TORCH_CHECK(t.dim() == 4 && t.scalar_type() == dtype && t.device() == upstream.device(),
                    "fastpose: the saved gradients must be (B, K, H, W), of one dtype and on one device");
    check_gap_free(t);
    const int64_t at = int64_t(jobs.size()) * upstream.stride(0) * int64_t(upstream.element_size());
    jobs.push_back({t.data_ptr(), t.data_ptr(), t.numel(), dtype_of(dtype), static_cast<const char*>(upstream.data_ptr()) + at,
                    saved_unscaled(dtype) ? scale_of(reduction, t) : 1.0});
  }
  run_on(
      upstream,
      [&] {
        for (const HeatmapMSELossScale& job : jobs) {
          const double factor = dtype == ScalarType::Double ? job.multiplier<double>() : job.multiplier<float>();
          if (factor == 1) continue;
          parallel_parts(job.elements, 1,
                         [&](int64_t begin, int64_t end) { FASTPOSE_SIMD_BEST(heatmap_mse_loss_scale)(job, begin, end); });
        }
      },
      [&](void* stream) {
        for (const HeatmapMSELossScale& job : jobs) heatmap_mse_loss_scale_cuda(job, stream);
      });
}

FASTPOSE_REGISTER(heatmap_mse_loss, heatmap_mse_loss)
FASTPOSE_REGISTER(heatmap_mse_loss_scale_, heatmap_mse_loss_scale_)

}  // namespace fastpose
