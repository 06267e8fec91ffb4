// measure.cc: passes over a file that lives in memory alone, and loops in registers, between two looks at the clock.
#include "engine/measure.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include "engine/fail.h"
#include "engine/file.h"
#include "engine/pool.h"
#include "eyespot/limits.h"

namespace eyespot {
namespace {

constexpr int64_t MIB = 1 << 20;
constexpr int PASSES = 4;
constexpr double LOOP_SECONDS = 0.005;

// A part's twin: pages of a file, mapped as Mapping::file maps a part.
Mapping file_in_memory(int64_t bytes) {
  const char* const name = "eyespot-ceilings";
  const int file = ::memfd_create(name, MFD_CLOEXEC);
  const std::vector<char> block(static_cast<size_t>(MIB), 1);
  int64_t written = 0;
  while (file >= 0 && written < bytes) {
    const ssize_t n = ::write(file, block.data(), block.size());
    if (n <= 0) break;
    written += n;
  }
  const int fault = errno;
  if (written < bytes) {
    if (file >= 0) ::close(file);
    fail("no memory to read through", std::strerror(fault), str(bytes) + " bytes", "the machine has less to give");
  }
  Mapping map = Mapping::file("/proc/self/fd/" + std::to_string(file), name);
  ::close(file);
  return map;
}

template <class Work>
double seconds(const Pool& pool, const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  pool.each(work);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double read_rate(const Pool& pool) {
#ifdef _SC_LEVEL3_CACHE_SIZE
  const int64_t cache = std::max<int64_t>(0, ::sysconf(_SC_LEVEL3_CACHE_SIZE));
#else
  const int64_t cache = 0;
#endif
  const int64_t bytes = std::clamp<int64_t>(8 * cache, 64 * MIB, 256 * MIB) / MIB * MIB;
  const Mapping map = file_in_memory(bytes);
  std::atomic<uint64_t> sum = 0;  // what is read is used
  const auto pass = [&](const Member& member) {
    const auto [first, last] = member.share(bytes, 4096);
    sum.fetch_xor(read_through(map.data() + first, last - first), std::memory_order_relaxed);
  };
  pool.each(pass);  // pages enter the map
  double best = seconds(pool, pass);
  for (int i = 1; i < PASSES; ++i) best = std::min(best, seconds(pool, pass));
  return static_cast<double>(bytes) / best;
}

double loop_rate(const Pool& pool, const CeilingLoop& loop) {
  if (loop.run == nullptr) return 0;
  int64_t rounds = 1 << 14;
  const auto pass = [&](const Member&) { loop.run(rounds); };
  pool.each(pass);  // wakes the vector units
  const double once = std::max(seconds(pool, pass), 1e-6);
  rounds = std::max<int64_t>(rounds, static_cast<int64_t>(LOOP_SECONDS / once * static_cast<double>(rounds)));
  double best = seconds(pool, pass);
  for (int i = 1; i < PASSES; ++i) best = std::min(best, seconds(pool, pass));
  return static_cast<double>(rounds) * static_cast<double>(loop.ops) * pool.threads() / best;
}

}  // namespace

Ceilings measure_ceilings(int threads, Isa isa) {
  if (threads < 1 || threads > limits::THREADS) fail("bad number of threads", threads, "1 to " + str(limits::THREADS));
  const Pool pool(threads);
  const CeilingLoops loops = ceiling_loops(isa);
  return {read_rate(pool),
          loop_rate(pool, loops.float32),
          loop_rate(pool, loops.int16),
          loop_rate(pool, loops.int8),
          loop_rate(pool, loops.int4),
          loops};
}

}  // namespace eyespot
