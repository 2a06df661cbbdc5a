#include "executor.h"

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include "device/registry.cuh"

namespace fastres::cuda {
namespace {

void check_cuda(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error("fastres: " + what + ": " + cudaGetErrorString(error));
}

}  // namespace

TorchExecutor::TorchExecutor(const torch::stable::Tensor& like)
    : device_(like.device()), guard_(like.get_device_index()) {
  // The guard sets the device of torch's CUDA runtime; this library has its own, linked statically.
  check_cuda(cudaSetDevice(like.get_device_index()), "cudaSetDevice");
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream_));
}

void TorchExecutor::launch(const Launch& launch) {
  const void* function = RegisteredKernel::find(launch.kernel.c_str());
  if (function == nullptr) {
    throw std::runtime_error("fastres: libfastres_cuda has no kernel " + launch.kernel);
  }
  constexpr int kAlwaysAllowed = 48 * 1024;
  if (launch.shared > kAlwaysAllowed) {
    check_cuda(
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared),
        launch.kernel + ": shared memory");
  }
  void* arguments[] = {const_cast<void*>(launch.params)};
  check_cuda(
      cudaLaunchKernel(function, dim3(static_cast<unsigned>(launch.grid)),
                       dim3(static_cast<unsigned>(launch.block)), arguments,
                       static_cast<size_t>(launch.shared), static_cast<cudaStream_t>(stream_)),
      launch.kernel);
}

void* TorchExecutor::scratch(int64_t bytes) {
  // Freed when the operator returns: torch reuses it in the stream's order.
  scratch_.push_back(
      torch::stable::empty({bytes}, torch::headeronly::ScalarType::Byte, std::nullopt, device_));
  return scratch_.back().mutable_data_ptr();
}

}  // namespace fastres::cuda
