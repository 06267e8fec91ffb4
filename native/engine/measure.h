// measure.h: the machine's ceilings, timed with the engine's own threads: how fast it reads memory that is mapped as weights
// are, and how fast it multiplies and adds. Knows no model.
#ifndef EYESPOT_ENGINE_MEASURE_H_
#define EYESPOT_ENGINE_MEASURE_H_

#include "kernels/ceilings.h"

namespace eyespot {

// Of all threads together: bytes a second, operations a second (a multiply-add is two), each the best of a few passes of some
// milliseconds. 0: the instruction set has no vectors.
struct Ceilings {
  double read = 0, float32 = 0, int16 = 0, int8 = 0, int4 = 0;
  CeilingLoops loops;
};

// Takes a third of a second, and while it runs memory of eight times the last cache, 64 to 256 MiB. Failure when there are
// no such threads or no such memory to have.
Ceilings measure_ceilings(int threads, Isa isa);

}  // namespace eyespot

#endif
