#pragma once
#include "device.cuh"
#include "soft_argmax2d.h"

namespace fastpose {

// 2^a by the special function unit alone: within 2 ulp, 0 below 2^-126.
__device__ __forceinline__ float fast_exp2(float a) {
#ifdef __CUDA_ARCH__
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(a));
  return power;
#else
  return exp2f(a);
#endif
}

// ---- one thread's pixels --------------------------------------------------------------------------------------------------

// Sums with weights w = 2^(sharpness (value - max)) and offsets d from (x, y), where the largest value so far lies; they move with it,
// so that the squares of a peaked map stay small.
template <bool kCovariance> struct Sums {
  float max, x, y;
  float w, wx, wy;   // of w, w dx, w dy
  float xx, yy, xy;  // of w dx^2, w dy^2, w dx dy

  __device__ __forceinline__ static Sums none(float x) { return {-INFINITY, x, 0, 0, 0, 0, 0, 0, 0}; }

  // Makes a larger value at (new_x, new_y) the maximum.
  __device__ __forceinline__ void move(float new_max, float new_x, float new_y, float sharpness) {
    const float dx = new_x - x, dy = new_y - y, shrink = shrink_to(new_max, sharpness);
    if (kCovariance) {
      xx = shrink * (xx + dx * (dx * w - 2 * wx));
      xy = shrink * (xy + dx * (dy * w - wy) - dy * wx);
    }
    wx = shrink * (wx - dx * w);
    x = new_x;
    move_rows(new_max, new_y, shrink);
  }

  // The same within the column x, where wx, xx and xy stay 0.
  __device__ __forceinline__ void move_down(float new_max, float new_y, float sharpness) {
    move_rows(new_max, new_y, shrink_to(new_max, sharpness));
  }

  // Takes in the pixels of other sums. Of equal maxima the first in row-major order counts.
  __device__ __forceinline__ void add(Sums other, float sharpness) {
    const bool earlier = other.y < y || (other.y == y && other.x < x);
    if (other.max > max || (other.max == max && earlier)) move(other.max, other.x, other.y, sharpness);
    else other.move(max, x, y, sharpness);
    w += other.w;
    wx += other.wx;
    wy += other.wy;
    xx += other.xx;
    yy += other.yy;
    xy += other.xy;
  }

  // What to subtract from values. Where all were -infinity so far they then weigh 0; NaN and +infinity make the sums NaN.
  __device__ __forceinline__ float base() const { return max == -INFINITY ? 0.0f : max; }

 private:
  // 0 while there is no weight. The difference of two infinities would be NaN.
  __device__ __forceinline__ float shrink_to(float new_max, float sharpness) const {
    return max == new_max ? 1.0f : fast_exp2(sharpness * (max - new_max));
  }
  __device__ __forceinline__ void move_rows(float new_max, float new_y, float shrink) {
    const float dy = new_y - y;
    if (kCovariance) yy = shrink * (yy + dy * (dy * w - 2 * wy));
    wy = shrink * (wy - dy * w);
    w *= shrink;
    max = new_max;
    y = new_y;
  }
};

template <int N> __device__ __forceinline__ float largest(const float (&v)[N]) {
  float top = v[0];
#pragma unroll
  for (int i = 1; i < N; ++i) top = fmaxf(top, v[i]);  // NaN loses; it comes in by its weight
  return top;
}

template <int N> __device__ __forceinline__ int first_of(const float (&v)[N], float value) {
  int first = N - 1;
#pragma unroll
  for (int i = N - 2; i >= 0; --i) first = v[i] == value ? i : first;
  return first;
}

// ---- the threads of a block together ------------------------------------------------------------------------------------------

