#include "buffer_pool.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "pages.h"

namespace fastres::cpu {
namespace {

// Memory beyond what a pool always keeps goes back to the system when it becomes free, unless as
// much was in use at once: a training step holds all activations, frees them in its backward pass,
// and needs them again in the next step.
constexpr size_t kAlwaysKeptBytes = size_t{512} << 20;

// A sixteenth more than was in use leaves room for buffers whose sizes do not fit each other:
// without it a step of a ResNeXt-50 maps 80 MB anew.
constexpr size_t kSlackShare = 16;

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

// What a free buffer must be to be handed out.
enum class Fit { large_enough, same_size };

// What becomes of a buffer that is freed.
enum class Keeping { as_many_as_were_used, none };

class Pool {
 public:
  Pool(Fit fit, Keeping keeping, size_t always_kept_bytes)
      : fit_(fit), keeping_(keeping), always_kept_bytes_(always_kept_bytes) {}

  void* acquire(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t size = rounded_to_pages(bytes);
    // The smallest that fits: its pages are there already. A far larger one is left for what needs
    // it.
    auto found = fit_ == Fit::same_size ? free_.find(size) : free_.lower_bound(bytes);
    if (found == free_.end() || found->first / kMostTimesAsLarge > bytes) {
      if (found == free_.end()) make_room(size);
      void* buffer = allocate(size);
      if (buffer != nullptr) use(buffer, size);
      return buffer;
    }
    // Of that size, the one that was freed last: its lines are in a cache.
    found = std::prev(free_.upper_bound(found->first));
    const auto [taken, buffer] = *found;
    free_.erase(found);
    free_bytes_ -= taken;
    use(buffer, taken);
    return buffer;
  }

  void release(void* buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = used_.find(buffer);
    if (found == used_.end()) return;
    const size_t size = found->second;
    used_.erase(found);
    used_bytes_ -= size;
    if (keeping_ == Keeping::none ||
        used_bytes_ + free_bytes_ + size > most_kept_bytes(most_used_bytes_)) {
      deallocate(buffer, size);
      return;
    }
    free_.emplace(size, buffer);
    free_bytes_ += size;
  }

 private:
  size_t most_kept_bytes(size_t most_used) const {
    return std::max(always_kept_bytes_, most_used + most_used / kSlackShare);
  }

  void use(void* buffer, size_t size) {
    used_[buffer] = size;
    used_bytes_ += size;
    most_used_bytes_ = std::max(most_used_bytes_, used_bytes_);
  }

  // For a buffer of a size that no free one fits. A larger one takes the place of one that proved
  // too small: there are then as many as are used at a time, not one for every size. Where sizes
  // must be the same, others go when there is no room for both.
  void make_room(size_t size) {
    if (fit_ == Fit::large_enough) return drop_largest();
    const size_t used = used_bytes_ + size;
    const size_t kept = most_kept_bytes(std::max(most_used_bytes_, used));
    while (!free_.empty() && used + free_bytes_ > kept) drop_largest();
  }

  void drop_largest() {
    if (free_.empty()) return;
    const auto largest = std::prev(free_.end());
    deallocate(largest->second, largest->first);
    free_bytes_ -= largest->first;
    free_.erase(largest);
  }

  const Fit fit_;
  const Keeping keeping_;
  const size_t always_kept_bytes_;
  std::mutex mutex_;
  std::multimap<size_t, void*> free_;
  std::unordered_map<void*, size_t> used_;
  size_t free_bytes_ = 0, used_bytes_ = 0, most_used_bytes_ = 0;
};

// Never destroyed: tensors may outlive every static object.
Pool& pool() {
  static Pool* const instance =
      new Pool(Fit::large_enough, Keeping::as_many_as_were_used, kAlwaysKeptBytes);
  return *instance;
}
Pool& gradient_pool() {
  static Pool* const instance = new Pool(Fit::same_size, Keeping::as_many_as_were_used, 0);
  return *instance;
}
Pool& constant_pool() {
  static Pool* const instance = new Pool(Fit::same_size, Keeping::none, 0);
  return *instance;
}

}  // namespace

void* acquire_buffer(size_t bytes) { return pool().acquire(bytes); }
void release_buffer(void* buffer) { pool().release(buffer); }
void check_buffer(const void* buffer, int64_t bytes) {
  if (buffer != nullptr) return;
  throw std::runtime_error("fastres: out of memory for " + std::to_string(bytes) + " bytes");
}

PooledFloats::PooledFloats(int64_t count) {
  const int64_t bytes = count * int64_t{sizeof(float)};
  data_ = static_cast<float*>(acquire_buffer(static_cast<size_t>(bytes)));
  check_buffer(data_, bytes);
}

PooledFloats::~PooledFloats() { release_buffer(data_); }

void* acquire_gradient_buffer(size_t bytes) { return gradient_pool().acquire(bytes); }
void release_gradient_buffer(void* buffer) { gradient_pool().release(buffer); }
void* acquire_constant(size_t bytes) { return constant_pool().acquire(bytes); }
void release_constant(void* buffer) { constant_pool().release(buffer); }

}  // namespace fastres::cpu
