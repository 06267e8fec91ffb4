// pool.h: a fixed team of threads that runs one piece of work at a time: the caller is member 0 and takes part. Members
// spin for a short while between pieces and then sleep. Knows nothing of the work; how it is shared out is a function
// of the member's number alone.
#ifndef EYESPOT_ENGINE_POOL_H_
#define EYESPOT_ENGINE_POOL_H_

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "engine/file.h"

namespace eyespot {

struct Member {
  int64_t index, count;
  void* work;  // WORK_BYTES of its own

  // This member's part [first, last) of `total` things, cut at multiples of `unit`.
  struct Range {
    int64_t first, last;
  };
  Range share(int64_t total, int64_t unit = 1) const {
    const int64_t units = (total + unit - 1) / unit;
    const int64_t first = units * index / count * unit, last = units * (index + 1) / count * unit;
    return {first < total ? first : total, last < total ? last : total};
  }
};

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(members_.size()); }
  const Member& caller() const { return members_[0]; }
  bool forked() const;  // this process is a child of the one that made the team, and has none of its threads

  // Calls work(member) once on every member and returns when all have returned. `work` must not throw.
  template <class Work>
  void run(const Work& work) const {
    run([](const void* context, const Member& member) { (*static_cast<const Work*>(context))(member); }, &work);
  }

 private:
  using Call = void (*)(const void*, const Member&);
  void run(Call call, const void* context) const;
  void serve(const Member& member);
  void stop();

  const pid_t process_;
  Mapping memory_;
  std::vector<Member> members_;
  std::vector<std::thread> workers_;
  mutable Call call_ = nullptr;  // what runs now; null ends the workers
  mutable const void* context_ = nullptr;
  alignas(64) mutable std::atomic<uint32_t> round_{0};    // counts pieces of work handed out
  alignas(64) mutable std::atomic<uint32_t> pending_{0};  // workers that have not finished this one
};

int usable_processors();  // that this process may run on

}  // namespace eyespot

#endif
