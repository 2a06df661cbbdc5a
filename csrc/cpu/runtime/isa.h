// Which instruction set the CPU kernels run on: chosen once per process, at run time.
#pragma once

#include <string>
#include <vector>

// Beside the operators, the library exports only what fastres._diagnostics calls.
#define FASTRES_PUBLIC __attribute__((visibility("default")))

namespace fastres {

// Ordered: a machine that runs one of these runs every smaller one too.
// amx is avx512 with dense convolutions on matrix tiles of bfloat16; see split.h.
enum class Isa { portable = 0, avx2 = 1, avx512 = 2, amx = 3 };

// "portable", "avx2", "avx512" or "amx": the names that FASTRES_ISA takes.
FASTRES_PUBLIC const char* isa_name(Isa isa);

// The best instruction set of this processor that this build has kernels for.
FASTRES_PUBLIC Isa detected_isa();

// All instruction sets that run on this processor, smallest first.
FASTRES_PUBLIC std::vector<Isa> supported_isas();

// The instruction set that the kernels use: the forced one, else FASTRES_ISA (which is read at the
// first call), else detected_isa(). Throws std::invalid_argument, with the choices in its message,
// when FASTRES_ISA names something unknown or something that this processor cannot run.
FASTRES_PUBLIC Isa selected_isa();

// Forces an instruction set for the whole process; "auto" undoes it. Throws as selected_isa() does.
FASTRES_PUBLIC void force_isa(const std::string& name);

}  // namespace fastres
