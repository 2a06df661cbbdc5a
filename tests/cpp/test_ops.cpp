// A C++ program that links fastres::ops and calls the operators through torch's dispatcher, with no
// Python in the process. Compares them with ATen's convolution in float64.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

namespace {

using at::Tensor;
using OptionalTensor = const std::optional<Tensor>&;

template <class Signature>
auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

Tensor pack(const Tensor& weight, OptionalTensor scale, int64_t groups) {
  static const auto handle = op<Tensor(const Tensor&, OptionalTensor, int64_t, c10::string_view)>(
      "fastres::pack_conv_weight");
  return handle.call(weight, scale, groups, "direct");
}

Tensor conv_bn_act(const Tensor& x, const Tensor& packed, const Tensor& shift,
                   OptionalTensor residual, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                   at::IntArrayRef padding, int64_t groups, const char* act) {
  static const auto handle = op<Tensor(
      const Tensor&, const Tensor&, const Tensor&, OptionalTensor, at::IntArrayRef, at::IntArrayRef,
      at::IntArrayRef, at::IntArrayRef, int64_t, c10::string_view, double)>("fastres::conv_bn_act");
  return handle.call(x, packed, shift, residual, kernel_size, stride, padding, {1, 1}, groups, act,
                     0.01);
}

Tensor bottleneck(const Tensor& x, const Tensor (&packed)[3], const Tensor (&shift)[3],
                  int64_t groups) {
  static const auto handle =
      op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                const Tensor&, const Tensor&, OptionalTensor, OptionalTensor, at::IntArrayRef,
                at::IntArrayRef, int64_t, c10::string_view)>("fastres::grouped_bottleneck");
  return handle.call(x, packed[0], shift[0], packed[1], shift[1], packed[2], shift[2], std::nullopt,
                     std::nullopt, {1, 1}, {1, 1}, groups, "relu");
}

Tensor reference(const Tensor& x, const Tensor& weight, const Tensor& shift, int64_t stride,
                 int64_t padding, int64_t groups) {
  return at::conv2d(x.to(at::kDouble), weight.to(at::kDouble), shift.to(at::kDouble), stride,
                    padding, 1, groups);
}

int failures = 0;

void check(const std::string& name, bool passed) {
  std::printf("%s  %s\n", passed ? "ok    " : "FAILED", name.c_str());
  failures += passed ? 0 : 1;
}

void check_close(const std::string& name, const Tensor& out, const Tensor& expected) {
  const double error = ((out.to(at::kDouble) - expected).norm() / expected.norm()).item<double>();
  std::printf("relative error %.1e  ", error);
  check(name, out.sizes() == expected.sizes() && error < 1e-6);
}

void test_conv(int64_t channels, int64_t groups, int64_t kernel, int64_t stride) {
  const int64_t padding = kernel / 2;
  const Tensor x = at::randn({2, channels, 15, 13});
  const Tensor weight = at::randn({channels, channels / groups, kernel, kernel});
  const Tensor scale = at::rand({channels}) + 0.5;
  const Tensor shift = at::randn({channels});
  const Tensor scaled = weight * scale.view({-1, 1, 1, 1});
  const Tensor conv = reference(x, scaled, shift, stride, padding, groups);
  const Tensor residual = at::randn(conv.sizes());

  const Tensor out =
      conv_bn_act(x, pack(weight, scale, groups), shift, residual, {kernel, kernel},
                  {stride, stride}, {padding, padding, padding, padding}, groups, "relu");
  const std::string name = "conv_bn_act " + std::to_string(kernel) + "x" + std::to_string(kernel) +
                           " groups " + std::to_string(groups) + " stride " +
                           std::to_string(stride);
  check_close(name, out, at::relu(conv + residual.to(at::kDouble)));
}

