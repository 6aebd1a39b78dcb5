// Runs CUDA C++ kernels on the CPU, for tests. The blocks of a launch run one after another, the threads of a block as fibers, which
// are many times faster than OS threads. ThreadSanitizer takes fibers for threads and sees every data race that a missing barrier
// makes; AddressSanitizer is told of their stacks. A thread that leaves the kernel before a barrier its block still reaches hangs the
// launch. Not modelled: partial warp masks, memory ordering weaker than the CPU's, the GPU's approximate arithmetic.
//
// The environment variable CUDA_ON_CPU_WITHOUT_BARRIER=file.cuh:line makes that one barrier do nothing: the race that this plants
// must be found, or either the barrier is not needed or the check is blind.
#pragma once
#include <ucontext.h>
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#elif defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <source_location>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

template <typename T> T __ldcs(const T* p) { return *p; }
template <typename T> T __ldg(const T* p) { return *p; }
template <typename T> void __stcs(T* p, T v) { *p = v; }

inline float __uint_as_float(uint32_t v) { return std::bit_cast<float>(v); }
inline uint32_t __float_as_uint(float v) { return std::bit_cast<uint32_t>(v); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
using std::max, std::min;

using __half = _Float16;
inline __half __ushort_as_half(uint16_t v) { return std::bit_cast<__half>(v); }
inline uint16_t __half_as_ushort(__half v) { return std::bit_cast<uint16_t>(v); }
inline float __half2float(__half v) { return float(v); }
inline __half __float2half_rn(float v) { return __half(v); }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  return {v != v ? uint16_t(0x7fff) : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}

namespace cuda_on_cpu {

inline dim3 grid, block;
inline dim3 block_index, thread_index;
inline unsigned rank;  // of the thread in its block

// What ThreadSanitizer is told. Turns of fibers order nothing, and what takes turns is not looked at: it would be full of races.
#if defined(__SANITIZE_THREAD__)
#define CUDA_ON_CPU_UNSEEN __attribute__((noinline, no_sanitize("thread")))
inline void* new_seen() { return __tsan_create_fiber(0); }
CUDA_ON_CPU_UNSEEN inline void see(void* seen) { __tsan_switch_to_fiber(seen, __tsan_switch_to_fiber_no_sync); }
CUDA_ON_CPU_UNSEEN inline void release(void* object) { __tsan_release(object); }
CUDA_ON_CPU_UNSEEN inline void acquire(void* object) { __tsan_acquire(object); }
inline void* const seen_outside = __tsan_get_current_fiber();
#else
#define CUDA_ON_CPU_UNSEEN __attribute__((noinline))
inline void* new_seen() { return nullptr; }
inline void see(void*) {}
inline void release(void*) {}
inline void acquire(void*) {}
inline void* const seen_outside = nullptr;
#endif

struct Stack {
  const void* bottom = nullptr;
  size_t size = 0;
};

// What AddressSanitizer is told: on whose stack the processor goes on, whence it came, and that a stack is used afresh.
#if defined(__SANITIZE_ADDRESS__)
inline void leave_for(const Stack& to) { __sanitizer_start_switch_fiber(nullptr, to.bottom, to.size); }
inline void arrive(Stack* from = nullptr) {
  Stack before;
  __sanitizer_finish_switch_fiber(nullptr, &before.bottom, &before.size);
  if (from) *from = before;
}
inline void clear(const Stack& stack) { __asan_unpoison_memory_region(stack.bottom, stack.size); }
#else
inline void leave_for(const Stack&) {}
inline void arrive(Stack* = nullptr) {}
inline void clear(const Stack&) {}
#endif

// A thread of a block, on a stack of its own; or whoever launches kernels, on the process's.
struct Fiber {
  Stack stack{};
  void* seen;
  bool started = true;
  ucontext_t start{};  // where it begins
  void* here[5]{};     // where it goes on. swapcontext would do that too, with two calls of the system each time
};
inline Fiber outside{.seen = seen_outside};
inline std::unique_ptr<Fiber> fibers[1024];  // of a block at most; they take turns at their barriers, in the order of their ranks
inline unsigned running;
inline const std::function<void()>* body;

CUDA_ON_CPU_UNSEEN inline void go_on(Fiber& fiber) {
  if (fiber.started) __builtin_longjmp(fiber.here, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

CUDA_ON_CPU_UNSEEN inline void turn(Fiber& from, Fiber& to) {
  see(to.seen);
  leave_for(to.stack);
  if (__builtin_setjmp(from.here) == 0) go_on(to);
  arrive();
}

CUDA_ON_CPU_UNSEEN inline void yield() {
  Fiber& before = *fibers[rank];
  rank = (rank + 1) % block.x;
  thread_index = {rank, 0, 0};
  turn(before, running ? *fibers[rank] : outside);
}

CUDA_ON_CPU_UNSEEN inline void run_fiber() {
  arrive(rank == 0 ? &outside.stack : nullptr);
  acquire(&body);
  (*body)();
  release(&body);
  --running;
  for (;;) yield();
}

class Barrier {
 public:
  explicit Barrier(unsigned threads) : threads_(threads) {}
  CUDA_ON_CPU_UNSEEN void arrive_and_wait() {
    const unsigned round = round_;
    release(&even_odd_[round % 2]);  // two in turn: a thread that is late to leave is not ordered after those that have come back
    if (++arrived_ == threads_) {
      arrived_ = 0;
      ++round_;
    }
    while (round == round_) yield();
    acquire(&even_odd_[round % 2]);
  }

 private:
  unsigned threads_, arrived_ = 0, round_ = 0;
  int even_odd_[2] = {};
};

CUDA_ON_CPU_UNSEEN inline void run_threads(unsigned threads, const std::function<void()>& thread) {
  constexpr size_t kStack = 256 << 10;
  body = &thread;
  for (unsigned t = 0; t < threads; ++t) {
    if (!fibers[t]) fibers[t] = std::make_unique<Fiber>(Stack{new char[kStack], kStack}, new_seen());
    Fiber& fiber = *fibers[t];
    clear(fiber.stack);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = const_cast<void*>(fiber.stack.bottom);
    fiber.start.uc_stack.ss_size = kStack;
    makecontext(&fiber.start, run_fiber, 0);
    fiber.started = false;
  }
  running = threads;
  rank = 0;
  release(&body);
  turn(outside, *fibers[0]);
  acquire(&body);
}

struct Warp {
  explicit Warp(unsigned lanes) : barrier(lanes) {}
  Barrier barrier;
  uint64_t lane[2][32] = {};  // shuffles take turns, so that one barrier each is enough
  unsigned shuffles[32] = {};
};

inline std::unique_ptr<Barrier> block_barrier;
inline std::vector<std::unique_ptr<Warp>> warps;

CUDA_ON_CPU_UNSEEN inline void enter_block(unsigned b) {
  block_index = {b, 0, 0};
  thread_index = {rank, 0, 0};
}

inline void run(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  grid = {blocks};
  block = {threads};
  block_barrier = std::make_unique<Barrier>(threads);
  Barrier block_end(threads);
  warps.clear();
  for (unsigned first = 0; first < threads; first += 32)
    warps.push_back(std::make_unique<Warp>(std::min(32u, threads - first)));
  run_threads(threads, [blocks, &kernel, &block_end] {
    for (unsigned b = 0; b < blocks; ++b) {
      enter_block(b);
      kernel();
      block_end.arrive_and_wait();  // shared memory is the next block's
    }
  });
}

template <typename T> T shuffle(T value, unsigned source) {
  static_assert(sizeof(T) <= 8);
  Warp& warp = *warps[rank / 32];
  uint64_t* lane = warp.lane[warp.shuffles[rank % 32]++ % 2];
  std::memcpy(lane + rank % 32, &value, sizeof value);
  warp.barrier.arrive_and_wait();
  std::memcpy(&value, lane + source % 32, sizeof value);
  return value;
}

inline std::set<std::string> reached;  // barriers, as file.cuh:line

// Notes a barrier, and tells whether it is the one to leave out.
inline bool removed(const std::source_location& here) {
  static const char* const left_out = std::getenv("CUDA_ON_CPU_WITHOUT_BARRIER");
  if (rank != 0 && left_out == nullptr) return false;
  const std::string file = here.file_name();
  const std::string barrier = file.substr(file.rfind('/') + 1) + ":" + std::to_string(here.line());
  if (rank == 0) reached.insert(barrier);
  return left_out != nullptr && barrier == left_out;
}

}  // namespace cuda_on_cpu

#define threadIdx cuda_on_cpu::thread_index
#define blockIdx cuda_on_cpu::block_index
#define blockDim cuda_on_cpu::block
#define gridDim cuda_on_cpu::grid

inline void __syncthreads(std::source_location here = std::source_location::current()) {
  if (!cuda_on_cpu::removed(here)) cuda_on_cpu::block_barrier->arrive_and_wait();
}
inline void __syncwarp(unsigned = ~0u, std::source_location here = std::source_location::current()) {
  if (!cuda_on_cpu::removed(here)) cuda_on_cpu::warps[cuda_on_cpu::rank / 32]->barrier.arrive_and_wait();
}
template <typename T> T __shfl_xor_sync(unsigned, T v, int mask) { return cuda_on_cpu::shuffle(v, cuda_on_cpu::rank % 32 ^ mask); }
template <typename T> T __shfl_sync(unsigned, T v, int source) { return cuda_on_cpu::shuffle(v, source); }
template <typename T> T __shfl_down_sync(unsigned, T v, int delta) {
  const unsigned lane = cuda_on_cpu::rank % 32;
  return cuda_on_cpu::shuffle(v, lane + delta < 32 ? lane + delta : lane);
}

namespace fastpose {

// Stands in for the launch of csrc/device.cuh.
template <typename... P, typename... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, void*, A... arguments) {
  if (blocks > 0) cuda_on_cpu::run(unsigned(blocks), unsigned(threads), [&] { kernel(P(arguments)...); });
}

}  // namespace fastpose
