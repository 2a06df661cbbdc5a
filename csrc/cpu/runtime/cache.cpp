#include "cache.h"

#include <unistd.h>

namespace fastres::cpu {

int64_t level2_cache_bytes() {
  constexpr int64_t kCommon = 512 * 1024;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return size > 0 ? size : kCommon;
#else
  return kCommon;
#endif
}

}  // namespace fastres::cpu
