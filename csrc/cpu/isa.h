// Which instruction set the CPU kernels run on: chosen once per process, at run time.
#pragma once

#include <string>
#include <vector>

namespace fastres {

// Ordered: a machine that runs one of these runs every smaller one too.
enum class Isa { portable = 0, avx2 = 1, avx512 = 2 };

// "portable", "avx2" or "avx512": the names that FASTRES_ISA takes.
const char* isa_name(Isa isa);

// The best instruction set of this processor that this build has kernels for.
Isa detected_isa();

// All instruction sets that run on this processor, smallest first.
std::vector<Isa> supported_isas();

// The instruction set that the kernels use: FASTRES_ISA where it is set, else detected_isa().
// The environment is read at the first call only. Throws std::invalid_argument, with the choices in
// its message, when FASTRES_ISA names something unknown or something this processor cannot run.
Isa selected_isa();

}  // namespace fastres
