#include "buffer_pool.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <unordered_map>

#include "pages.h"

namespace fastres::cpu {
namespace {

// Memory beyond this goes back to the system when it becomes free, unless as much was in use at
// once: a training step holds all activations, frees them in its backward pass, and needs them
// again in the next step.
constexpr size_t kAlwaysKeptBytes = size_t{512} << 20;

// Smaller ones would each take a mapping of their own, of which a process has 65530: whoever keeps
// many small outputs would come to the end of them.
constexpr size_t kMappedBytes = size_t{1} << 20;
constexpr size_t kAlignment = 64;

// A buffer is not handed out for a request so many times smaller.
constexpr size_t kMostTimesAsLarge = 8;

// `bytes` is a multiple of a page.
void* allocate(size_t bytes) {
  return bytes < kMappedBytes ? std::aligned_alloc(kAlignment, bytes) : map_pages(bytes);
}
void deallocate(void* buffer, size_t bytes) {
  if (bytes < kMappedBytes) {
    std::free(buffer);
  } else {
    unmap_pages(buffer, bytes);
  }
}

class Pool {
 public:
  void* acquire(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    // The smallest that is large enough: its pages are there already. A far larger one is left for
    // what needs it.
    auto found = free_.lower_bound(bytes);
    if (found == free_.end() || found->first / kMostTimesAsLarge > bytes) {
      if (found == free_.end()) drop_largest();
      const size_t size = rounded_to_pages(bytes);
      void* buffer = allocate(size);
      if (buffer != nullptr) use(buffer, size);
      return buffer;
    }
    // Of that size, the one that was freed last: its lines are in a cache.
    found = std::prev(free_.upper_bound(found->first));
    const auto [size, buffer] = *found;
    free_.erase(found);
    free_bytes_ -= size;
    use(buffer, size);
    return buffer;
  }

  void release(void* buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = used_.find(buffer);
    if (found == used_.end()) return;
    const size_t size = found->second;
    used_.erase(found);
    used_bytes_ -= size;
    if (used_bytes_ + free_bytes_ + size > std::max(kAlwaysKeptBytes, most_used_bytes_)) {
      deallocate(buffer, size);
      return;
    }
    free_.emplace(size, buffer);
    free_bytes_ += size;
  }

 private:
  void use(void* buffer, size_t size) {
    used_[buffer] = size;
    used_bytes_ += size;
    most_used_bytes_ = std::max(most_used_bytes_, used_bytes_);
  }

  // A larger buffer takes the place of one that proved too small: there are then as many as are
  // used at a time, not one for every size.
  void drop_largest() {
    if (free_.empty()) return;
    const auto largest = std::prev(free_.end());
    deallocate(largest->second, largest->first);
    free_bytes_ -= largest->first;
    free_.erase(largest);
  }

  std::mutex mutex_;
  std::multimap<size_t, void*> free_;
  std::unordered_map<void*, size_t> used_;
  size_t free_bytes_ = 0, used_bytes_ = 0, most_used_bytes_ = 0;
};

// Never destroyed: tensors may outlive every static object.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

}  // namespace

void* acquire_buffer(size_t bytes) { return pool().acquire(bytes); }
void release_buffer(void* buffer) { pool().release(buffer); }

}  // namespace fastres::cpu