struct Plus {
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};
struct Smaller {
  __device__ __forceinline__ int64_t operator()(int64_t a, int64_t b) const { return a < b ? a : b; }
};
struct Larger {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Reduces each v[n] over the threads of a block of up to kThreads whose numbers are equal modulo kGroups: the same bits in every run,
// and in all of them.
template <int kThreads, int kGroups, int N, typename A, typename F> __device__ __forceinline__ void reduce(A (&v)[N], F f) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int offset = 16; offset >= kGroups; offset /= 2) v[n] = f(v[n], __shfl_xor_sync(0xffffffffu, v[n], offset));
  if constexpr (kThreads > 32) {
    __shared__ A warps[kThreads / 32][kGroups][N];
    const int lane = int(threadIdx.x) % 32, count = int(blockDim.x) / 32;
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (lane < kGroups) warps[threadIdx.x / 32][lane][n] = v[n];
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = warps[0][lane % kGroups][n];
#pragma unroll 1
    for (int warp = 1; warp < count; ++warp)
#pragma unroll
      for (int n = 0; n < N; ++n) v[n] = f(v[n], warps[warp][lane % kGroups][n]);
    __syncthreads();  // the next reduction writes `warps` again
  }
}

// The state of what the threads of equal number modulo kGroups have summed, in all of them.
template <int kThreads, int kGroups, bool kCovariance>
__device__ __forceinline__ SoftmaxState<float> combine(const Sums<kCovariance>& s, float sharpness) {
  float max[1] = {s.max};
  reduce<kThreads, kGroups>(max, Larger{});
  const bool top = s.max == max[0];
  const float scale = top ? 1.0f : fast_exp2(sharpness * (s.max - max[0]));  // the difference of two infinities is NaN
  int64_t place[1] = {top ? int64_t(s.y) << 32 | int64_t(s.x) : INT64_MAX};  // row, then column
  reduce<kThreads, kGroups>(place, Smaller{});
  const int32_t x = int32_t(place[0]), y = int32_t(place[0] >> 32);
  float dx = s.x - float(x), dy = s.y - float(y);
  float first[3] = {scale * s.w, scale * (s.wx + dx * s.w), scale * (s.wy + dy * s.w)};
  reduce<kThreads, kGroups>(first, Plus{});
  const float part = first[0] == 0 ? 0.0f : 1 / first[0];
  SoftmaxState<float> state{max[0], x, y, first[0], part * first[1], part * first[2], 0, 0, 0};
  if constexpr (kCovariance) {  // about the mean of all
    dx -= state.offset_x;
    dy -= state.offset_y;
    float second[3] = {scale * (s.xx + dx * (2 * s.wx + dx * s.w)), scale * (s.yy + dy * (2 * s.wy + dy * s.w)),
                       scale * (s.xy + dx * s.wy + dy * (s.wx + dx * s.w))};
    reduce<kThreads, kGroups>(second, Plus{});
    state.xx = second[0];
    state.yy = second[1];
    state.xy = second[2];
  }
  return state;
}

// Where a plane is shared out over several blocks their states are merged afterwards, by one thread a plane, first to last.
constexpr int kMergeThreads = 128;
__global__ void __launch_bounds__(kMergeThreads)
    soft_argmax2d_parts_kernel(SoftArgmax2d job, float sharpness, const SoftmaxState<float>* states, int parts) {
  const int64_t plane = int64_t(blockIdx.x) * kMergeThreads + threadIdx.x;
  if (plane >= job.batch * job.joints) return;
  SoftmaxState<float> state = states[plane * parts];
  for (int part = 1; part < parts; ++part) state = merged(state, states[plane * parts + part], sharpness);
  finish(job, plane, state);
}

__device__ __forceinline__ void hand_on(const SoftArgmax2d& job, int64_t plane, int part, int parts, const SoftmaxState<float>& state,
                                        SoftmaxState<float>* states) {
  if (parts == 1) finish(job, plane, state);
  else states[plane * parts + part] = state;
}

// ---- planes (NCHW and anything else) --------------------------------------------------------------------------------------------

// Half precision brings twice the exponentials a byte: fewer threads with more to do each leave time for them.
template <typename T> constexpr int kPlaneThreads = sizeof(T) == 4 ? 64 : 32;
constexpr int kInFlight = 8, kBackwardInFlight = 4;  // packs that a thread has asked for before it uses the first

// A block takes `rows` rows of a plane.
struct PlaneTiling {
  int parts, rows;
};

// A thread's place in maps while it goes over a plane in steps of a block.
template <typename T> struct Cursor {
  T* p;
  int64_t column, step, wrap;  // strides: of columns, of a step, and to where the next row begins from beyond the end of one
};

