// pool.cc: how pieces are taken, and how the team waits: for work, and for the last piece of it.
#include "engine/pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

#include "engine/fail.h"
#include "kernels/generic.h"

namespace eyespot {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto SPIN = std::chrono::microseconds(4);   // most gaps between two ops are shorter
constexpr auto PARK = std::chrono::microseconds(60);  // no gap within a call is longer on a machine that is free
constexpr int LOOKS = 32;                             // between two looks at the clock

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns once `value` is no longer `old`. Spins first, then lets others run between two looks, who may be the very
// threads it waits for, then sleeps.
void wait_change(const std::atomic<uint32_t>& value, uint32_t old) {
  const auto changed = [&] {
    for (int i = 0; i < LOOKS; ++i) {
      if (value.load(std::memory_order_acquire) != old) return true;
      pause();
    }
    return false;
  };
  if (changed()) return;
  const auto start = Clock::now();
  for (auto waited = Clock::duration::zero(); waited < PARK; waited = Clock::now() - start) {
    if (changed()) return;
    if (waited > SPIN) sched_yield();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

int usable_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

Pool::Pool(int threads)
    : process_(::getpid()), memory_(Mapping::memory(threads * WORK_BYTES, "the threads' scratch")),
      own_(static_cast<size_t>(threads)) {
  for (int i = 0; i < threads; ++i) members_.push_back({i, threads, memory_.data() + i * WORK_BYTES});
  workers_.reserve(static_cast<size_t>(threads));
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { serve(members_[static_cast<size_t>(i)]); });
  } catch (const std::system_error&) {
    const auto started = static_cast<int64_t>(workers_.size()) + 1;
    stop();
    fail("cannot start the threads", started, str(threads) + " threads", "the system's limit on threads");
  }
}

Pool::~Pool() {
  if (forked())
    new std::vector<std::thread>(std::move(workers_));  // left alone for good: none of them is here to be joined
  else
    stop();
}

bool Pool::forked() const { return ::getpid() != process_; }

void Pool::stop() {
  stopped_.store(true, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void Pool::hand_out(int64_t pieces, uint64_t alone) const {
  const auto count = static_cast<int64_t>(members_.size());
  left_.store(static_cast<uint32_t>(pieces), std::memory_order_relaxed);
  for (int64_t i = 0; i < count; ++i) {
    const auto next = static_cast<uint64_t>(pieces * i / count), end = static_cast<uint64_t>(pieces * (i + 1) / count);
    own_[static_cast<size_t>(i)].pieces.store(alone | end << 32 | next, std::memory_order_release);
  }
  if (count > 1) {
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }
  take(members_[0]);
  for (uint32_t left; (left = left_.load(std::memory_order_acquire)) != 0;) wait_change(left_, left);
}

void Pool::take(const Member& member) const {
  uint32_t done = 0;
  for (int64_t k = 0; k < member.count; ++k) {
    std::atomic<uint64_t>& pieces = own_[static_cast<size_t>((member.index + k) % member.count)].pieces;
    uint64_t seen = pieces.load(std::memory_order_relaxed);
    const auto there = [&] { return static_cast<uint32_t>(seen) < (seen & ~ALONE) >> 32 && (k == 0 || !(seen & ALONE)); };
    while (there()) {
      if (!pieces.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_relaxed)) continue;
      call_(context_, static_cast<uint32_t>(seen++), member);
      ++done;
    }
  }
  if (done != 0 && left_.fetch_sub(done, std::memory_order_acq_rel) == done) left_.notify_one();
}

void Pool::serve(const Member& member) {
  for (uint32_t seen = 0;;) {
    wait_change(round_, seen);
    seen = round_.load(std::memory_order_acquire);
    if (stopped_.load(std::memory_order_relaxed)) return;
    take(member);
  }
}

}  // namespace eyespot
