// The module fastres._diagnostics: what was built, and what processor this is. No torch in it, and
// nothing needs it: it may be missing where Python's headers were.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <map>
#include <string>
#include <thread>
#include <vector>

#include "cpu/isa.h"
#include "cpu/microkernels.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __VERSION__;
#else
  return "gcc " __VERSION__;
#endif
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = compiler();
  info["flags"] = FASTRES_BUILD_FLAGS;
  info["torch"] = FASTRES_BUILD_TORCH;
  info["isas"] = FASTRES_BUILD_ISAS;
  return info;
}

// Data cache sizes in bytes, those that the C library knows.
std::map<std::string, long> caches() {
  std::map<std::string, long> sizes;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  const std::pair<const char*, int> names[] = {{"L1d", _SC_LEVEL1_DCACHE_SIZE},
                                               {"L2", _SC_LEVEL2_CACHE_SIZE},
                                               {"L3", _SC_LEVEL3_CACHE_SIZE}};
  for (const auto& [name, key] : names) {
    const long size = sysconf(key);
    if (size > 0) sizes[name] = size;
  }
#endif
  return sizes;
}

py::dict cpu_info() {
  py::dict info;
  info["detected_isa"] = fastres::isa_name(fastres::detected_isa());
  info["selected_isa"] = fastres::isa_name(fastres::selected_isa());
  info["cores"] = std::thread::hardware_concurrency();
  info["caches"] = caches();
  return info;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const fastres::Isa isa : fastres::supported_isas()) names.push_back(fastres::isa_name(isa));
  return names;
}

double fma_burn(int64_t iterations) {
  return fastres::cpu::selected_microkernels().fma_burn(iterations);
}

}  // namespace

PYBIND11_MODULE(_diagnostics, m) {
  m.doc() = "What was built, and what processor this is.";
  m.def("build_info", &build_info,
        "Compiler, flags, torch's version and the instruction sets of this build.");
  m.def("cpu_info", &cpu_info,
        "Detected and selected instruction set, cores and cache sizes in bytes. Raises ValueError "
        "when FASTRES_ISA names an instruction set that this machine does not run.");
  m.def("supported_isas", &supported_isas,
        "The instruction sets that run on this machine: the choices of FASTRES_ISA.");
  m.def("fma_burn", &fma_burn, py::arg("iterations"), py::call_guard<py::gil_scoped_release>(),
        "Runs independent fused multiply-adds on the selected instruction set and returns the "
        "floating-point operations done; timed, they give one core's peak.");
}
