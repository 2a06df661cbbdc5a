// Runs launches on torch's current stream.

#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "launch.h"

namespace fastres::cuda {

// Makes the device current for its lifetime. Launches do not wait, and scratch memory comes from
// torch's allocator, so that an operator can be captured into a CUDA graph.
class TorchExecutor : public Executor {
 public:
  explicit TorchExecutor(const torch::stable::Tensor& like);
  void launch(const Launch& launch) override;
  void* scratch(int64_t bytes) override;

 private:
  torch::stable::Device device_;
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
  std::vector<torch::stable::Tensor> scratch_;
};

}  // namespace fastres::cuda
