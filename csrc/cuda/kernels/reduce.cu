// The second stage of per-channel reductions: from the tiles' partial results to one value a
// channel, in an order that depends on shapes only. float64: the sums run over up to 1e5 tiles.

#include "../device/registry.cuh"
#include "../params.h"

namespace fastres::cuda {

// Sum over the threads of one channel, in their order; every thread gets it.
__device__ double over_parts(double value, double* shared) {
  shared[threadIdx.x] = value;
  __syncthreads();
  double total = 0.0;
  for (int part = 0; part < kReduceParts; ++part) {
    total += shared[part * kReduceChannels + threadIdx.x % kReduceChannels];
  }
  __syncthreads();
  return total;
}

// Chan, Golub and LeVeque's merge of (count, mean, M2), of all tiles at once:
// M2 = sum of m2_i + n_i * (mean_i - mean)^2.
__device__ void merge_statistics(const MergeStatisticsParams& p, double* shared) {
  const int channel = blockIdx.x * kReduceChannels + threadIdx.x % kReduceChannels;
  const int part = threadIdx.x / kReduceChannels;
  const bool exists = channel < p.channels;
  const float2* partial = reinterpret_cast<const float2*>(p.partial) + channel;
  double count = 0.0, sum = 0.0;
  for (int tile = part; tile < p.tiles && exists; tile += kReduceParts) {
    const double n = p.counts[tile];
    count += n;
    sum += n * partial[int64_t{tile} * p.channels].x;
  }
  count = over_parts(count, shared);
  const double mean = over_parts(sum, shared) / (count > 0.0 ? count : 1.0);
  double m2 = 0.0;
  for (int tile = part; tile < p.tiles && exists; tile += kReduceParts) {
    const float2 t = partial[int64_t{tile} * p.channels];
    const double d = t.x - mean;
    m2 += t.y + p.counts[tile] * d * d;
  }
  m2 = over_parts(m2, shared);
  if (part == 0 && exists) {
    p.mean[channel] = static_cast<float>(mean);
    p.m2[channel] = static_cast<float>(m2);
  }
}

__device__ void sum_partials(const SumPartialsParams& p, double* shared) {
  const int channel = blockIdx.x * kReduceChannels + threadIdx.x % kReduceChannels;
  const int part = threadIdx.x / kReduceChannels;
  const bool exists = channel < p.channels;
  for (int term = 0; term < p.terms; ++term) {
    double sum = 0.0;
    for (int tile = part; tile < p.tiles && exists; tile += kReduceParts) {
      sum += p.partial[(int64_t{tile} * p.channels + channel) * p.terms + term];
    }
    sum = over_parts(sum, shared);
    if (part != 0 || !exists) continue;
    for (int i = 0; i < SumPartialsParams::kOutputs; ++i) {
      if (p.out[i] == nullptr || p.term[i] != term) continue;
      const double factor = p.factor[i] == nullptr ? 1.0 : -double{p.factor[i][channel]};
      p.out[i][channel] = static_cast<float>(factor * sum);
    }
  }
}

}  // namespace fastres::cuda

using namespace fastres::cuda;

FASTRES_KERNEL(fastres_merge_statistics, kReduceChannels* kReduceParts, 1, MergeStatisticsParams,
               merge_statistics(params, reinterpret_cast<double*>(shared)))
FASTRES_KERNEL(fastres_sum_partials, kReduceChannels* kReduceParts, 1, SumPartialsParams,
               sum_partials(params, reinterpret_cast<double*>(shared)))