// A thread's packs of rows first .. end-1.
template <typename T, bool kPacked> struct PackWalk {
  static constexpr int V = kPack<T>, kThreads = kPlaneThreads<T>;
  int packs, width, end;  // packs a row, columns, rows
  int row, column;

  __device__ __forceinline__ PackWalk(const SoftArgmax2d& job, int first, int rows)
      : packs(int((job.width + V - 1) / V)), width(int(job.width)), end(min(first + rows, int(job.height))) {
    row = first + int(threadIdx.x) / packs;
    column = int(threadIdx.x) % packs * V;
  }
  template <typename U> __device__ __forceinline__ Cursor<U> cursor(U* plane, const Maps& m) const {
    return {plane + row * m.row + column * m.column, m.column, kThreads / packs * m.row + kThreads % packs * V * m.column,
            m.row - packs * V * m.column};
  }
  __device__ __forceinline__ bool done() const { return row >= end; }
  template <typename U> __device__ __forceinline__ void advance(Cursor<U>& at) {
    row += kThreads / packs;
    column += kThreads % packs * V;
    at.p += at.step;
    if (column < packs * V) return;
    column -= packs * V;
    ++row;
    at.p += at.wrap;
  }
  template <typename U> __device__ __forceinline__ void load(const Cursor<U>& at, float (&v)[V]) const {
    if (row < end) {
      if (kPacked) load_pack<T>(at.p, v);
      else load_scattered<T>(at.p, at.column, min(V, width - column), -INFINITY, v);
    } else {
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] = -INFINITY;  // weighs nothing
    }
  }
  __device__ __forceinline__ void store(const float (&v)[V], const Cursor<T>& at) const {
    if (kPacked) store_pack<T>(v, at.p);
    else store_scattered<T>(v, at.p, at.column, min(V, width - column));
  }
};

// Online softmax: every element read once, one exponential each. Bytes: the heatmaps.
template <typename T, bool kPacked, bool kCovariance>
__global__ void __launch_bounds__(kPlaneThreads<T>)
    soft_argmax2d_kernel(SoftArgmax2d job, float sharpness, PlaneTiling tiling, SoftmaxState<float>* states) {
  constexpr int V = kPack<T>;
  const unsigned plane = blockIdx.x / unsigned(tiling.parts), part = blockIdx.x % unsigned(tiling.parts);
  PackWalk<T, kPacked> walk(job, int(part) * tiling.rows, tiling.rows);
  auto at = walk.cursor(job.heatmaps.plane<const T>(plane / unsigned(job.joints), plane % unsigned(job.joints)), job.heatmaps);
  auto s = Sums<kCovariance>::none(0);
  while (!walk.done()) {
    float v[kInFlight][V], tops[kInFlight];
    int rows[kInFlight], columns[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i, walk.advance(at)) {
      rows[i] = walk.row;
      columns[i] = walk.column;
      walk.load(at, v[i]);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) tops[i] = largest(v[i]);
    const float top = largest(tops);
    if (top > s.max) {
      float pack[V];
      int row = 0, column = 0;
#pragma unroll
      for (int i = kInFlight - 1; i >= 0; --i) {
        const bool here = tops[i] == top;
        row = here ? rows[i] : row;
        column = here ? columns[i] : column;
#pragma unroll
        for (int e = 0; e < V; ++e) pack[e] = here || i == kInFlight - 1 ? v[i][e] : pack[e];
      }
      s.move(top, float(column + first_of(pack, top)), float(row), sharpness);
    }
    const float base = s.base();
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const float dx = float(columns[i]) - s.x, dy = float(rows[i]) - s.y;
      float w = 0, along = 0, squared = 0;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const float weight = fast_exp2(sharpness * (v[i][e] - base));
        const float d = kCovariance ? dx + float(e) : float(e);  // squares must be about the maximum from the start
        w += weight;
        along = fmaf(weight, d, along);
        if (kCovariance) squared = fmaf(weight * d, d, squared);
      }
      if (!kCovariance) along = fmaf(dx, w, along);
      s.w += w;
      s.wx += along;
      s.wy = fmaf(dy, w, s.wy);
      if (kCovariance) {
        s.xx += squared;
        s.yy = fmaf(dy * dy, w, s.yy);
        s.xy = fmaf(dy, along, s.xy);
      }
    }
  }
  const SoftmaxState<float> state = combine<kPlaneThreads<T>, 1>(s, sharpness);
  if (threadIdx.x == 0) hand_on(job, plane, int(part), tiling.parts, state, states);
}

