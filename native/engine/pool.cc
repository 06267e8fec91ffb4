// pool.cc: the team's two meeting points, the round counter and the pending counter; both wait as wait_change does.
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

Pool::Pool(int threads) : process_(::getpid()), memory_(Mapping::memory(threads * WORK_BYTES, "the threads' scratch")) {
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
  call_ = nullptr;
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void Pool::run(Call call, const void* context) const {
  const auto others = static_cast<uint32_t>(workers_.size());
  if (others != 0) {
    call_ = call, context_ = context;
    pending_.store(others, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }
  call(context, members_[0]);
  for (uint32_t left; (left = pending_.load(std::memory_order_acquire)) != 0;) wait_change(pending_, left);
}

void Pool::serve(const Member& member) {
  for (uint32_t seen = 0;; ++seen) {
    wait_change(round_, seen);
    if (call_ == nullptr) return;
    call_(context_, member);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
  }
}

}  // namespace eyespot
