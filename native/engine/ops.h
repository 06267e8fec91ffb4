// ops.h: a graph's ops resolved for running: each a record of pointers and sizes with one function to call. Resolving
// checks every op against its rule, which is its row of OPS in src/eyespot/program/op.py. Knows no model and no file
// format.
#ifndef EYESPOT_ENGINE_OPS_H_
#define EYESPOT_ENGINE_OPS_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/fail.h"
#include "engine/file.h"
#include "engine/pool.h"
#include "engine/program.h"
#include "kernels/kernels.h"

namespace eyespot {

// What one pass over a graph is given.
struct Run {
  const Pool& pool;
  Counts counts;          // rows of each symbol now
  int64_t past;           // tokens in the cache
  const int32_t* tokens;  // [n]
  const int32_t* wanted;  // [o], each below n
  const float* features;  // [f][hidden]
  const float* pixels;    // [t][channels][s][s]
  const int32_t* positions = nullptr;  // text: [n][axes]; vision: [rows][axes] of `places`
  const int32_t* runs[2] = {};         // vision: the number of each row's window, and of its frame; they rise
};

constexpr int64_t AXES = 3;  // of a token's position: time, height, width

// Keys that runs of `rows` rows take: each run has whole blocks of keys. A picture's last window alone is no multiple of a
// block, so one block more is enough; frames are encoded one a call.
inline int64_t run_keys(int64_t rows) { return round_up(rows, PANEL) + PANEL; }

// What one call of a step reads (weights, and keys and values of the cache) and multiplies.
struct Cost {
  int64_t bytes = 0, multiply_adds = 0;
};

// The head of every resolved op; the rest of the record follows in the type derived from it.
struct Step {
  void (*call)(const Step&, const Run&) = nullptr;
  Cost (*cost)(const Step&, const Run&) = nullptr;  // null: next to nothing
  const Op* op = nullptr;
  const char* numbers = "float32";  // es_op_cost
  size_t number = 0;  // among all steps of the engine
};

struct BoundBlock {
  std::string name;
  std::vector<std::shared_ptr<Step>> steps;
  const float* last = nullptr;  // the last op's value, for es_trace
  Dim rows;
  int64_t columns = 0;
  bool whole = true;  // false: the rest of this block's ops are over wanted rows and stand in BoundGraph::wanted
};

// cos and sin of position * inv_freq, filled once a chunk: of one position a row, past and on, or of one for each axis.
struct RopeTable {
  const float* inv_freq = nullptr;
  int64_t half = 0;
  float factor = 1;
  float *cos = nullptr, *sin = nullptr;
  std::vector<int32_t> axis;  // of each frequency; empty: positions are implied
  int64_t axes = 0;
  void fill(int64_t past, int64_t rows) const;
  void fill(const int32_t* positions, int64_t rows) const;

 private:
  void row(int64_t r, int64_t i, int64_t position) const;
};

struct BoundGraph {
  std::vector<BoundBlock> blocks;  // over n or t
  std::vector<BoundBlock> wanted;  // over o: run once a slice of units.o wanted rows, not at all when none is wanted
  RopeTable rope;
  const float* output = nullptr;
  bool features = false;  // takes feature rows, one for each image token
  bool positions = false;  // text: takes a position for each axis of each token
  Dim place_rows{0, T};   // vision: rows of `places` and runs; {0, T} where it takes none
};

// Where the tensors of a part come from.
using Parts = std::function<const TensorFile&(const std::string& part)>;

// Resolves graph `g` of the program (0 text, 1 vision) onto the arena. `weight_bytes` grows by what its weights take.
// Throws Failure for anything that does not fit together.
BoundGraph bind_graph(const Program& program, size_t g, std::byte* arena, const Kernels& kernels, const Parts& parts,
                      int64_t& weight_bytes);

}  // namespace eyespot

#endif
