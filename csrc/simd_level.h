// One source, several instruction sets: CMake compiles every *_simd.cpp once per level into a namespace of its name,
// and the best level of the running CPU is chosen at the first call. On aarch64 NEON is the baseline and the only level.
// FASTPOSE_X86_LEVELS: those of x86-64 are built.
#pragma once

#ifdef FASTPOSE_X86_LEVELS
#define FASTPOSE_SIMD_KERNEL(name, ...)         \
  namespace baseline { void name(__VA_ARGS__); } \
  namespace avx2 { void name(__VA_ARGS__); }     \
  namespace avx512 { void name(__VA_ARGS__); }
#define FASTPOSE_SIMD_BEST(name)                                   \
  (fastpose::simd_level() == fastpose::SimdLevel::avx512 ? avx512::name \
   : fastpose::simd_level() == fastpose::SimdLevel::avx2 ? avx2::name   \
                                                         : baseline::name)
#else
#define FASTPOSE_SIMD_KERNEL(name, ...) namespace baseline { void name(__VA_ARGS__); }
#define FASTPOSE_SIMD_BEST(name) baseline::name
#endif

namespace fastpose {

enum class SimdLevel { baseline, avx2, avx512 };

// The level in use: the best that the CPU has, or a lower one named by the environment variable FASTPOSE_SIMD
// (read once; for tests and for comparing levels on one machine).
SimdLevel simd_level();
const char* simd_level_name(SimdLevel level);

}  // namespace fastpose
