// plan.cc: one walk over a graph that keeps the set of live spans, as the compiler's own plan did when it was made.
#include "engine/plan.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <unordered_map>

#include "engine/fail.h"
#include "kernels/generic.h"

namespace eyespot {
namespace {

// Ops that may write onto their first input, when nothing needs it later.
constexpr const char* IN_PLACE[] = {"rope", "rope_at", "add", "scale", "gelu", "position", "merge", "rms_norm", "layer_norm"};

class Live {
 public:
  void add(const Span& span, const std::string& name) {
    if (span.bytes == 0) return;
    const auto next = spans_.lower_bound(span.offset);
    if (next != spans_.end() && next->first < span.offset + span.bytes) clash(name, next->second.second);
    if (next != spans_.begin() && std::prev(next)->second.first > span.offset)
      clash(name, std::prev(next)->second.second);
    spans_[span.offset] = {span.offset + span.bytes, name};
  }
  void drop(const Span& span) { spans_.erase(span.offset); }

 private:
  [[noreturn]] static void clash(const std::string& one, const std::string& other) {
    fail("memory plan: '" + shown(one) + "' overlaps '" + shown(other) + "', which is still needed", Nothing{},
         Nothing{}, "program.json was edited or damaged");
  }
  std::map<int64_t, std::pair<int64_t, std::string>> spans_;  // offset -> end, name
};

}  // namespace

CacheLayout cache_layout(KvType type, int64_t kv_heads, int64_t head_dim, int64_t keys) {
  const char* what = "a cache's size";
  const int64_t item = type == KvType::f32 ? 4 : type == KvType::int8 ? 1 : 2;
  const bool scaled = type == KvType::int8 || type == KvType::int16;
  CacheLayout layout;
  layout.keys = round_up(keys, PANEL);
  layout.head = product(product(layout.keys, type == KvType::int16 ? round_up(head_dim, PANEL) : head_dim, what), item, what);
  layout.numbers = round_up(product(layout.head, kv_heads, what), 64);
  layout.scales = scaled ? round_up(product(product(layout.keys, kv_heads, what), 4, what), 64) : 0;
  layout.bytes = product(2, sum(layout.numbers, layout.scales, what), what);
  return layout;
}

void check_plan(const Program& program, size_t g) {
  const Graph& graph = program.graphs[g];
  const auto& places = program.memory.values[g];
  Live live;
  for (const KvLayer& layer : program.memory.kv_layers) live.add(layer.span, "kv_cache");
  live.add(program.memory.rope[g], "rope");
  live.add(program.memory.scratch, "scratch");
  live.add(program.memory.group_kv, "group_kv");
  live.add(program.memory.partial, "partial");

  std::unordered_map<std::string, const Op*> last_use;
  std::unordered_map<std::string, Symbol> symbol;
  for (const Block& block : graph.blocks)
    for (const Op& op : block.ops) {
      symbol[op.output] = op.shape[0].of;
      last_use.try_emplace(op.output, &op);  // a value nobody reads dies at once
      for (const std::string& input : op.inputs)
        if (symbol.count(input) != 0) {
          // Ops over wanted rows run once a slice: what they read from before must outlive the last slice.
          const bool every_slice = op.shape[0].of == O && symbol[input] != O;
          const Op*& last = last_use[input];
          if (last != nullptr) last = every_slice ? nullptr : &op;
        }
    }
  last_use[graph.output] = nullptr;

  for (const Block& block : graph.blocks)
    for (const Op& op : block.ops) {
      const Span& out = places.at(op.output);
      auto dies = [&](const std::string& name) { return symbol.count(name) != 0 && last_use.at(name) == &op; };
      const bool may_share = std::find(std::begin(IN_PLACE), std::end(IN_PLACE), op.kind) != std::end(IN_PLACE);
      const bool shares = may_share && dies(op.inputs[0]) && places.at(op.inputs[0]).offset == out.offset;
      if (shares) live.drop(out);
      live.add(out, op.output);
      for (const std::string& input : op.inputs)
        if (dies(input) && !(shares && input == op.inputs[0])) live.drop(places.at(input));
      if (last_use.at(op.output) == &op) live.drop(out);
    }
}

}  // namespace eyespot
