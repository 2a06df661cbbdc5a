#include "diagnostics.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "microkernels.h"

namespace fastres::cpu {
namespace {

// Units of work a second that `threads` threads get through together, each call of `work(thread)`
// doing `units`. The best of a few rounds: whatever else runs on the machine only slows them down.
template <class Work>
double best_rate(int threads, double units, const Work& work) {
  constexpr int kRounds = 7;
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> team;
    for (int i = 0; i < threads; ++i) team.emplace_back([&work, i] { work(i); });
    for (std::thread& member : team) member.join();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, threads * units / elapsed.count());
  }
  return best;
}

void check_threads(int threads) {
  if (threads < 1) {
    throw std::invalid_argument("threads must be positive, got " + std::to_string(threads));
  }
}

}  // namespace

double fma_burn(int64_t iterations) { return selected_microkernels().fma_burn(iterations); }

double fma_peak_gflops(int threads) {
  check_threads(threads);
  constexpr int64_t kIterations = 4'000'000;
  const double flops = fma_burn(1) * kIterations;
  return best_rate(threads, flops, [](int) { fma_burn(kIterations); }) / 1e9;
}

double copy_bandwidth_gbs(int threads) {
  check_threads(threads);
  constexpr size_t kBytes = size_t{64} << 20;
  constexpr int kCopies = 4;
  struct Buffers {
    std::vector<char> source = std::vector<char>(kBytes, 1), target = std::vector<char>(kBytes);
  };
  std::vector<Buffers> buffers(static_cast<size_t>(threads));
  const auto copy = [&buffers](int thread) {
    Buffers& own = buffers[static_cast<size_t>(thread)];
    for (int i = 0; i < kCopies; ++i) std::memcpy(own.target.data(), own.source.data(), kBytes);
  };
  return best_rate(threads, 2.0 * kCopies * kBytes, copy) / 1e9;
}

}  // namespace fastres::cpu
