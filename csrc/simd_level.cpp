#include "simd_level.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace fastpose {

const char* simd_level_name(SimdLevel level) {
  switch (level) {
    case SimdLevel::avx512: return "avx512";
    case SimdLevel::avx2: return "avx2";
    default: return "baseline";
  }
}

static SimdLevel detect() {
  SimdLevel best = SimdLevel::baseline;
#ifdef FASTPOSE_X86_LEVELS
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    best = SimdLevel::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      best = SimdLevel::avx512;
  }
#endif
  if (const char* asked = std::getenv("FASTPOSE_SIMD"))
    for (SimdLevel level : {SimdLevel::baseline, SimdLevel::avx2})
      if (level < best && std::strcmp(asked, simd_level_name(level)) == 0) return level;
  return best;
}

SimdLevel simd_level() {
  static const SimdLevel level = detect();
  return level;
}

}  // namespace fastpose
