// conv_gemm on f16; conv_launch.h chooses among the tiles.

#include "conv_gemm.cuh"

using fastres::cuda::f16;

FASTRES_CONV_GEMM(fastres_conv_gemm_async_128x128_f16, f16, 4, 2, 4, 4, true)
FASTRES_CONV_GEMM(fastres_conv_gemm_async_128x64_f16, f16, 2, 2, 8, 2, true)
FASTRES_CONV_GEMM(fastres_conv_gemm_async_64x64_f16, f16, 2, 2, 4, 2, true)
FASTRES_CONV_GEMM(fastres_conv_gemm_source_128x64_f16, f16, 2, 2, 8, 2, false)
FASTRES_CONV_GEMM(fastres_conv_gemm_source_64x64_f16, f16, 2, 2, 4, 2, false)
