#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastres {
namespace {

#if defined(__x86_64__)
// Every processor with AVX2 has it, but a virtual machine may hide it. Not __builtin_cpu_supports:
// Clang before 15 does not know the name.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// Tiles are 8 KiB of registers, which Linux keeps for processes that ask for it. Their threads and
// forks inherit it.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr unsigned kAmxBfloat16 = 1U << 22, kAmxTile = 1U << 24;  // leaf 7, edx
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kAmxBfloat16) == 0 || (edx & kAmxTile) == 0) return false;
  constexpr unsigned kAvx512Bfloat16 = 1U << 5;  // leaf 7, subleaf 1, eax
  if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((eax & kAvx512Bfloat16) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h, since Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // The same extensions as in csrc/flags.txt. GCC and Clang also ask the operating system (XGETBV)
  // whether it saves the wide registers, so a true here means that the instructions may be used.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return may_use_tiles() ? Isa::amx : Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

Isa parse(const std::string& name, const std::string& source) {
  std::string choices;
  for (const Isa isa : supported_isas()) {
    if (name == isa_name(isa)) return isa;
    choices += std::string(choices.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::invalid_argument(source + " is '" + name + "': expected one that this machine runs (" +
                              choices + ")");
}

Isa select() {
  const char* name = std::getenv("FASTRES_ISA");
  return name == nullptr || *name == '\0' ? detected_isa() : parse(name, "FASTRES_ISA");
}

constexpr int kNotForced = -1;
std::atomic<int> forced{kNotForced};

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::amx:
      return "amx";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::portable:
      break;
  }
  return "portable";
}

Isa detected_isa() {
  static const Isa isa = detect();
  return isa;
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::amx}) {
    if (isa <= detected_isa()) isas.push_back(isa);
  }
  return isas;
}

Isa selected_isa() {
  const int isa = forced.load(std::memory_order_relaxed);
  if (isa != kNotForced) return static_cast<Isa>(isa);
  static const Isa chosen = select();
  return chosen;
}

void force_isa(const std::string& name) {
  forced = name == "auto" ? kNotForced : static_cast<int>(parse(name, "the instruction set"));
}

}  // namespace fastres