// w (constant + x dx + y dy + xx dx^2 + yy dy^2 + xy dx dy), see Slope. Bytes: heatmaps read once, gradient written once.
template <typename T, bool kPacked>
__global__ void __launch_bounds__(kPlaneThreads<T>)
    soft_argmax2d_backward_kernel(SoftArgmax2dBackward job, float sharpness, PlaneTiling tiling) {
  constexpr int V = kPack<T>;
  const SoftArgmax2d& f = job.forward;
  const unsigned plane = blockIdx.x / unsigned(tiling.parts), part = blockIdx.x % unsigned(tiling.parts);
  const unsigned b = plane / unsigned(f.joints), k = plane % unsigned(f.joints);
  const T* data = f.heatmaps.plane<const T>(b, k);
  T* gradient = job.gradient.plane<T>(b, k);
  const Slope<float> s = slope_of<float>(job, plane);
  const float max = widen(s.at_peak(data, f.heatmaps));
  PackWalk<T, kPacked> walk(f, int(part) * tiling.rows, tiling.rows), ahead = walk;
  auto from = walk.cursor(data, f.heatmaps);
  auto to = walk.cursor(gradient, job.gradient);
  bool has_peak = false;
  while (!walk.done()) {
    float v[kBackwardInFlight][V];
#pragma unroll
    for (int i = 0; i < kBackwardInFlight; ++i, ahead.advance(from)) ahead.load(from, v[i]);
#pragma unroll
    for (int i = 0; i < kBackwardInFlight; ++i, walk.advance(to)) {
      if (walk.done()) break;
      const float dx = float(walk.column) - s.mean_x, dy = float(walk.row) - s.mean_y;
      const float constant = s.constant + dy * (s.y + s.yy * dy), first = s.x + s.xy * dy;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const float d = dx + float(e);
        v[i][e] = fast_exp2(sharpness * (v[i][e] - max)) * (constant + d * (first + s.xx * d));
      }
      walk.store(v[i], to);
      has_peak |= walk.row == int(s.peak_y) && unsigned(int(s.peak_x) - walk.column) < unsigned(V);
    }
  }
  if (has_peak) narrow(s.peak_gradient(), &s.at_peak(gradient, job.gradient));  // over what this thread has just written
}

// ---- joints innermost (channels_last) --------------------------------------------------------------------------------------------

// A thread owns a pack of joints and walks down a column. A block takes kJointGroup joints of an image, `columns` columns by `lanes`
// rows at a time, `rows` rows in all.
constexpr int kJointGroup = 16, kJointThreads = 128;
template <typename T> constexpr int kGroupPacks = kJointGroup / kPack<T>;

struct JointTiling {
  int groups, tiles, parts;  // of joints, of columns, of rows
  int columns, lanes, rows;
};

template <typename T> struct JointPlace {
  int64_t b, k;           // of the thread's first joint
  int count;              // of its joints
  int part;               // of the plane
  int pack, column, row;  // among the group's; of the first pixel
  int end;                // of the rows; 0: the thread has no pixels

  __device__ __forceinline__ JointPlace(const SoftArgmax2d& job, const JointTiling& t) {
    unsigned block = blockIdx.x;
    const unsigned group = block % unsigned(t.groups);
    block /= unsigned(t.groups);
    part = int(block % unsigned(t.tiles * t.parts));
    b = block / unsigned(t.tiles * t.parts);
    const int pixel = int(threadIdx.x) / kGroupPacks<T>, tile = part % t.tiles, first = part / t.tiles * t.rows;
    pack = int(threadIdx.x) % kGroupPacks<T>;
    k = int64_t(group) * kJointGroup + pack * kPack<T>;
    column = tile * t.columns + pixel % t.columns;
    row = first + pixel / t.columns;
    const bool outside = k >= job.joints || column >= job.width || pixel >= t.columns * t.lanes;
    end = outside ? 0 : min(first + t.rows, int(job.height));
    count = int(min(int64_t(kPack<T>), job.joints - k));
  }
  template <bool kPacked> __device__ __forceinline__ void load(const T* p, const Maps& m, float (&v)[kPack<T>]) const {
    if (kPacked) load_pack<T>(p, v);
    else load_scattered<T>(p, m.joint, count, -INFINITY, v);
  }
  template <bool kPacked> __device__ __forceinline__ void store(const float (&v)[kPack<T>], T* p, const Maps& m) const {
    if (kPacked) store_pack<T>(v, p);
    else store_scattered<T>(v, p, m.joint, count);
  }
};