void test_bottleneck(int64_t groups) {
  const Tensor x = at::randn({1, 64, 14, 14});
  const Tensor weight[3] = {at::randn({32, 64, 1, 1}), at::randn({32, 32 / groups, 3, 3}),
                            at::randn({64, 32, 1, 1})};
  const Tensor shift[3] = {at::randn({32}), at::randn({32}), at::randn({64})};
  const Tensor packed[3] = {pack(weight[0], std::nullopt, 1), pack(weight[1], std::nullopt, groups),
                            pack(weight[2], std::nullopt, 1)};

  Tensor expected = at::relu(reference(x, weight[0], shift[0], 1, 0, 1));
  expected = at::relu(reference(expected, weight[1], shift[1], 1, 1, groups));
  expected = reference(expected, weight[2], shift[2], 1, 0, 1) + x.to(at::kDouble);
  check_close("grouped_bottleneck groups " + std::to_string(groups),
              bottleneck(x, packed, shift, groups), at::relu(expected));
}

// What a device runs that has no kernel of its own, on tensors whose device has those it is made
// of.
constexpr c10::DispatchKeySet kNoKernels(c10::DispatchKey::XPU);

void test_chain() {
  const Tensor x = at::randn({2, 16, 9, 7});
  std::vector<Tensor> packed, shift;
  const auto add = [&](at::IntArrayRef size, int64_t groups) {
    packed.push_back(pack(at::randn(size), std::nullopt, groups));
    shift.push_back(at::randn({size[0]}));
  };
  add({8, 16, 1, 1}, 1), add({8, 4, 3, 3}, 2), add({16, 8, 1, 1}, 1);
  const Tensor first =
      bottleneck(x, {packed[0], packed[1], packed[2]}, {shift[0], shift[1], shift[2]}, 2);
  add({24, 16, 1, 1}, 1), add({24, 24, 3, 3}, 1), add({8, 24, 1, 1}, 1), add({8, 16, 1, 1}, 1);
  static const auto block =
      op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                const Tensor&, const Tensor&, OptionalTensor, OptionalTensor, at::IntArrayRef,
                at::IntArrayRef, int64_t, c10::string_view)>("fastres::grouped_bottleneck");
  const Tensor expected = block.call(first, packed[3], shift[3], packed[4], shift[4], packed[5],
                                     shift[5], packed[6], shift[6], {2, 1}, {1, 1}, 1, "relu");
  static const auto join = op<Tensor(at::TensorList)>("fastres::join_packed");
  static const auto chain =
      op<Tensor(const Tensor&, const Tensor&, const Tensor&, at::IntArrayRef, at::IntArrayRef,
                at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef,
                c10::string_view)>("fastres::bottleneck_chain");
  std::vector<int64_t> sizes, channels;
  for (const Tensor& one : packed) sizes.push_back(one.numel());
  for (const Tensor& one : shift) channels.push_back(one.numel());
  const Tensor weights = join.call(packed), shifts = at::cat(shift);
  const std::vector<int64_t> convs{3, 4}, stride{1, 1, 2, 1}, dilation{1, 1, 1, 1}, groups{2, 1};
  check("bottleneck_chain is its blocks",
        chain.call(x, weights, shifts, sizes, channels, convs, stride, dilation, groups, "relu")
            .equal(expected));
  check("bottleneck_chain without kernels is its blocks",
        chain
            .redispatch(kNoKernels, x, weights, shifts, sizes, channels, convs, stride, dilation,
                        groups, "relu")
            .equal(expected));
}

void test_live_chain() {
  const Tensor x = at::randn({2, 16, 9, 7});
  std::vector<Tensor> weight, packed, shift;
  const auto add = [&](at::IntArrayRef size, int64_t groups) {
    weight.push_back(at::randn(size));
    packed.push_back(pack(weight.back(), std::nullopt, groups));
    shift.push_back(at::randn({size[0]}));
  };
  for (int block = 0; block < 2; ++block) {
    add({8, 16, 1, 1}, 1), add({8, 4, 3, 3}, 2), add({16, 8, 1, 1}, 1);
  }
  Tensor expected = x;
  for (size_t i = 0; i < 6; i += 3) {
    expected = bottleneck(expected, {packed[i], packed[i + 1], packed[i + 2]},
                          {shift[i], shift[i + 1], shift[i + 2]}, 2);
  }
  static const auto chain =
      op<Tensor(const Tensor&, at::TensorList, const Tensor&, const Tensor&,
                const c10::List<std::string>&, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef,
                at::IntArrayRef, c10::string_view)>("fastres::live_bottleneck_chain");
  const Tensor scale = at::ones({64}), shifts = at::cat(shift);
  const c10::List<std::string> algorithms({"direct", "direct"});
  const std::vector<int64_t> convs{3, 3}, ones{1, 1, 1, 1}, groups{2, 2};
  check("live_bottleneck_chain is its blocks",
        chain.call(x, weight, scale, shifts, algorithms, convs, ones, ones, groups, "relu")
            .equal(expected));
  check("live_bottleneck_chain without kernels is its blocks",
        chain
            .redispatch(kNoKernels, x, weight, scale, shifts, algorithms, convs, ones, ones, groups,
                        "relu")
            .equal(expected));
}

