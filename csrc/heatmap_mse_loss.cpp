// fastpose::heatmap_mse_loss and its backward: checks, allocation, launch. The definition is fastpose/ops/heatmap_mse_loss.py.
#include "heatmap_mse_loss.h"

#include "gaussian_torch.h"

namespace fastpose {

// What the sum of squares is multiplied with, by the papers' names: fastpose/ops/heatmap_mse_loss.py.
static double scale_of(int64_t reduction, const Tensor& prediction) {
  const double batch = double(std::max<int64_t>(1, prediction.size(0)));
  switch (reduction) {
    case 0: return 1 / double(std::max<int64_t>(1, prediction.numel()));
    case 1: return 1;
    case 2: return 1 / batch;
    case 3: return 0.5 / batch;
    default: STD_TORCH_CHECK(false, "fastpose: reduction must be 0 to 3"); return 0;
  }
}

// The gradient of a mean is about 1e-7 and would be lost in float16, so there the factor waits for the upstream gradient.
static bool scaled_later(ScalarType dtype) { return dtype == ScalarType::Half; }

static void run_cpu(const HeatmapMSELoss& all, const std::vector<size_t>& which, bool joints_innermost, std::vector<double>& losses) {
  if (which.empty()) return;
  std::vector<Stack> stacks;
  for (size_t s : which) stacks.push_back(all.stacks[s]);
  HeatmapMSELoss job = all;
  job.stacks = stacks.data();
  job.stack_count = int64_t(stacks.size());
  const Gaussians& g = job.gaussians;
  const int64_t parts = joints_innermost ? g.batch : g.batch * g.joints;
  const int64_t elements = g.height * g.width * (joints_innermost ? g.joints : 1);
  std::vector<double> sums(stacks.size() * parts);
  parallel_parts(parts, elements * job.stack_count, [&](int64_t begin, int64_t end) {
    if (joints_innermost) FASTPOSE_SIMD_BEST(heatmap_mse_loss_samples)(job, sums.data(), begin, end);
    else FASTPOSE_SIMD_BEST(heatmap_mse_loss_planes)(job, sums.data(), begin, end);
  });
  for (size_t i = 0; i < which.size(); ++i)
    for (int64_t part = 0; part < parts; ++part) losses[which[i]] += sums[i * parts + part];
}

static bool joints_innermost(const Maps& m, int64_t joints) { return m.joint == 1 && m.column == joints && joints > 1; }