// kPacked: packs are whole and aligned.
template <typename T, bool kPacked, bool kCovariance>
__device__ __forceinline__ void sum_joints(const SoftArgmax2d& job, float sharpness, const JointTiling& tiling, SoftmaxState<float>* states) {
  constexpr int V = kPack<T>;
  const JointPlace<T> at(job, tiling);
  const float step = float(tiling.lanes);
  Sums<kCovariance> sums[V];
#pragma unroll
  for (int n = 0; n < V; ++n) sums[n] = Sums<kCovariance>::none(float(at.column));
  for (int row = at.row; row < at.end; row += kInFlight * tiling.lanes) {
    const T* p = job.heatmaps.plane<const T>(at.b, at.k) + row * job.heatmaps.row + at.column * job.heatmaps.column;
    float v[kInFlight][V];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (row + i * tiling.lanes < at.end) {
        at.template load<kPacked>(p + i * tiling.lanes * job.heatmaps.row, job.heatmaps, v[i]);
      } else {
#pragma unroll
        for (int n = 0; n < V; ++n) v[i][n] = -INFINITY;  // weighs nothing
      }
    }
#pragma unroll
    for (int n = 0; n < V; ++n) {
      Sums<kCovariance>& s = sums[n];
      float run[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) run[i] = v[i][n];
      const float top = largest(run);
      if (top > s.max) s.move_down(top, float(row + first_of(run, top) * tiling.lanes), sharpness);
      const float base = s.base(), dy = float(row) - s.y;
      float w = 0, along = 0;
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const float weight = fast_exp2(sharpness * (run[i] - base));
        const float d = kCovariance ? fmaf(step, float(i), dy) : float(i);  // squares must be about the maximum from the start
        w += weight;
        along = fmaf(weight, d, along);
        if (kCovariance) s.yy = fmaf(weight * d, d, s.yy);
      }
      s.w += w;
      s.wy += kCovariance ? along : fmaf(dy, w, step * along);
    }
  }
  // From a thread a pixel to a thread a joint: each gathers every so manieth pixel's sums.
  constexpr int kNumbers = kCovariance ? 5 : 4, kPitch = kJointThreads + 4;  // spread over the banks
  __shared__ float shared[V][kNumbers][kPitch], columns[kJointThreads];
  columns[threadIdx.x] = float(at.column);
#pragma unroll
  for (int n = 0; n < V; ++n) {
    const Sums<kCovariance>& s = sums[n];
    const float numbers[5] = {s.max, s.y, s.w, s.wy, s.yy};
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) shared[n][i][threadIdx.x] = numbers[i];
  }
  __syncthreads();
  const int joint = int(threadIdx.x) % kJointGroup, pixels = tiling.columns * tiling.lanes;
  auto all = Sums<kCovariance>::none(0);
#pragma unroll 1
  for (int pixel = int(threadIdx.x) / kJointGroup; pixel < pixels; pixel += int(blockDim.x) / kJointGroup) {
    const auto& numbers = shared[joint % V];
    const int thread = pixel * kGroupPacks<T> + joint / V;
    Sums<kCovariance> s{numbers[0][thread], columns[thread], numbers[1][thread], numbers[2][thread], 0,
                        numbers[3][thread], 0, kCovariance ? numbers[kNumbers - 1][thread] : 0.0f, 0};
    all.add(s, sharpness);
  }
  const SoftmaxState<float> state = combine<kJointThreads, kJointGroup>(all, sharpness);
  const int64_t k = at.k - at.pack * V + joint;
  if (threadIdx.x < kJointGroup && k < job.joints)
    hand_on(job, at.b * job.joints + k, at.part, tiling.tiles * tiling.parts, state, states);
}

