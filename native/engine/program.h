// program.h: program.json as typed records, each name and number checked as far as one record can be; the rules of ops
// are ops.cc's business, where things lie in memory is plan.cc's. The C++ twin of src/eyespot/program/program.py.
#ifndef EYESPOT_ENGINE_PROGRAM_H_
#define EYESPOT_ENGINE_PROGRAM_H_

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "engine/json.h"

namespace eyespot {

// Row counts known only at run time: n tokens of this chunk, o wanted rows, t tiles, f feature rows.
enum Symbol : uint8_t { FIXED, N, O, T, F, SYMBOLS };
using Counts = std::array<int64_t, SYMBOLS>;  // FIXED counts 1

struct Dim {
  int64_t per = 0;
  Symbol of = FIXED;
  bool operator==(const Dim&) const = default;
  int64_t at(const Counts& counts) const { return per * counts[of]; }
};
using Shape = std::vector<Dim>;

std::string shape_text(const Shape& shape);

struct Value {
  Shape shape;
  bool is_int = false;
};

using Attr = std::variant<bool, int64_t, double, std::string>;

struct Op {
  std::string kind, output;
  Shape shape;
  std::vector<std::string> inputs;
  std::map<std::string, std::string> weights;  // role -> name
  std::map<std::string, Attr> attrs;
};

struct Block {
  std::string name, part;
  std::vector<Op> ops;
};

struct Graph {
  std::string name;
  std::vector<std::pair<std::string, Value>> inputs;
  std::string output;
  std::vector<Block> blocks;
};

struct Weight {
  std::vector<int64_t> shape;
  std::string part, scheme;
};

struct Info {
  int64_t vocab_size, hidden_size, max_position, image_token_id, tile_size, tile_tokens;
  int64_t tile_channels;  // 3; 6 where a tile is two frames
};

struct Span {
  int64_t offset = 0, bytes = 0;
};

enum class KvType { f32, f16, int8, int16 };  // int16: of vision alone

struct KvLayer {
  Span span;
  int64_t kv_heads, head_dim;
};

struct Memory {
  Counts units;  // units[F] is 0: no op's output has feature rows
  int64_t ctx, arena_bytes;
  KvType kv_type;
  std::vector<KvLayer> kv_layers;
  std::unordered_map<std::string, Span> values[2];  // text, vision
  Span rope[2];
  Span scratch, group_kv, partial;
};

struct Program {
  Info info;
  std::unordered_map<std::string, std::vector<float>> constants;
  std::unordered_map<std::string, Weight> weights;
  std::vector<Graph> graphs;  // text, then vision if the model has eyes
  Memory memory;
};

Program read_program(const Json& root);

const char* kv_type_name(KvType type);

}  // namespace eyespot

#endif
