"""The operator schemas, as csrc/ops.cpp declares them.

The native library registers its own. These serve a build without one, where the operators are
defined from Python; the tests compare the two.
"""

SCHEMAS: dict[str, str] = {
    "pack_conv_weight": (
        "pack_conv_weight(Tensor weight, Tensor? scale, int groups, str algorithm='direct') "
        "-> Tensor"
    ),
    "conv_bn_act": (
        "conv_bn_act(Tensor x, Tensor packed, Tensor shift, Tensor? residual, int[2] kernel_size, "
        "int[2] stride, int[4] padding, int[2] dilation, int groups, str act, float act_slope) "
        "-> Tensor"
    ),
    "live_conv_bn_act": (
        "live_conv_bn_act(Tensor x, Tensor weight, Tensor? scale, Tensor shift, "
        "Tensor? residual, int[2] stride, int[4] padding, int[2] dilation, int groups, "
        "str algorithm, str act, float act_slope) -> Tensor"
    ),
    "grouped_bottleneck": (
        "grouped_bottleneck(Tensor x, Tensor packed1, Tensor shift1, Tensor packed2, "
        "Tensor shift2, Tensor packed3, Tensor shift3, Tensor? packed_down, Tensor? shift_down, "
        "int[2] stride, int[2] dilation, int groups, str act) -> Tensor"
    ),
    "join_packed": "join_packed(Tensor[] packed) -> Tensor",
    "bottleneck_chain": (
        "bottleneck_chain(Tensor x, Tensor packed, Tensor shift, int[] sizes, int[] channels, "
        "int[] convs, int[] stride, int[] dilation, int[] groups, str act) -> Tensor"
    ),
    "live_bottleneck": (
        "live_bottleneck(Tensor x, Tensor weight1, Tensor? scale1, Tensor shift1, "
        "Tensor weight2, Tensor? scale2, Tensor shift2, Tensor weight3, Tensor? scale3, "
        "Tensor shift3, Tensor? weight_down, Tensor? scale_down, Tensor? shift_down, "
        "int[2] stride, int[2] dilation, int groups, str algorithm, str act) -> Tensor"
    ),
    "live_bottleneck_chain": (
        "live_bottleneck_chain(Tensor x, Tensor[] weights, Tensor scale, Tensor shift, "
        "str[] algorithms, int[] convs, int[] stride, int[] dilation, int[] groups, str act) "
        "-> Tensor"
    ),
    "max_pool": "max_pool(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding) -> Tensor",
    "conv_max_pool": (
        "conv_max_pool(Tensor x, Tensor packed, Tensor shift, int[2] kernel_size, int[2] stride, "
        "int[4] padding, int[2] dilation, int groups, str act, float act_slope, "
        "int[2] pool_size, int[2] pool_stride, int[2] pool_padding) -> Tensor"
    ),
    "live_conv_max_pool": (
        "live_conv_max_pool(Tensor x, Tensor weight, Tensor? scale, Tensor shift, "
        "int[2] stride, int[4] padding, int[2] dilation, int groups, str act, "
        "float act_slope, int[2] pool_size, int[2] pool_stride, int[2] pool_padding) -> Tensor"
    ),
    "avg_pool_linear": "avg_pool_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    "conv_stats": (
        "conv_stats(Tensor x, Tensor? in_mean, Tensor? in_scale, Tensor? in_bias, str in_act, "
        "float in_act_slope, Tensor weight, int[2] stride, int[4] padding, int[2] dilation, "
        "int groups, str algorithm='direct') -> (Tensor y, Tensor mean, Tensor m2)"
    ),
    "conv_stats_backward": (
        "conv_stats_backward(Tensor grad_y, Tensor? grad_mean, Tensor? grad_m2, Tensor x, "
        "Tensor? in_mean, Tensor? in_scale, Tensor? in_bias, str in_act, float in_act_slope, "
        "Tensor weight, Tensor y, Tensor mean, int[2] stride, int[4] padding, int[2] dilation, "
        "int groups, bool need_x, bool need_affine, bool need_weight, Tensor? grad_scale=None, "
        "Tensor? grad_in=None, str algorithm='direct', Tensor? in_residual=None, "
        "Tensor? activated=None) -> (Tensor grad_x, Tensor grad_in_mean, Tensor grad_in_scale, "
        "Tensor grad_in_bias, Tensor grad_weight)"
    ),
    "max_pool_places": (
        "max_pool_places(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding) "
        "-> (Tensor y, Tensor places)"
    ),
    "max_pool_places_backward": (
        "max_pool_places_backward(Tensor grad, Tensor places, int[2] size, int[2] kernel_size, "
        "int[2] stride, int[2] padding) -> Tensor"
    ),
    "affine_add_act": (
        "affine_add_act(Tensor y, Tensor mean, Tensor scale, Tensor bias, Tensor? residual, "
        "Tensor? res_mean, Tensor? res_scale, Tensor? res_bias, str act, float act_slope) "
        "-> Tensor"
    ),
    "affine_add_act_backward": (
        "affine_add_act_backward(Tensor grad, Tensor y, Tensor mean, Tensor scale, Tensor bias, "
        "Tensor? residual, Tensor? res_mean, Tensor? res_scale, Tensor? res_bias, str act, "
        "float act_slope, bool unscaled=False) -> (Tensor grad_y, Tensor grad_mean, "
        "Tensor grad_scale, Tensor grad_bias, Tensor grad_residual, Tensor grad_res_mean, "
        "Tensor grad_res_scale, Tensor grad_res_bias)"
    ),
    "content_hash": "content_hash(Tensor[] tensors) -> int[]",
}
