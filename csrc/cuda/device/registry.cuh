// Kernels by name: what the launchers ask for and the executor finds.

#pragma once

#include <cstring>

namespace fastres::cuda {

class RegisteredKernel {
 public:
  RegisteredKernel(const char* name, const void* function)
      : name_(name), function_(function), next_(first()) {
    first() = this;
  }

  // The kernel's function, null where there is none of that name.
  static const void* find(const char* name) {
    for (const RegisteredKernel* kernel = first(); kernel != nullptr; kernel = kernel->next_) {
      if (std::strcmp(kernel->name_, name) == 0) return kernel->function_;
    }
    return nullptr;
  }

 private:
  static const RegisteredKernel*& first() {
    static const RegisteredKernel* kernels = nullptr;
    return kernels;
  }

  const char* name_;
  const void* function_;
  const RegisteredKernel* next_;
};

}  // namespace fastres::cuda

// Defines and registers a kernel that runs `BODY` with its parameters and its shared memory.
#define FASTRES_KERNEL(NAME, THREADS, MIN_BLOCKS, PARAMS, BODY)     \
  extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) \
      NAME(const __grid_constant__ fastres::cuda::PARAMS params) {  \
    extern __shared__ __align__(128) char shared[];                 \
    BODY;                                                           \
  }                                                                 \
  static const fastres::cuda::RegisteredKernel registered_##NAME(   \
      #NAME, reinterpret_cast<const void*>(&NAME));
