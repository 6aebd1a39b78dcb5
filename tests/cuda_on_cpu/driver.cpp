// Runs every CUDA kernel of one op on small maps, for the sanitizers: driver <op>. Prints the barriers that it came by.
#include <cstdio>
#include <limits>

#include "crop_windows.h"
#include "decode_heatmaps.h"
#include "device.cuh"
#include "distance_transform2d.h"
#include "gaussian_conv2d.h"
#include "gaussian_heatmap.h"
#include "heatmap_mse_loss.h"
#include "local_contrast_normalization.h"
#include "soft_argmax2d.h"

using namespace fastpose;

namespace {

constexpr int64_t kBatch = 1, kHeight = 5;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Memory of exactly the size that is asked for, so that AddressSanitizer sees the first byte beyond.
std::vector<std::unique_ptr<char[]>> memory;

template <typename T> T* allocate(int64_t count) {
  memory.emplace_back(new char[count * sizeof(T)]());
  return reinterpret_cast<T*>(memory.back().get());
}

float random_number() {  // in [0, 1), the same in every run
  static uint32_t state = 1;
  state = state * 1664525u + 1013904223u;
  return float(state >> 8) / float(1 << 24);
}

float* numbers(int64_t count, float scale) {
  float* data = allocate<float>(count);
  for (int64_t i = 0; i < count; ++i) data[i] = scale * random_number();
  return data;
}

// Which packs fit: of columns, of joints, or none.
enum class Layout { planes, channels_last, odd };

struct Shape {
  DType dtype;
  Layout layout;
  int64_t joints, width, batch = kBatch, height = kHeight;

