// Tensor cores and the copies that feed them, sm_80 and later: mma.sync, ldmatrix, cp.async.
//
// A 16-byte chunk is eight 16-bit or four 32-bit values, and a fragment is the same chunks of bytes
// for both: m16n8k16 on 16-bit types and m16n8k8 on tf32 read an A of 16 rows by two chunks and a B
// of 8 rows by two chunks. So nothing but mma() knows the type.

#pragma once

#include "element.cuh"

namespace fastres::cuda {

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory, zeros where not `valid`; `from` has to be readable
// memory's.
__device__ inline void copy_async(uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? kChunkBytes : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;"); }
template <int N>
__device__ inline void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four matrices of 8 rows of 16 bytes; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A float32 as the sum of two tf32: 22 of its 24 bits.
__device__ inline void split_tf32(uint32_t value, uint32_t& high, uint32_t& low) {
  const float v = __uint_as_float(value);
  asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(high) : "f"(v));
  asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(low) : "f"(v - __uint_as_float(high)));
}

// float32 on tensor cores ("3xTF32"): the products of the halves but for the smallest, at a third
// of tf32's rate. Tensor cores cut their sums off instead of rounding them, an error that grows
// with the number of terms, so the running total is added to outside of them (Ootomo and Yokota,
// Recovering single precision accuracy from Tensor Cores, 2022). Then as exact as float32.
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float) {
  uint32_t high[4], low[4], b0_high, b0_low, b1_high, b1_low;
#pragma unroll
  for (int i = 0; i < 4; ++i) split_tf32(a[i], high[i], low[i]);
  split_tf32(b0, b0_high, b0_low);
  split_tf32(b1, b1_high, b1_low);
  float products[4] = {};
  mma_tf32(products, low, b0_high, b1_high);
  mma_tf32(products, high, b0_low, b1_low);
  mma_tf32(products, high, b0_high, b1_high);
#pragma unroll
  for (int i = 0; i < 4; ++i) d[i] += products[i];
}

}  // namespace fastres::cuda
