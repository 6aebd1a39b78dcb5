#include "distance_transform2d.h"

#include "simd.h"

namespace fastpose::FASTPOSE_SIMD {

// The largest of what was offered so far, lane by lane, and its number; of equal ones the first.
template <typename A> struct Best {
  using Number = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  Vec<A> value = splat(-A(INFINITY));
  Mask<A> number{};

  void offer(Vec<A> v, Mask<A> n) {
    const Mask<A> better = v > value;
    value = better ? v : value;
    number = better ? n : number;
  }
};

constexpr int kAtATime = 4;  // vectors whose maxima are looked for together

template <typename T> class Forward {
 public:
  using A = Accumulator<T>;
  using Number = typename Best<A>::Number;
  explicit Forward(const DistanceTransform& job)
      : job_(job), pitch_(padded(job.width) + kAtATime * kLanes), row_(pitch_), along_(job.width + pitch_ + kAtATime * kLanes),
        down_(2 * job.height + kAtATime), best_(job.height * pitch_), columns_(job.height * pitch_) {}

  void plane(int64_t plane) {
    const Spring<A> x = spring_x<A>(job_, plane), y = spring_y<A>(job_, plane);
    // The costs of q = 0, 1, ... from one u lie side by side: the distance u - q falls.
    for (int64_t i = 0; i < job_.width + pitch_ + kAtATime * kLanes; ++i) along_.data[i] = x.cost(A(job_.width - 1 - i));
    for (int64_t i = 0; i < 2 * job_.height + kAtATime; ++i) down_.data[i] = y.cost(A(job_.height - 1 - i));
    const int64_t b = plane / job_.joints, k = plane % job_.joints;
    for (int64_t u = 0; u < job_.height; ++u) along_row(b, k, u);
    for (int64_t q = 0; q < job_.height; q += kAtATime) down_columns(b, k, q);
  }

 private:
  void along_row(int64_t b, int64_t k, int64_t u_y) {
    const T* in = job_.scores.plane<const T>(b, k) + u_y * job_.scores.row;
    for (int64_t x = 0; x < job_.width; x += kLanes) {
      const Vec<A> v = load_columns(in, x, job_.width, job_.scores.column, -A(INFINITY));
      store(v != v ? splat(-A(INFINITY)) : v, row_.data + x);
    }
    for (int64_t q = 0; q < job_.width; q += kAtATime * kLanes) {
      Best<A> best[kAtATime];
      const A* cost = along_.data + (job_.width - 1) + q;
      Mask<A> number{};
      for (int64_t u = 0; u < job_.width; ++u, --cost, number += 1)
        for (int i = 0; i < kAtATime; ++i) best[i].offer(row_.data[u] - load(cost + i * kLanes), number);
      for (int i = 0; i < kAtATime && q + i * kLanes < job_.width; ++i) {
        store(best[i].value, best_.data + u_y * pitch_ + q + i * kLanes);
        store_number(best[i].number, columns_.data + u_y * pitch_ + q + i * kLanes);
      }
    }
  }

  // Rows q_y .. q_y+kAtATime-1 of the result.
  void down_columns(int64_t b, int64_t k, int64_t q_y) {
    for (int64_t x = 0; x < job_.width; x += kLanes) {
      Best<A> best[kAtATime];
      const A* cost = down_.data + (job_.height - 1) + q_y;
      Mask<A> number{};
      for (int64_t u = 0; u < job_.height; ++u, --cost, number += 1) {
        const Vec<A> v = load(best_.data + u * pitch_ + x);
        for (int i = 0; i < kAtATime; ++i) best[i].offer(v - cost[i], number);
      }
      for (int i = 0; i < kAtATime && q_y + i < job_.height; ++i) {
        const int64_t q = q_y + i;
        store_columns(best[i].value, job_.values.plane<T>(b, k) + q * job_.values.row, x, job_.width, job_.values.column);
        int32_t* cells = job_.cells + ((b * job_.joints + k) * job_.height + q) * job_.width;
        for (int64_t lane = 0; lane < kLanes && x + lane < job_.width; ++lane) {
          const int64_t u = best[i].number[lane];
          cells[x + lane] = int32_t(u * job_.width) + columns_.data[u * pitch_ + x + lane];
        }
      }
    }
  }

  static void store_number(Mask<A> number, int32_t* p) {
    const Mask<float> n = __builtin_convertvector(number, Mask<float>);
    __builtin_memcpy(p, &n, sizeof n);
  }

  const DistanceTransform& job_;
  const int64_t pitch_;
  Scratch<A> row_, along_, down_, best_;
  Scratch<int32_t> columns_;
};

void distance_transform2d(const DistanceTransform& job, int64_t begin, int64_t end) {
  for_dtype(job.dtype, [&]<typename T>(Type<T>) {
    Forward<T> forward(job);
    for (int64_t plane = begin; plane < end; ++plane) forward.plane(plane);
  });
}

// One thread has the whole plane, and its sums are in double: hundreds of cells may have their maximum at one place.
template <typename T> static void backward_plane(const DistanceTransform& job, int64_t plane, double* sums) {
  using A = Accumulator<T>;
  const int64_t b = plane / job.joints, k = plane % job.joints, count = job.height * job.width;
  const Spring<A> along = spring_x<A>(job, plane), down = spring_y<A>(job, plane);
  const int32_t* cell = job.cells + plane * count;
  for (int64_t i = 0; i < count; ++i) sums[i] = 0;
  SpringSums<double> total;
  for (int64_t y = 0; y < job.height; ++y) {
    const T* upstream = job.values.plane<const T>(b, k) + y * job.values.row;
    for (int64_t x = 0; x < job.width; ++x, ++cell) {
      if (uint32_t(*cell) >= uint32_t(count)) continue;
      const A g = widen(upstream[x * job.values.column]);
      const int32_t u_y = *cell / int32_t(job.width), u_x = *cell - u_y * int32_t(job.width);
      sums[*cell] += double(g);
      total.add(g, A(u_x - x) - along.anchor, A(u_y - y) - down.anchor);
    }
  }
  total.write<A>(job, plane);
  for (int64_t y = 0; y < job.height; ++y) {
    T* out = job.scores.plane<T>(b, k) + y * job.scores.row;
    for (int64_t x = 0; x < job.width; ++x) narrow(A(sums[y * job.width + x]), out + x * job.scores.column);
  }
}

void distance_transform2d_backward(const DistanceTransform& job, int64_t begin, int64_t end) {
  Scratch<double> sums(job.height * job.width);
  for_dtype(job.dtype, [&]<typename T>(Type<T>) {
    for (int64_t plane = begin; plane < end; ++plane) backward_plane<T>(job, plane, sums.data);
  });
}

}  // namespace fastpose::FASTPOSE_SIMD
