#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace fastres {
namespace {

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // The same extensions as in csrc/flags.txt. GCC and Clang also ask the operating system (XGETBV)
  // whether it saves the wide registers, so a true here means that the instructions may be used.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) {
    return Isa::avx512;
  }
  if (avx2) {
    return Isa::avx2;
  }
#endif
  return Isa::portable;
}

Isa select() {
  const char* forced = std::getenv("FASTRES_ISA");
  if (forced == nullptr || *forced == '\0') {
    return detected_isa();
  }
  std::string choices;
  for (const Isa isa : supported_isas()) {
    if (std::string(forced) == isa_name(isa)) {
      return isa;
    }
    choices += std::string(choices.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::invalid_argument("FASTRES_ISA is '" + std::string(forced) +
                              "': expected one that this machine runs (" + choices + ")");
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
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
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (isa <= detected_isa()) {
      isas.push_back(isa);
    }
  }
  return isas;
}

Isa selected_isa() {
  static const Isa isa = select();
  return isa;
}

}  // namespace fastres
