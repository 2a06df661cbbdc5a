// Memory for large outputs, kept for reuse, and for packed weights.
//
// The system's allocator gives a large block back to the kernel as soon as it is freed, so that an
// output of 25 MB costs six thousand page faults at every call. These buffers stay. Large ones are
// in huge pages where the kernel has them.

#pragma once

#include <cstddef>
#include <cstdint>

namespace fastres::cpu {

// Buffers smaller than this are left to torch's allocator.
constexpr size_t kPooledBytes = size_t{1} << 16;

// At least `bytes` bytes, aligned to a cache line; null when memory is exhausted.
void* acquire_buffer(size_t bytes);
// Takes back what acquire_buffer returned.
void release_buffer(void* buffer);

// The same for the gradients of weights, which live from one backward pass to the next and must not
// take the activations' buffers meanwhile: of exactly such a size, and as many as are used at once.
void* acquire_gradient_buffer(size_t bytes);
void release_gradient_buffer(void* buffer);

// The same for packed weights, which stay: one that is freed goes back to the system.
void* acquire_constant(size_t bytes);
void release_constant(void* buffer);

// Throws where what one of those returned is null.
void check_buffer(const void* buffer, int64_t bytes);

// A buffer for the time of a call; throws where memory is exhausted.
class PooledFloats {
 public:
  explicit PooledFloats(int64_t count);
  ~PooledFloats();
  PooledFloats(const PooledFloats&) = delete;
  PooledFloats& operator=(const PooledFloats&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
};

}  // namespace fastres::cpu
