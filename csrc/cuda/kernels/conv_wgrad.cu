// conv_wgrad on all types.

#include "conv_wgrad.cuh"

using namespace fastres::cuda;

FASTRES_KERNEL(fastres_conv_wgrad_f16, kWgradThreads, 1, WgradParams,
               ConvWgrad<f16>(params, shared).run())
FASTRES_KERNEL(fastres_conv_wgrad_bf16, kWgradThreads, 1, WgradParams,
               ConvWgrad<bf16>(params, shared).run())
FASTRES_KERNEL(fastres_conv_wgrad_f32, kWgradThreads, 1, WgradParams,
               ConvWgrad<float>(params, shared).run())
