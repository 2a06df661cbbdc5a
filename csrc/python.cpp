// The module fastres._diagnostics: what was built, what processor this is, and which instruction
// set is used. It calls into libfastres, which has no Python in it. No operator needs this module:
// it is missing where Python's headers were.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <thread>
#include <vector>

#include "cpu/diagnostics.h"
#include "cpu/kernel_choice.h"

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

py::dict cpu_info() {
  py::dict info;
  info["detected_isa"] = fastres::isa_name(fastres::detected_isa());
  info["selected_isa"] = fastres::isa_name(fastres::selected_isa());
  info["cores"] = std::thread::hardware_concurrency();
  return info;
}

fastres::cpu::StorageType storage_type(bool bfloat16) {
  using fastres::cpu::StorageType;
  return bfloat16 ? StorageType::bfloat16 : StorageType::float32;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const fastres::Isa isa : fastres::supported_isas()) names.push_back(fastres::isa_name(isa));
  return names;
}

}  // namespace

PYBIND11_MODULE(_diagnostics, m) {
  m.doc() = "What was built, and what processor this is.";
  m.def("build_info", &build_info,
        "Compiler, flags, torch's version and the instruction sets of this build.");
  m.def("cpu_info", &cpu_info,
        "Detected and selected instruction set, and cores that may be used. Raises ValueError when "
        "FASTRES_ISA names an instruction set that this machine does not run.");
  m.def("supported_isas", &supported_isas,
        "The instruction sets that run on this machine: the choices of FASTRES_ISA.");
  m.def("force_isa", &fastres::force_isa, py::arg("name"),
        "Forces an instruction set for the whole process, as FASTRES_ISA does from outside; 'auto' "
        "undoes it. Raises ValueError, with the choices, when this machine does not run it.");
  m.def(
      "kernel_choice",
      [](const std::vector<int64_t>& x, const std::vector<int64_t>& weight,
         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
         const std::vector<int64_t>& dilation, int64_t groups, const std::string& algorithm,
         bool live, bool bfloat16) {
        return fastres::cpu::kernel_choice(
            {x, weight, stride, padding, dilation, groups, storage_type(bfloat16)}, algorithm,
            live);
      },
      py::arg("x"), py::arg("weight"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("groups"), py::arg("algorithm"), py::arg("live"), py::arg("bfloat16") = false,
      "What computes a convolution of these shapes, padding (top, bottom, left, right), on the "
      "selected instruction set. Raises RuntimeError where it has no output.");
  m.def(
      "multiplies_bfloat16", [] { return fastres::cpu::multiplies_bfloat16(); },
      "Whether bfloat16 tensors are multiplied as such on the selected instruction set.");
  m.def(
      "prefers_direct",
      [](int64_t in_channels, bool bfloat16) {
        return fastres::cpu::prefers_direct(in_channels, storage_type(bfloat16));
      },
      py::arg("in_channels"), py::arg("bfloat16") = false,
      "Whether a dense 3x3 of so many input channels is better convolved directly than by "
      "Winograd's algorithm, on the selected instruction set.");
  m.def("fma_burn", &fastres::cpu::fma_burn, py::arg("iterations"),
        py::call_guard<py::gil_scoped_release>(),
        "Runs independent fused multiply-adds on the selected instruction set and returns the "
        "floating-point operations done; timed, they give one core's peak.");
  m.def("fma_peak_gflops", &fastres::cpu::fma_peak_gflops, py::arg("threads"),
        py::call_guard<py::gil_scoped_release>(),
        "Peak of fused multiply-adds on the selected instruction set, in GFLOP/s.");
  m.def("copy_bandwidth_gbs", &fastres::cpu::copy_bandwidth_gbs, py::arg("threads"),
        py::call_guard<py::gil_scoped_release>(),
        "Bytes read and written a second by copies far larger than the caches, in GB/s.");
}
