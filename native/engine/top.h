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

constexpr Candidate NOBODY{-std::numeric_limits<float>::infinity(), INT32_MAX};

// best: a heap, at first of NOBODY, with its worst in front; takes in what of row[first..last) is better. The row is finite.
inline void top_of(const float* row, int64_t first, int64_t last, std::span<Candidate> best) {
  constexpr int64_t BLOCK = 64;
  for (int64_t i = first; i < last; i += BLOCK) {
    const int64_t end = std::min(last, i + BLOCK);
    int any = 0;
    for (int64_t j = i; j < end; ++j) any |= row[j] >= best.front().logit;
    if (any == 0) continue;
    for (int64_t j = i; j < end; ++j) {
      const Candidate candidate{row[j], static_cast<int32_t>(j)};
      if (!better(candidate, best.front())) continue;
      std::pop_heap(best.begin(), best.end(), better);
      best.back() = candidate;
      std::push_heap(best.begin(), best.end(), better);
    }
  }
}

}  // namespace eyespot

#endif
