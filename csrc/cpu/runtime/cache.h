// The size of the caches, for choosing how much to work on at a time.

#pragma once

#include <cstdint>

namespace fastres::cpu {

// Of one core; a common size where the system does not say.
int64_t level2_cache_bytes();

}  // namespace fastres::cpu
