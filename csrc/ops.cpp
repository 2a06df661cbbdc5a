// Every operator of fastres and nothing else: start reading here.
//
// Kernels register themselves beside their code: csrc/cpu/<op>.cpp for the CPU, csrc/cuda/<op>.cu
// for CUDA. fastres/reference/ is the same list in plain PyTorch, fastres/ops/ adds the fake
// kernels, autograd and autocast.
//
// Names: N batch, C input channels, H W input size, K output channels, R S kernel size.
//   weight   [K, C/groups, R, S]
//   packed   opaque 1-D uint8 tensor made by pack_conv_weight, see packed_weight.h
//   shift    [K] float32, added after the convolution
//   padding  (top, bottom, left, right)
//   act      "none", "relu", "relu6", "silu" or "leaky_relu" (whose slope is act_slope)

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastres, m) {
  // weight * scale[:, None, None, None] in the layout that the backend's kernels read. algorithm is
  // "direct", "winograd" for a dense 3x3 that is used with stride and dilation 1, or "bfloat16" for
  // bfloat16 inputs and multiples of 32 channels in each group.
  m.def(
      "pack_conv_weight(Tensor weight, Tensor? scale, int groups, str algorithm='direct') "
      "-> Tensor");

  // act(conv(x) + shift + residual), in one pass over the output.
  m.def(
      "conv_bn_act(Tensor x, Tensor packed, Tensor shift, Tensor? residual, int[2] kernel_size, "
      "int[2] stride, int[4] padding, int[2] dilation, int groups, str act, float act_slope) "
      "-> Tensor");

  // The same of a weight that may be another at each call: weight * scale is packed on the way, by
  // the algorithm that pack_conv_weight would be told.
  m.def(
      "live_conv_bn_act(Tensor x, Tensor weight, Tensor? scale, Tensor shift, Tensor? residual, "
      "int[2] stride, int[4] padding, int[2] dilation, int groups, str algorithm, str act, "
      "float act_slope) -> Tensor");

  // A whole bottleneck: 1x1, 3x3 with stride, dilation and groups, 1x1, plus the shortcut (x, or a
  // 1x1 of x with the same stride), an activation after each.
  m.def(
      "grouped_bottleneck(Tensor x, Tensor packed1, Tensor shift1, Tensor packed2, Tensor shift2, "
      "Tensor packed3, Tensor shift3, Tensor? packed_down, Tensor? shift_down, int[2] stride, "
      "int[2] dilation, int groups, str act) -> Tensor");

  // Packed weights in one tensor, each from a multiple of 64 bytes on.
  m.def("join_packed(Tensor[] packed) -> Tensor");

  // Such blocks one after the other. Their convolutions are 3 a block, or with one in the shortcut
  // 4 (convs): packed holds their weights, of so many bytes (sizes), as join_packed gives them, and
  // shift their shifts, of so many values (channels). There are two values of stride and of
  // dilation a block, and one of groups. (Not lists of tensors: the stable ABI takes the tensors
  // out of a list that the caller, if it is TorchScript, goes on using.)
  m.def(
      "bottleneck_chain(Tensor x, Tensor packed, Tensor shift, int[] sizes, int[] channels, "
      "int[] convs, int[] stride, int[] dilation, int[] groups, str act) -> Tensor");

  // grouped_bottleneck of weights that may be others at each call; algorithm is of weight2.
  m.def(
      "live_bottleneck(Tensor x, Tensor weight1, Tensor? scale1, Tensor shift1, Tensor weight2, "
      "Tensor? scale2, Tensor shift2, Tensor weight3, Tensor? scale3, Tensor shift3, "
      "Tensor? weight_down, Tensor? scale_down, Tensor? shift_down, int[2] stride, "
      "int[2] dilation, int groups, str algorithm, str act) -> Tensor");

  // Such blocks one after the other, each of what the one before gives. weights has those of all
  // convolutions in turn; scale and shift have their values one after the other. (TorchScript must
  // not use the list again, see bottleneck_chain: accelerated models never run in it.)
  m.def(
      "live_bottleneck_chain(Tensor x, Tensor[] weights, Tensor scale, Tensor shift, "
      "str[] algorithms, int[] convs, int[] stride, int[] dilation, int[] groups, str act) "
      "-> Tensor");

  // The largest value of each window; padding is (vertical, horizontal), at most half of it.
  m.def("max_pool(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding) -> Tensor");

  // max_pool of conv_bn_act without a residual: the stem of a network, whose convolution's output,
  // if that is a direct one, never leaves the cache.
  m.def(
      "conv_max_pool(Tensor x, Tensor packed, Tensor shift, int[2] kernel_size, int[2] stride, "
      "int[4] padding, int[2] dilation, int groups, str act, float act_slope, int[2] pool_size, "
      "int[2] pool_stride, int[2] pool_padding) -> Tensor");

  // The same of a weight that may be another at each call.
  m.def(
      "live_conv_max_pool(Tensor x, Tensor weight, Tensor? scale, Tensor shift, int[2] stride, "
      "int[4] padding, int[2] dilation, int groups, str act, float act_slope, int[2] pool_size, "
      "int[2] pool_stride, int[2] pool_padding) -> Tensor");

  // A network's head: the average of each channel of [N, C, H, W], times weight [K, C], plus bias.
  m.def("avg_pool_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");

  // Training. The convolution of act((x - in_mean) * in_scale + in_bias), padded with zeros after
  // that, and of its output per channel the mean and the sum of squared deviations from it. Without
  // in_mean, in_scale and in_bias the input is act(x). algorithm as for pack_conv_weight.
  m.def(
      "conv_stats(Tensor x, Tensor? in_mean, Tensor? in_scale, Tensor? in_bias, str in_act, "
      "float in_act_slope, Tensor weight, int[2] stride, int[4] padding, int[2] dilation, "
      "int groups, str algorithm='direct') -> (Tensor y, Tensor mean, Tensor m2)");

  // Its gradients, from those of y, mean and m2. What is not wanted comes back empty: x's gradient,
  // those of in_mean, in_scale and in_bias, and weight's. grad_y is to be multiplied by grad_scale,
  // one value per channel. grad_in is what else flows into the gradient of the activated input.
  // If that was `activated`, what affine_add_act made of x and in_residual, grad_x is unscaled: the
  // gradient of x before it is multiplied by in_scale, and that of in_residual.
  m.def(
      "conv_stats_backward(Tensor grad_y, Tensor? grad_mean, Tensor? grad_m2, Tensor x, "
      "Tensor? in_mean, Tensor? in_scale, Tensor? in_bias, str in_act, float in_act_slope, "
      "Tensor weight, Tensor y, Tensor mean, int[2] stride, int[4] padding, int[2] dilation, "
      "int groups, bool need_x, bool need_affine, bool need_weight, Tensor? grad_scale=None, "
      "Tensor? grad_in=None, str algorithm='direct', Tensor? in_residual=None, "
      "Tensor? activated=None) -> (Tensor grad_x, Tensor grad_in_mean, Tensor grad_in_scale, "
      "Tensor grad_in_bias, Tensor grad_weight)");

  // max_pool, and where in its window of at most 256 values each was: row times width, and column,
  // uint8 in channels_last.
  m.def(
      "max_pool_places(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding) "
      "-> (Tensor y, Tensor places)");

  // The gradient of an x of this size (height, width).
  m.def(
      "max_pool_places_backward(Tensor grad, Tensor places, int[2] size, int[2] kernel_size, "
      "int[2] stride, int[2] padding) -> Tensor");

  // act((y - mean) * scale + bias + shortcut), the end of a block in one pass; the shortcut is
  // (residual - res_mean) * res_scale + res_bias, residual where those are not given, or nothing.
  m.def(
      "affine_add_act(Tensor y, Tensor mean, Tensor scale, Tensor bias, Tensor? residual, "
      "Tensor? res_mean, Tensor? res_scale, Tensor? res_bias, str act, float act_slope) -> Tensor");

  // The gradients of its tensors, in its arguments' order; those of absent arguments are empty.
  // Those of y and of the residual are one tensor times scale and times res_scale: unscaled, that
  // tensor is grad_y, and grad_residual is empty.
  m.def(
      "affine_add_act_backward(Tensor grad, Tensor y, Tensor mean, Tensor scale, Tensor bias, "
      "Tensor? residual, Tensor? res_mean, Tensor? res_scale, Tensor? res_bias, str act, "
      "float act_slope, bool unscaled=False) -> (Tensor grad_y, Tensor grad_mean, "
      "Tensor grad_scale, Tensor grad_bias, Tensor grad_residual, Tensor grad_res_mean, "
      "Tensor grad_res_scale, Tensor grad_res_bias)");

  // One hash per tensor, of its elements: tells whether parameters changed since they were packed.
  m.def("content_hash(Tensor[] tensors) -> int[]");
}
