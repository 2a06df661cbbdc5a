// content_hash on the CPU: all tensors at once, cut into chunks so that threads share the work
// whatever the tensors' sizes; the result does not depend on the number of threads.

#include <torch/csrc/stable/library.h>

#include <vector>

#include "convolution/tensor_image.h"
#include "microkernels.h"
#include "runtime/parallel.h"

namespace fastres::cpu {
namespace {

constexpr int64_t kChunkBytes = 128 * 1024;
// Less than this is hashed sooner than another thread is woken.
constexpr int64_t kParallelBytes = 1024 * 1024;

struct Chunk {
  const char* data;
  int64_t bytes;
  uint64_t hash;
};

bool is_dense(const Tensor& tensor) {
  int64_t extent = 1;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    extent += (tensor.size(d) - 1) * tensor.stride(d);
  }
  return extent == tensor.numel();
}

uint64_t combine(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15ULL;
  return hash ^ (hash >> 29);
}

// Sizes, strides and type: the same bytes in another shape are another tensor.
uint64_t hash_of_metadata(const Tensor& tensor) {
  uint64_t hash = static_cast<uint64_t>(tensor.scalar_type());
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    hash = combine(hash, static_cast<uint64_t>(tensor.size(d)));
    hash = combine(hash, static_cast<uint64_t>(tensor.stride(d)));
  }
  return hash;
}

std::vector<int64_t> content_hash(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> dense;
  std::vector<Chunk> chunks;
  int64_t total_bytes = 0;
  for (const Tensor& tensor : tensors) {
    check_cpu(tensor, "content_hash", "every tensor");
    dense.push_back(is_dense(tensor) ? tensor : torch::stable::contiguous(tensor));
    const auto* data = static_cast<const char*>(dense.back().const_data_ptr());
    const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
    total_bytes += bytes;
    for (int64_t at = 0; at < bytes; at += kChunkBytes) {
      chunks.push_back({data + at, std::min(kChunkBytes, bytes - at), 0});
    }
  }

  const Microkernels& kernels = selected_microkernels();
  const auto count = static_cast<int64_t>(chunks.size());
  const int64_t parts = total_bytes < kParallelBytes ? 1 : std::min(thread_count(), count);
  parallel_parts(parts, [&](int64_t i) {
    const Range range = even_range(count, parts, i);
    for (int64_t c = range.begin; c < range.end; ++c) {
      chunks[c].hash = kernels.hash(chunks[c].data, static_cast<size_t>(chunks[c].bytes));
    }
  });

  std::vector<int64_t> hashes;
  auto chunk = chunks.cbegin();
  for (const Tensor& tensor : tensors) {
    uint64_t hash = hash_of_metadata(tensor);
    int64_t left = tensor.numel() * static_cast<int64_t>(tensor.element_size());
    for (; left > 0; left -= kChunkBytes) hash = combine(hash, (chunk++)->hash);
    hashes.push_back(static_cast<int64_t>(hash));
  }
  return hashes;
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("content_hash", TORCH_BOX(&fastres::cpu::content_hash));
}
