#include "scratch.h"

#include <algorithm>
#include <new>

#include "pages.h"

namespace fastres::cpu {
namespace {

constexpr size_t kLine = 64;

// To an odd number of cache lines: buffers of powers of two would fall into the same cache sets.
size_t rounded_to_lines(size_t bytes) { return ((bytes + kLine - 1) / kLine | 1) * kLine; }

}  // namespace

void ScratchArena::restart() {
  if (chunks_.size() > 1) unmap();
  most_taken_ = std::max(most_taken_, taken_);
  taken_ = used_ = 0;
  ++epoch_;
}

void* ScratchArena::take(size_t bytes) {
  bytes = rounded_to_lines(bytes);
  taken_ += bytes;
  if (chunks_.empty() || chunks_.back().size - used_ < bytes) {
    // The first one has room for what several had before it.
    const size_t size = rounded_to_pages(chunks_.empty() ? std::max(bytes, most_taken_) : bytes);
    auto* data = static_cast<char*>(map_pages(size));
    if (data == nullptr) throw std::bad_alloc();
    chunks_.push_back({data, size});
    used_ = 0;
  }
  char* const taken = chunks_.back().data + used_;
  used_ += bytes;
  return taken;
}

void ScratchArena::unmap() {
  for (const Chunk& chunk : chunks_) unmap_pages(chunk.data, chunk.size);
  chunks_.clear();
}

}  // namespace fastres::cpu