void test_stem() {
  const Tensor x = at::randn({2, 3, 13, 11}), weight = at::randn({8, 3, 3, 3});
  const Tensor scale = at::rand({8}), shift = at::randn({8});
  const Tensor packed = pack(weight, scale, 1);
  static const auto pool =
      op<Tensor(const Tensor&, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef)>(
          "fastres::max_pool");
  const Tensor y =
      conv_bn_act(x, packed, shift, std::nullopt, {3, 3}, {1, 1}, {1, 1, 1, 1}, 1, "relu");
  const Tensor expected = pool.call(y, {3, 3}, {2, 2}, {1, 1});
  const Tensor pooled = pool.redispatch(kNoKernels, y, {3, 3}, {2, 2}, {1, 1});
  check("max_pool without kernels",
        pooled.equal(expected) && pooled.strides() == expected.strides());
  static const auto stem =
      op<Tensor(const Tensor&, const Tensor&, const Tensor&, at::IntArrayRef, at::IntArrayRef,
                at::IntArrayRef, at::IntArrayRef, int64_t, c10::string_view, double,
                at::IntArrayRef, at::IntArrayRef, at::IntArrayRef)>("fastres::conv_max_pool");
  check("conv_max_pool without kernels",
        stem.redispatch(kNoKernels, x, packed, shift, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}, 1,
                        "relu", 0.0, {3, 3}, {2, 2}, {1, 1})
            .equal(expected));
  static const auto live =
      op<Tensor(const Tensor&, const Tensor&, OptionalTensor, const Tensor&, at::IntArrayRef,
                at::IntArrayRef, at::IntArrayRef, int64_t, c10::string_view, double,
                at::IntArrayRef, at::IntArrayRef, at::IntArrayRef)>("fastres::live_conv_max_pool");
  check("live_conv_max_pool without kernels",
        live.redispatch(kNoKernels, x, weight, scale, shift, {1, 1}, {1, 1, 1, 1}, {1, 1}, 1,
                        "relu", 0.0, {3, 3}, {2, 2}, {1, 1})
            .equal(expected));
}

void test_head() {
  const Tensor x = at::randn({2, 9, 5, 3}), weight = at::randn({7, 9}), bias = at::randn({7});
  static const auto head =
      op<Tensor(const Tensor&, const Tensor&, OptionalTensor)>("fastres::avg_pool_linear");
  const Tensor expected =
      at::linear(x.to(at::kDouble).mean({2, 3}), weight.to(at::kDouble), bias.to(at::kDouble));
  check_close("avg_pool_linear", head.call(x, weight, bias), expected);
  check_close("avg_pool_linear without kernels", head.redispatch(kNoKernels, x, weight, bias),
              expected);
}

void test_bad_input() {
  const Tensor x = at::randn({1, 8, 5, 5});
  const Tensor packed = pack(at::randn({8, 8, 1, 1}), std::nullopt, 1);
  std::string message;
  try {
    conv_bn_act(x, packed, at::zeros({8}), std::nullopt, {1, 1}, {0, 1}, {0, 0, 0, 0}, 1, "none");
  } catch (const std::exception& error) {
    message = error.what();
  }
  check("a zero stride throws and is named", message.find("stride") != std::string::npos);
}

}  // namespace

int main() {
  at::manual_seed(0);
  test_conv(32, 1, 1, 1);
  test_conv(32, 1, 3, 2);
  test_conv(64, 16, 3, 1);
  test_conv(32, 32, 3, 2);
  test_bottleneck(8);
  test_chain();
  test_live_chain();
  test_stem();
  test_head();
  test_bad_input();
  return failures == 0 ? 0 : 1;
}
