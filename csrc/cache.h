// What stays in the CPU's caches.
#pragma once
#include <unistd.h>

#include <cstdint>

namespace fastpose {

// Whether maps of so many bytes, read and written once, are gone from the caches before anybody comes back to them. Half of the last
// level: with 32 MiB (Zen 3), writing a loss's gradient past the caches and then reading it is slower by a fifth at 12 MiB, and
// faster by a tenth at 16 MiB, by a fifth from 20 MiB on.
inline bool outgrow_cache(int64_t bytes) {
  static const int64_t size = [] {
    int64_t level3 = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
    level3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return level3 > 0 ? level3 : int64_t(32) << 20;
  }();
  return 2 * bytes >= size;
}

}  // namespace fastpose
