// top.h: the largest of a row of logits: no sort, one pass that looks at few numbers one by one. Knows no vocabulary.
#ifndef EYESPOT_ENGINE_TOP_H_
#define EYESPOT_ENGINE_TOP_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

namespace eyespot {

struct Candidate {
  float logit;
  int32_t id;
};

// The order of candidates: falling logits, rising ids among equals.
inline bool better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// best = the best of row[first..last), in no order; where there are fewer, the rest is -Inf. The row is finite.
inline void top_of(const float* row, int64_t first, int64_t last, std::span<Candidate> best) {
  constexpr int64_t BLOCK = 64;
  std::fill(best.begin(), best.end(), Candidate{-std::numeric_limits<float>::infinity(), INT32_MAX});
  for (int64_t i = first; i < last; i += BLOCK) {  // best is a heap, its worst in front; equals come too late for it
    const int64_t end = std::min(last, i + BLOCK);
    int any = 0;
    for (int64_t j = i; j < end; ++j) any |= row[j] > best.front().logit;
    if (any == 0) continue;
    for (int64_t j = i; j < end; ++j) {
      if (!(row[j] > best.front().logit)) continue;
      std::pop_heap(best.begin(), best.end(), better);
      best.back() = {row[j], static_cast<int32_t>(j)};
      std::push_heap(best.begin(), best.end(), better);
    }
  }
}

}  // namespace eyespot

#endif
