// What launches kernels and gives scratch memory: torch's stream and allocator, or a test.
//
// The launchers below decide everything else (kernel, grid, block, shared memory, parameters) in
// plain host code, so that the tests run kernels with exactly what a GPU would be given.

#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../geometry.h"

namespace fastres::cuda {

enum class Dtype : int32_t { f32, bf16, f16 };

inline int64_t element_bytes(Dtype type) { return type == Dtype::f32 ? 4 : 2; }
inline int64_t chunk_elements(Dtype type) { return 16 / element_bytes(type); }
inline const char* suffix(Dtype type) {
  return type == Dtype::f32 ? "_f32" : type == Dtype::bf16 ? "_bf16" : "_f16";
}

struct Launch {
  std::string kernel;
  int64_t grid;
  int block;
  int shared;  // dynamic, bytes
  const void* params;
  size_t params_bytes;
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual void launch(const Launch& launch) = 0;
  // Uninitialised, 256-byte aligned, until the end of the operator.
  virtual void* scratch(int64_t bytes) = 0;

  template <class Params>
  void run(const std::string& kernel, int64_t grid, int block, int shared, const Params& params) {
    if (grid == 0) return;
    if (grid > INT32_MAX) {
      throw std::invalid_argument("fastres: " + kernel + " would need " + std::to_string(grid) +
                                  " blocks, more than a launch can have; use a smaller batch");
    }
    launch({kernel, grid, block, shared, &params, sizeof(params)});
  }
};

// A size as kernels take it: elements are counted in 64 bits, pixels along an axis in 32.
inline int32_t narrow(int64_t size) {
  if (size > INT32_MAX) {
    throw std::invalid_argument("fastres: a size of " + std::to_string(size) +
                                " is more than the CUDA kernels take, 2^31 - 1");
  }
  return static_cast<int32_t>(size);
}

}  // namespace fastres::cuda