  int64_t elements() const { return batch * joints * height * width; }
};

Maps new_maps(const Shape& s) {
  const int64_t size = s.dtype == DType::float32 ? 4 : 2;
  char* data = allocate<char>(s.elements() * size);
  for (int64_t i = 0; i < s.elements(); ++i) {
    const float value = i % 101 == 7 ? kNaN : random_number();
    if (s.dtype == DType::float32) std::memcpy(data + i * size, &value, 4);
    else narrow(value, reinterpret_cast<BFloat16*>(data + i * size));
  }
  const int64_t plane = s.height * s.width, image = s.joints * plane;
  return s.layout == Layout::channels_last ? Maps{data, image, 1, s.width * s.joints, s.joints} : Maps{data, image, plane, s.width, 1};
}

Gaussians gaussians(const Shape& s, int64_t people, bool disc) {
  float* keypoints = numbers(kBatch * people * s.joints * 2, float(s.width));
  keypoints[0] = kNaN;
  float* sigmas = allocate<float>(s.joints);
  std::fill_n(sigmas, s.joints, 1.5f);
  return {.keypoints = keypoints, .sigmas = sigmas, .sigma = 1, .batch = kBatch, .people = people, .joints = s.joints,
          .height = kHeight, .width = s.width, .rounding = Rounding::none, .radius = 3.2, .circular = disc, .add = disc,
          .amplitude = 1, .offset = 0};
}

constexpr int64_t kManyPeople = 9;  // more than shared memory holds at a time

void gaussian_heatmap(const Shape& s) {
  for (bool disc : {false, true}) {
    gaussian_heatmap_cuda({gaussians(s, disc ? kManyPeople : 1, disc), s.dtype, new_maps(s)}, nullptr);
    constexpr int64_t kPeople = 2;
    const int64_t count = kBatch * kPeople * s.joints;
    const Gaussians g = gaussians(s, kPeople, disc);
    gaussian_heatmap_backward_cuda({g, s.dtype, new_maps(s), allocate<float>(2 * count), allocate<float>(count)}, nullptr);
  }
}

void heatmap_mse_loss(const Shape& s) {
  constexpr int64_t kStacks = 2;
  for (bool disc : {false, true}) {
    Stack stacks[kStacks];
    for (Stack& stack : stacks) stack = {new_maps(s), new_maps(s)};
    const Gaussians g = gaussians(s, disc ? kManyPeople : 1, disc);
    const HeatmapMSELoss job{g, s.dtype, stacks, kStacks, numbers(kBatch * s.joints, 1), true, 1, 2};
    heatmap_mse_loss_cuda(job, allocate<float>(kStacks * heatmap_mse_loss_tiles(job)), allocate<float>(kStacks), nullptr);
  }
  const Maps saved = new_maps(s);
  heatmap_mse_loss_scale_cuda({saved.data, saved.data, s.elements(), s.dtype, numbers(1, 1), 1}, nullptr);
}

void soft_argmax2d(const Shape& s) {
  const int64_t count = kBatch * s.joints;
  for (bool covariance : {false, true}) {
    const SoftArgmax2d job{s.dtype, new_maps(s), kBatch, s.joints, kHeight, s.width, 0.5, allocate<float>(2 * count),
                           allocate<float>(count), covariance ? allocate<float>(4 * count) : nullptr, allocate<int64_t>(count)};
    soft_argmax2d_cuda(job, allocate<char>(soft_argmax2d_state_bytes(job)), nullptr);
    soft_argmax2d_backward_cuda({job, numbers(2 * count, 1), numbers(count, 1), covariance ? numbers(4 * count, 1) : nullptr,
                                 new_maps(s)}, nullptr);
  }
}

void decode_heatmaps(const Shape& s) {
  const int64_t count = kBatch * s.joints;
  for (DecodeMethod method : {DecodeMethod::quarter, DecodeMethod::dark, DecodeMethod::soft_window})
    for (int64_t shift : {-1, 0, 1}) {  // -1: no flip test
      DecodeHeatmaps job{.dtype = s.dtype, .batch = kBatch, .joints = s.joints, .height = kHeight, .width = s.width,
                         .maps = new_maps(s), .flipped = shift < 0 ? Maps{} : new_maps(s), .flip_permutation = nullptr,
                         .flip_shift = std::max<int64_t>(shift, 0), .affine = numbers(6 * kBatch, 1), .method = method,
                         .border = QuarterBorder::msra, .blur_size = 5, .blur_sigma = 1, .radius = 2, .temperature = 1};
      job.coordinates = allocate<float>(2 * count);
      job.scores = allocate<float>(count);
      job.cells = allocate<int64_t>(count);
      const int64_t parts = kBatch * decode_heatmaps_parts(job) * s.joints;
      decode_heatmaps_cuda(job, allocate<float>(parts), allocate<int64_t>(parts), nullptr);
      decode_heatmaps_backward_cuda(job, new_maps(s), shift < 0 ? Maps{} : new_maps(s), nullptr);
    }
}

void crop_windows(const Shape& s) {
  constexpr int64_t kCount = 3;
  CropWindows job{.dtype = s.dtype, .image = false, .antialias = true, .batch = kBatch, .count = kCount, .channels = s.joints,
                  .source_height = kHeight, .source_width = s.width, .height = 4, .width = 6, .source = new_maps(s), .windows = {},
                  .boxes = nullptr, .normalisations = 1, .factor = {2}, .inside = {1}, .outside = {3}};
  float* boxes = numbers(kBatch * kCount * 4, float(s.width));
  boxes[0] = kNaN;
  job.boxes = boxes;
  job.windows = new_maps({s.dtype, s.layout, s.joints, job.width, kBatch * kCount, job.height});
  crop_windows_cuda(job, allocate<char>(crop_windows_bytes(job, false)), nullptr);
  job.source = new_maps(s);
  crop_windows_backward_cuda(job, allocate<char>(crop_windows_bytes(job, true)), nullptr);
  job.image = true;
  job.source.data = allocate<uint8_t>(s.elements());
  crop_windows_cuda(job, allocate<char>(crop_windows_bytes(job, false)), nullptr);
}

void local_contrast_normalization(const Shape& s) {
  for (int64_t size : {5, 11}) {
    LocalContrast job{.dtype = s.dtype, .batch = kBatch, .channels = s.joints, .height = kHeight, .width = s.width,
                      .images = new_maps(s), .result = new_maps(s), .gradient = new_maps(s),
                      .mean = allocate<float>(kBatch * kHeight * s.width), .deviation = allocate<float>(kBatch * kHeight * s.width),
                      .size = size, .weights = {}, .even = size == 5, .threshold = 0.1};
    std::fill_n(job.weights, size, 1 / double(size));
    local_contrast_normalization_cuda(job, nullptr);
    local_contrast_normalization_backward_cuda(job, nullptr);
  }
}

void distance_transform2d(const Shape& s) {
  const int64_t planes = kBatch * s.joints;
  const DistanceTransform job{s.dtype, kBatch, s.joints, kHeight, s.width, new_maps(s), new_maps(s), allocate<int32_t>(s.elements()),
                              numbers(6 * planes, 0.1f), allocate<float>(6 * planes)};
  distance_transform2d_cuda(job, allocate<char>(distance_transform2d_bytes(job, false)), nullptr);
  distance_transform2d_backward_cuda(job, allocate<char>(distance_transform2d_bytes(job, true)), nullptr);
}

void gaussian_conv2d(const Shape& s) {
  constexpr int64_t kKernel = 3, kPadding = 1;
  Gaussians g = gaussians({s.dtype, s.layout, 2, s.width}, 1, false);
  g.radius = std::numeric_limits<double>::infinity();
  g.offset = 0.5;
  const Shape weight{s.dtype, Layout::planes, g.joints, kKernel, s.joints, kKernel};
  const GaussianConv job{g, s.dtype, s.joints, kHeight, s.width, kKernel, kKernel, 1, kPadding, new_maps(weight).data, new_maps(s),
                         new_maps(s), allocate<float>(s.joints * (g.joints + 1) * kKernel * kKernel)};
  gaussian_conv2d_cuda(job, allocate<char>(gaussian_conv2d_bytes(job)), nullptr);
  gaussian_conv2d_backward_cuda(job, allocate<char>(gaussian_conv2d_bytes(job)), nullptr);
}

}  // namespace

int main(int, char** arguments) {
  const std::string op = arguments[1];
  for (DType dtype : {DType::float32, DType::bfloat16})
    for (Layout layout : {Layout::planes, Layout::channels_last, Layout::odd}) {
      const int64_t pack = dtype == DType::float32 ? 4 : 8;
      const Shape shape{dtype, layout, layout == Layout::channels_last ? pack : 2, layout == Layout::odd ? 67 : 72};
      if (op == "gaussian_heatmap") gaussian_heatmap(shape);
      else if (op == "heatmap_mse_loss") heatmap_mse_loss(shape);
      else if (op == "soft_argmax2d") soft_argmax2d(shape);
      else if (op == "decode_heatmaps") decode_heatmaps(shape);
      else if (op == "crop_windows") crop_windows(shape);
      else if (op == "local_contrast_normalization") local_contrast_normalization(shape);
      else if (op == "distance_transform2d") distance_transform2d(shape);
      else if (op == "gaussian_conv2d") gaussian_conv2d(shape);
      else return 2;
    }
  for (const std::string& barrier : cuda_on_cpu::reached) std::printf("barrier %s\n", barrier.c_str());
}
