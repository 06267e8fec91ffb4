// plan.h: the memory plan of program.json, checked: nothing that is needed later may be written over. Knows lifetimes,
// not ops.
#ifndef EYESPOT_ENGINE_PLAN_H_
#define EYESPOT_ENGINE_PLAN_H_

#include "engine/program.h"

namespace eyespot {

// Where the arrays of a cache lie: K, V, then for int8 and int16 the scales of K and of V.
struct CacheLayout {
  int64_t keys;     // rounded up to whole blocks
  int64_t head;     // bytes of one head's K or V
  int64_t numbers;  // bytes of K or V of all heads, rounded up to 64
  int64_t scales;   // bytes of their scales, rounded up to 64; 0 unless int8 or int16
  int64_t bytes;    // of everything
};
CacheLayout cache_layout(KvType type, int64_t kv_heads, int64_t head_dim, int64_t keys);

// Throws Failure when two things of graph `g` that live at the same time share bytes of the arena. Every op's output
// must have a place already.
void check_plan(const Program& program, size_t g);

}  // namespace eyespot

#endif
