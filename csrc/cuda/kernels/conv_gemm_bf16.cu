// conv_gemm on bf16; conv_launch.h chooses among the tiles.

#include "conv_gemm.cuh"

using fastres::cuda::bf16;

FASTRES_CONV_GEMM(fastres_conv_gemm_async_128x128_bf16, bf16, 4, 2, 4, 4, true)
FASTRES_CONV_GEMM(fastres_conv_gemm_async_128x64_bf16, bf16, 2, 2, 8, 2, true)
FASTRES_CONV_GEMM(fastres_conv_gemm_async_64x64_bf16, bf16, 2, 2, 4, 2, true)
FASTRES_CONV_GEMM(fastres_conv_gemm_source_128x64_bf16, bf16, 2, 2, 8, 2, false)
FASTRES_CONV_GEMM(fastres_conv_gemm_source_64x64_bf16, bf16, 2, 2, 4, 2, false)
