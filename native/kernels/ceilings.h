// ceilings.h: loops that only read memory, or only multiply and add in registers: what no kernel on this machine can beat.
// Knows no clock, no threads and no weights.
#ifndef EYESPOT_KERNELS_CEILINGS_H_
#define EYESPOT_KERNELS_CEILINGS_H_

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace eyespot {

// run(rounds) does rounds * ops operations, of which a multiply-add is two, with `instruction`.
struct CeilingLoop {
  const char* instruction = "";
  int64_t ops = 0;
  void (*run)(int64_t rounds) = nullptr;  // null: the instruction set has no vectors (scalar)
};

// float32: fused multiply-add of floats. int16: products of words, summed in int32. int8: products of signed bytes, summed in int32. int4: the same where one factor
// is below 16 in size, so that an instruction set without int8 dot products may sum several products in int16 first.
struct CeilingLoops {
  CeilingLoop float32, int16, int8, int4;
};
CeilingLoops ceiling_loops(Isa isa);

// Reads [data, data + bytes) once, forward; bytes is a multiple of 64. The result depends on every byte.
uint64_t read_through(const std::byte* data, int64_t bytes);

}  // namespace eyespot

#endif
