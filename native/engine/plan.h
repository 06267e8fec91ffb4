// plan.h: the memory plan of program.json, checked: nothing that is needed later may be written over. Knows lifetimes,
// not ops.
#ifndef EYESPOT_ENGINE_PLAN_H_
#define EYESPOT_ENGINE_PLAN_H_

#include "engine/program.h"

namespace eyespot {

// Bytes one cache layer takes: K, V and, for int8, their scales, each rounded up to 64.
int64_t kv_layer_bytes(const Memory& memory, const KvLayer& layer);

// Throws Failure when two things of graph `g` that live at the same time share bytes of the arena. Every op's output
// must have a place already.
void check_plan(const Program& program, size_t g);

}  // namespace eyespot

#endif
