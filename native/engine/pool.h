// pool.h: a fixed team of threads that runs one piece of work at a time: the caller is member 0 and takes part. Each member has
// its own run of the pieces; one that has done with it helps the others, so that a thread which the system does not let run
// holds nobody up. Knows nothing of the work, and no result may depend on who does what.
#ifndef EYESPOT_ENGINE_POOL_H_
#define EYESPOT_ENGINE_POOL_H_

#include <sys/types.h>

#include <algorithm>
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

  // Calls work(first, last, member) so that 0..total are covered once, in pieces of whole `unit`s, at least `least` of them,
  // and returns when all is done. `work` must not throw.
  template <class Work>
  void run(int64_t total, int64_t unit, int64_t least, const Work& work) const {
    const int64_t units = (total + unit - 1) / unit;
    const int64_t pieces = std::min((units + least - 1) / least, PIECES * static_cast<int64_t>(members_.size()));
    if (pieces <= 1) return total > 0 ? work(int64_t{0}, total, members_[0]) : void();
    const auto piece = [&](int64_t i, const Member& member) {
      const int64_t first = units * i / pieces * unit, last = units * (i + 1) / pieces * unit;
      work(first, last < total ? last : total, member);
    };
    start(piece, pieces, 0);
  }

  // Calls work(member) once on every member, by its own thread.
  template <class Work>
  void each(const Work& work) const {
    start([&](int64_t, const Member& member) { work(member); }, static_cast<int64_t>(members_.size()), ALONE);
  }

 private:
  static constexpr int64_t PIECES = 8;  // a member's: what is lost to a thread that is stopped in the middle of one

  using Call = void (*)(const void*, int64_t, const Member&);
  template <class Piece>
  void start(const Piece& piece, int64_t pieces, uint64_t alone) const {
    call_ = [](const void* context, int64_t i, const Member& member) {
      (*static_cast<const Piece*>(context))(i, member);
    };
    context_ = &piece;
    hand_out(pieces, alone);
  }
  void hand_out(int64_t pieces, uint64_t alone) const;
  void take(const Member& member) const;
  void serve(const Member& member);
  void stop();

  // A member's own pieces: which is next, and the end. Whoever takes one that is there keeps the work from ending before it is
  // done, so what call_ and context_ say is still true for it, even for a thread that comes late from the work before.
  struct alignas(64) Own {
    std::atomic<uint64_t> pieces{0};  // ALONE | end << 32 | next
  };
  static constexpr uint64_t ALONE = uint64_t{1} << 63;  // these are for nobody else

  const pid_t process_;
  Mapping memory_;
  std::vector<Member> members_;
  std::vector<std::thread> workers_;
  mutable std::vector<Own> own_;
  mutable Call call_ = nullptr;
  mutable const void* context_ = nullptr;
  std::atomic<bool> stopped_{false};
  alignas(64) mutable std::atomic<uint32_t> round_{0};  // counts pieces of work handed out
  alignas(64) mutable std::atomic<uint32_t> left_{0};   // pieces that are not done
};

int usable_processors();  // that this process may run on

}  // namespace eyespot

#endif
