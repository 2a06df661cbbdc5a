// max_pool_places and its backward on the CPU: the max-pooling of training, a row at a time.

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "convolution/pooling.h"
#include "convolution/tensor_image.h"
#include "runtime/allocate.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"
#include "training/training_rows.h"

namespace fastres::cpu {
namespace {

PoolWindow placed_window(const std::vector<int64_t>& kernel_size,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         Extent in, const char* op) {
  const PoolWindow window =
      pool_window(kernel_size, stride, padding, in, op, {"x", "kernel_size", "stride", "padding"});
  check(window.kernel.h <= kMostPlaces / window.kernel.w, op, ": kernel_size must have at most ",
        kMostPlaces, " places, got ", window.kernel.h, " x ", window.kernel.w);
  return window;
}

std::tuple<Tensor, Tensor> max_pool_places(const Tensor& x, const std::vector<int64_t>& kernel_size,
                                           const std::vector<int64_t>& stride,
                                           const std::vector<int64_t>& padding) {
  constexpr const char* kOp = "max_pool_places";
  check_input(x, kOp);
  const Extent in{x.size(2), x.size(3)};
  const PoolWindow window = placed_window(kernel_size, stride, padding, in, kOp);
  const Extent size = pooled_size(window, in);
  Tensor y = empty_nhwc(x.size(0), x.size(1), size, x.scalar_type(), x);
  Tensor places =
      torch::stable::empty({x.size(0), x.size(1), size.h, size.w}, ScalarType::Byte, std::nullopt,
                           x.device(), std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  const Kernels kernels = selected_kernels();
  const Image from = image_of(x), to = image_of(y);
  auto* bytes = static_cast<uint8_t*>(places.mutable_data_ptr());
  const int64_t row_values = size.w * from.channels;
  parallel_rows(from.batch, size.h, [&](int64_t n, int64_t h) {
    const Range rows = window.input_rows(h, from.height);
    const Band input = float_rows(kernels.base, from, n, rows, thread_scratch().input);
    const OutputRows output(kernels.base, to, n, h, 1);
    PlacedPoolRow placed{window_row(window, input, rows.size(), from.width, from.channels, size.w),
                         rows.begin - (h * window.stride.h - window.padding.h),
                         bytes + (n * size.h + h) * row_values};
    placed.row.output = output.band().data;
    kernels.training.max_pool_places(placed);
    output.store({0, to.channels});
  });
  return {y, places};
}

// Gradients of the input, whose rows gather those of the outputs that took a value of them.
class PoolGradient {
 public:
  PoolGradient(const Image& grad, const uint8_t* places, const Image& target,
               const PoolWindow& window)
      : kernels_(selected_kernels()),
        grad_(grad),
        places_(places),
        target_(target),
        window_(window) {}

  void run_row(int64_t n, int64_t h) const {
    const Extent kernel = window_.kernel;
    const int64_t row_values = grad_.width * grad_.channels;
    float* scratch = thread_scratch().input.floats(kernel.h * row_values);
    std::vector<const float*> grads(static_cast<size_t>(kernel.h), nullptr);
    std::vector<const uint8_t*> places(grads.size(), nullptr);
    for (int64_t r = 0; r < kernel.h; ++r) {
      const int64_t start = h + window_.padding.h - r;
      if (start < 0 || start % window_.stride.h != 0) continue;
      const int64_t out = start / window_.stride.h;
      if (out >= grad_.height) continue;
      grads[static_cast<size_t>(r)] = grad_row(n, out, scratch + r * row_values);
      places[static_cast<size_t>(r)] = places_ + (n * grad_.height + out) * row_values;
    }
    const OutputRows output(kernels_.base, target_, n, h, 1);
    kernels_.training.max_pool_gradient({grads.data(), places.data(), kernel.h, kernel.w,
                                         window_.stride.w, window_.padding.w, grad_.width,
                                         grad_.channels, output.band().data, target_.width});
    output.store({0, target_.channels});
  }

 private:
  // Dense.
  const float* grad_row(int64_t n, int64_t h, float* target) const {
    if (grad_.is_float32_nhwc() && grad_.stride_w == grad_.channels) {
      return reinterpret_cast<const float*>(grad_.at(n, h, 0));
    }
    return load_band(kernels_.base, grad_, {n, h, 1, 0, 0}, target, grad_.channels).data;
  }

  const Kernels kernels_;
  const Image grad_;
  const uint8_t* const places_;
  const Image target_;
  const PoolWindow window_;
};

Tensor max_pool_places_backward(const Tensor& grad, const Tensor& places,
                                const std::vector<int64_t>& size,
                                const std::vector<int64_t>& kernel_size,
                                const std::vector<int64_t>& stride,
                                const std::vector<int64_t>& padding) {
  constexpr const char* kOp = "max_pool_places_backward";
  check(grad.dim() == 4 && is_storage_type(grad.scalar_type()), kOp,
        ": grad must be 4-D float32, bfloat16 or float16, got shape ", ShapeOf{grad}, " of ",
        torch::headeronly::toString(grad.scalar_type()));
  check_cpu(places, kOp, "places");
  const Extent in = positive_pair(size, kOp, "size");
  const PoolWindow window = placed_window(kernel_size, stride, padding, in, kOp);
  const Extent out = pooled_size(window, in);
  const int64_t n = grad.size(0), channels = grad.size(1);
  check(grad.size(2) == out.h && grad.size(3) == out.w, kOp, ": grad must be ", out.h, " x ", out.w,
        ", got shape ", ShapeOf{grad});
  check(places.scalar_type() == ScalarType::Byte && same_shape(places, grad), kOp,
        ": places must be uint8 of grad's shape ", ShapeOf{grad}, ", got shape ", ShapeOf{places});
  const bool dense = places.stride(1) == 1 && places.stride(3) == channels &&
                     places.stride(2) == out.w * channels &&
                     (n == 1 || places.stride(0) == out.h * out.w * channels);
  check(dense || places.numel() == 0, kOp, ": places must be dense in channels_last");
  Tensor grad_x = empty_nhwc(n, channels, in, grad.scalar_type(), grad);
  const PoolGradient gradient(image_of(grad), static_cast<const uint8_t*>(places.const_data_ptr()),
                              image_of(grad_x), window);
  parallel_rows(n, in.h, [&](int64_t image, int64_t h) { gradient.run_row(image, h); });
  return grad_x;
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("max_pool_places", TORCH_BOX(&fastres::cpu::max_pool_places));
  m.impl("max_pool_places_backward", TORCH_BOX(&fastres::cpu::max_pool_places_backward));
}
