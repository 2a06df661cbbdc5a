// conv_gemm on f32; conv_launch.h chooses among the tiles.

#include "conv_gemm.cuh"

FASTRES_CONV_GEMM(fastres_conv_gemm_async_128x64_f32, float, 4, 2, 4, 2, true)
FASTRES_CONV_GEMM(fastres_conv_gemm_async_64x64_f32, float, 2, 2, 4, 2, true)
FASTRES_CONV_GEMM(fastres_conv_gemm_source_128x64_f32, float, 4, 2, 4, 2, false)
FASTRES_CONV_GEMM(fastres_conv_gemm_source_64x64_f32, float, 2, 2, 4, 2, false)
