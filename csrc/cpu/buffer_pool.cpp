#include "buffer_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <unordered_map>

namespace fastres::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// Memory beyond this goes back to the system when it becomes free, unless as much was in use at
// once: a training step holds all activations, frees them in its backward pass, and needs them
// again in the next step.
constexpr size_t kAlwaysKeptBytes = size_t{512} << 20;

// To small pages: a packed weight of 2 MB and a header must not take 4 MB.
size_t rounded(size_t bytes) {
  constexpr size_t kPage = 4096;
  return (bytes + kPage - 1) / kPage * kPage;
}

// `bytes` bytes at a multiple of the huge page: maps one more and unmaps the ends.
void* map_aligned(size_t bytes) {
  const size_t mapped = bytes + kHugePage;
  void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  auto* begin = static_cast<char*>(raw);
  const size_t misaligned = reinterpret_cast<size_t>(begin) % kHugePage;
  const size_t before = misaligned == 0 ? 0 : kHugePage - misaligned;
  if (before > 0) munmap(begin, before);
  munmap(begin + before + bytes, kHugePage - before);
#if defined(MADV_HUGEPAGE)
  madvise(begin + before, bytes, MADV_HUGEPAGE);  // a hint: small pages serve as well
#endif
  return begin + before;
}

class Pool {
 public:
  void* acquire(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    // The smallest that is large enough: its pages are there already.
    auto found = free_.lower_bound(bytes);
    if (found == free_.end()) {
      drop_largest();
      const size_t size = rounded(bytes);
      void* buffer = map_aligned(size);
      if (buffer != nullptr) use(buffer, size);
      return buffer;
    }
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
      munmap(buffer, size);
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
    munmap(largest->second, largest->first);
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