// Bytes: the heatmaps, read once.
template <typename T, bool kCovariance>
__global__ void __launch_bounds__(kJointThreads)
    soft_argmax2d_joints_kernel(SoftArgmax2d job, float sharpness, JointTiling tiling, SoftmaxState<float>* states) {
  sum_joints<T, true, kCovariance>(job, sharpness, tiling, states);
}
template <typename T, bool kCovariance>
__global__ void __launch_bounds__(kJointThreads)
    soft_argmax2d_odd_joints_kernel(SoftArgmax2d job, float sharpness, JointTiling tiling, SoftmaxState<float>* states) {
  sum_joints<T, false, kCovariance>(job, sharpness, tiling, states);
}

template <typename T, bool kPacked>
__device__ __forceinline__ void differentiate_joints(const SoftArgmax2dBackward& job, float sharpness, const JointTiling& tiling) {
  constexpr int V = kPack<T>;
  const SoftArgmax2d& f = job.forward;
  const JointPlace<T> at(f, tiling);
  __shared__ Slope<float> slopes[kJointGroup];
  if (threadIdx.x < kJointGroup) {
    const int64_t k = at.k - at.pack * V + threadIdx.x;
    if (k < f.joints) {
      Slope<float>& s = slopes[threadIdx.x];
      s = slope_of<float>(job, at.b * f.joints + k);
      s.max = widen(s.at_peak(f.heatmaps.plane<const T>(at.b, k), f.heatmaps));
    }
  }
  __syncthreads();
  if (at.end == 0) return;
  // Along a column the slope is a parabola in dy.
  float max[V], mean[V], constant[V], first[V], second[V];
#pragma unroll
  for (int n = 0; n < V; ++n) {
    const Slope<float>& s = slopes[at.pack * V + n];
    const float dx = float(at.column) - s.mean_x;
    max[n] = s.max;
    mean[n] = s.mean_y;
    constant[n] = s.constant + dx * (s.x + s.xx * dx);
    first[n] = s.y + s.xy * dx;
    second[n] = s.yy;
  }
  T* gradient = job.gradient.plane<T>(at.b, at.k) + at.column * job.gradient.column;
  for (int row = at.row; row < at.end; row += kBackwardInFlight * tiling.lanes) {
    const T* p = f.heatmaps.plane<const T>(at.b, at.k) + row * f.heatmaps.row + at.column * f.heatmaps.column;
    float v[kBackwardInFlight][V];
#pragma unroll
    for (int i = 0; i < kBackwardInFlight; ++i)
      if (row + i * tiling.lanes < at.end) at.template load<kPacked>(p + i * tiling.lanes * f.heatmaps.row, f.heatmaps, v[i]);
#pragma unroll
    for (int i = 0; i < kBackwardInFlight; ++i) {
      const int y = row + i * tiling.lanes;
      if (y >= at.end) break;
#pragma unroll
      for (int n = 0; n < V; ++n) {
        const float dy = float(y) - mean[n];
        v[i][n] = fast_exp2(sharpness * (v[i][n] - max[n])) * (constant[n] + dy * (first[n] + second[n] * dy));
      }
      at.template store<kPacked>(v[i], gradient + y * job.gradient.row, job.gradient);
    }
  }
#pragma unroll
  for (int n = 0; n < V; ++n) {
    if (n >= at.count) break;
    const Slope<float>& s = slopes[at.pack * V + n];
    const int64_t down = s.peak_y - at.row;
    if (s.peak_x == at.column && down >= 0 && s.peak_y < at.end && down % tiling.lanes == 0)  // written by this thread above
      narrow(s.peak_gradient(), &s.at_peak(job.gradient.plane<T>(at.b, at.k + n), job.gradient));
  }
}

// Bytes: heatmaps read once, gradient written once.
template <typename T>
__global__ void __launch_bounds__(kJointThreads)
    soft_argmax2d_joints_backward_kernel(SoftArgmax2dBackward job, float sharpness, JointTiling tiling) {
  differentiate_joints<T, true>(job, sharpness, tiling);
}
template <typename T>
__global__ void __launch_bounds__(kJointThreads)
    soft_argmax2d_odd_joints_backward_kernel(SoftArgmax2dBackward job, float sharpness, JointTiling tiling) {
  differentiate_joints<T, false>(job, sharpness, tiling);
}

}  // namespace fastpose
