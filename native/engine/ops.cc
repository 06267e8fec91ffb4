// ops.cc: the op kinds' rules: each checks an op against its row of OPS in src/eyespot/program/op.py and fills the
// record that will run it (steps.h). OPS near the end lists them all.
#include "engine/ops.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <unordered_map>
#include <utility>

#include "engine/fail.h"
#include "engine/plan.h"
#include "engine/scheme.h"
#include "engine/steps.h"
#include "eyespot/limits.h"

namespace eyespot {
namespace {

template <class Record>
std::shared_ptr<Record> make() {
  auto record = std::make_shared<Record>();
  record->call = [](const Step& step, const Run& run) { static_cast<const Record&>(step)(run); };
  if constexpr (requires(const Record& r, const Run& run) { r.costs(run); })
    record->cost = [](const Step& step, const Run& run) { return static_cast<const Record&>(step).costs(run); };
  return record;
}

// A value while a graph is being resolved. Inputs of the graph have no address: they come with each call.
struct Operand {
  Shape shape;
  bool is_int = false;
  int input = -1;  // number of the graph's input, -1 for an op's output
  float* data = nullptr;
};

struct Located {
  const Block* block;
  const Op* op;
};

struct Matrix {
  int64_t m, k, bytes;
  Scheme scheme;
  const std::byte* data;
  Packed packed() const { return {reinterpret_cast<const uint8_t*>(data), m, k, scheme.group, scheme.minimum}; }
};

class Binder {
 public:
  Binder(const Program& program, size_t g, std::byte* arena, const Kernels& kernels, const Parts& parts,
         int64_t& weight_bytes)
      : kernels(kernels), program(program), graph(program.graphs[g]), memory(program.memory), g_(g), arena_(arena),
        parts_(parts), weight_bytes_(weight_bytes) {}

  BoundGraph bind();

  // For the rules below: the current op's arguments, checked.

  [[noreturn]] void bad(const std::string& fault) const { fail(where_ + ": " + fault); }

  const Operand& in(size_t i) const { return values_.at(op_->inputs[i]); }

  // Input i as a float32 matrix of the arena: its address.
  const float* matrix(size_t i) const {
    const Operand& value = in(i);
    if (value.shape.size() != 2 || value.shape[1].of != FIXED || value.is_int || value.input >= 0)
      bad("input " + str(i) + " is " + shape_text(value.shape) + ", not a computed matrix [rows, columns]");
    return value.data;
  }
  Dim rows(size_t i) const { return in(i).shape[0]; }
  int64_t columns(size_t i) const { return in(i).shape[1].per; }

  // Input i must be the graph's input of this name.
  void given(size_t i, const char* name) const {
    if (in(i).input < 0 || graph.inputs[static_cast<size_t>(in(i).input)].first != name)
      bad("input " + str(i) + " must be the graph's '" + name + "'");
  }

  // Input i must be the graph's positions of the rows of input 0, one for each axis: how many.
  int64_t placed(size_t i) const {
    given(i, g_ == 0 ? "positions" : "places");
    if (rows(i) != rows(0)) bad("positions are of " + shape_text({rows(i)}) + " rows, not of " + shape_text({rows(0)}));
    return in(i).shape[1].per;
  }

  // Input i must be one of the graph's numberings of the rows of input 0: which.
  int run_input(size_t i) const {
    const bool windows = in(i).input >= 0 && graph.inputs[static_cast<size_t>(in(i).input)].first == "windows";
    given(i, windows ? "windows" : "frames");
    if (rows(i) != rows(0)) bad("runs are of " + shape_text({rows(i)}) + " rows, not of " + shape_text({rows(0)}));
    return windows ? 0 : 1;
  }

  // Rows that come in whole groups: a tile's tokens.
  void grouped(size_t i, int64_t group) const {
    if (rows(i).per % group != 0)
      bad("input " + str(i) + " has " + shape_text({rows(i)}) + " rows, not groups of " + str(group));
  }

  int64_t integer(const char* key, int64_t low, int64_t high) const {
    const int64_t* value = std::get_if<int64_t>(&op_->attrs.at(key));
    if (value == nullptr || *value < low || *value > high)
      bad(std::string("attribute ") + key + " must be an integer from " + str(low) + " to " + str(high));
    return *value;
  }
  float number(const char* key) const {
    const Attr& attr = op_->attrs.at(key);
    double value = NAN;
    if (const double* real = std::get_if<double>(&attr)) value = *real;
    if (const int64_t* whole = std::get_if<int64_t>(&attr)) value = static_cast<double>(*whole);
    if (!std::isfinite(static_cast<float>(value))) bad(std::string("attribute ") + key + " must be a finite number");
    return static_cast<float>(value);
  }
  bool flag(const char* key) const {
    const bool* value = std::get_if<bool>(&op_->attrs.at(key));
    if (value == nullptr) bad(std::string("attribute ") + key + " must be true or false");
    return *value;
  }

  bool has(const char* role) const { return op_->weights.count(role) != 0; }

  // A float32 weight or constant of this shape; null when the op leaves the role out.
  const float* floats(const char* role, const std::vector<int64_t>& shape) {
    if (!has(role)) return nullptr;
    const std::string& name = op_->weights.at(role);
    if (const auto constant = program.constants.find(name);
        constant != program.constants.end() && program.weights.count(name) == 0) {
      if (shape != std::vector<int64_t>{static_cast<int64_t>(constant->second.size())})
        bad(std::string("constant '") + role + "' has " + str(constant->second.size()) + " values, expected " +
            eyespot::shape_text(shape));
      return constant->second.data();
    }
    const Weight& weight = declared(role);
    if (weight.shape != shape)
      bad(std::string("weight '") + role + "' is " + eyespot::shape_text(weight.shape) + ", expected " +
          eyespot::shape_text(shape));
    if (weight.scheme != "f32") unsupported(role, weight.scheme, "f32");
    return reinterpret_cast<const float*>(tensor(name, weight, "F32", shape, 1));
  }

  // A matrix [m, k] in any scheme of linear; k < 0 takes what is declared.
  Matrix weight_matrix(int64_t k, bool table) {
    const std::string& name = op_->weights.at("weight");
    const Weight& weight = declared("weight");
    if (weight.shape.size() != 2 || (k >= 0 && weight.shape[1] != k))
      bad("weight is " + eyespot::shape_text(weight.shape) + ", expected " +
          (k < 0 ? "[rows, columns]" : "[m, " + str(k) + "]"));
    const std::optional<Scheme> scheme = parse_scheme(weight.scheme);
    if (!scheme || (table && scheme->packed()))
      unsupported("weight", weight.scheme, table ? "f32, f16 or bf16" : SCHEMES);
    Matrix out{weight.shape[0], weight.shape[1], 0, *scheme, nullptr};
    const int64_t before = weight_bytes_;
    if (scheme->packed()) {
      if (scheme->a8 && scheme->group == 0 && out.k > A8_COLUMNS)
        fail_with(ES_UNSUPPORTED, where_ + ": weight rows are too long for one scale a row", out.k,
                  "at most " + str(A8_COLUMNS));
      const int64_t panels = (out.m + PANEL - 1) / PANEL;
      out.data = tensor(name, weight, "U8", {panels, scheme->panel_bytes(out.k)}, 32);
    } else {
      const char* dtype = scheme->bits == 32 ? "F32" : scheme->bits == 16 ? "F16" : "BF16";
      out.data = tensor(name, weight, dtype, weight.shape, 1);
    }
    out.bytes = weight_bytes_ - before;
    return out;
  }

  // The op's output, [rows, columns]: its recorded shape must be this one and its place in the arena large enough.
  float* out(Dim rows, int64_t columns) {
    const Shape shape{rows, Dim{columns, FIXED}};
    if (op_->shape != shape) bad("recorded shape is " + shape_text(op_->shape) + ", expected " + shape_text(shape));
    if (rows.of != (g_ == 1 ? T : rows.of == O ? O : N))
      bad("rows " + shape_text({rows}) + " do not belong in this graph");
    if (columns < 1 || columns > limits::VOCAB) bad("output is " + str(columns) + " wide");
    const auto place = memory.values[g_].find(op_->output);
    if (place == memory.values[g_].end()) bad("memory.values gives it no place");
    const int64_t bytes = product(product(rows.at(memory.units), columns, "a value's size"), 4, "a value's size");
    if (place->second.bytes < bytes)
      bad("its place has " + str(place->second.bytes) + " bytes, expected " + str(bytes));
    return reinterpret_cast<float*>(arena_ + place->second.offset);
  }

  void result(float* data) { result_ = data; }

  void tokens_rows(size_t i) const {
    if (g_ != 0 || rows(i) != Dim{1, N}) bad("input " + str(i) + " must have one row a token");
  }

  // The place of int8 rows in scratch, which holds one value's at a time.
  Int8Rows int8_rows(const std::string& value, Dim rows, int64_t k, const Scheme& scheme) {
    const int64_t stride = round_up(k, A8_ALIGN), groups = scheme.groups(k), most = rows.at(memory.units);
    const int64_t bytes = product(most, stride + 8 * groups, "scratch");
    if (memory.scratch.bytes < bytes)
      bad("memory.scratch has " + str(memory.scratch.bytes) + " bytes, expected " + str(bytes));
    in_scratch_ = {value, scheme.group};
    int8_t* q = reinterpret_cast<int8_t*>(arena_ + memory.scratch.offset);
    float* scale = reinterpret_cast<float*>(q + most * stride);
    return {kernels.quantize_int8, q, scale, reinterpret_cast<int32_t*>(scale + most * groups), k, stride, scheme.group,
            groups};
  }
  bool in_scratch(const std::string& value, int64_t group) const {
    return in_scratch_ == std::pair{value, group};
  }
  const std::string& input(size_t i) const { return op_->inputs[i]; }

  // Ends the binding of a step that makes rows: y, and what an A8 linear right behind it wants of them.
  void makes_rows(RowStep& step, Dim rows, int64_t width) {
    step.rows = rows, step.width = width;
    result(step.y = out(rows, width));
    const std::optional<Scheme> scheme = next_ != ops_.end() ? int8_reader(*next_, op_->output) : std::nullopt;
    if (!scheme) return;
    step.int8 = int8_rows(op_->output, rows, width, *scheme);
    int64_t others = reads_.at(op_->output);
    for (auto op = next_; op != ops_.end(); ++op, --others)
      if (const auto same = int8_reader(*op, op_->output); !same || same->group != scheme->group) break;
    step.keep = others > 0 || width * static_cast<int64_t>(sizeof(float)) > WORK_BYTES;
  }

  // axes: of the positions that each row has; 0: it has one, past and on.
  const RopeTable& rope_table(Dim rows, int64_t rotary, float factor, int64_t axes) {
    const float* inv_freq = floats("inv_freq", {rotary / 2});
    std::vector<int32_t> axis;
    if (axes != 0) {
      const float* numbers = floats("axis", {rotary / 2});
      for (int64_t i = 0; i < rotary / 2; ++i) {
        if (!(numbers[i] >= 0 && numbers[i] < static_cast<float>(axes)) || numbers[i] != std::floor(numbers[i]))
          bad("axis " + str(i) + " is none of " + str(axes));
        axis.push_back(static_cast<int32_t>(numbers[i]));
      }
    }
    RopeTable& table = bound_.rope;
    if (table.inv_freq == nullptr) {
      const int64_t half = product(rows.at(memory.units), rotary / 2, "rope");
      if (memory.rope[g_].bytes < 2 * half * 4)
        bad("memory.rope has " + str(memory.rope[g_].bytes) + " bytes, expected " + str(2 * half * 4));
      float* cos = reinterpret_cast<float*>(arena_ + memory.rope[g_].offset);
      table.inv_freq = inv_freq, table.half = rotary / 2, table.factor = factor;
      table.cos = cos, table.sin = cos + half, table.axis = axis, table.axes = axes;
    }
    if (table.inv_freq != inv_freq || table.half != rotary / 2 || table.factor != factor || table.axis != axis)
      bad("uses another rope table than the op before");
    return table;
  }

  struct Place {
    Cache cache;  // of key/value head 0 of the first sequence
    CacheLayout layout;
  };

  Place cache(int64_t index, int64_t kv_heads, int64_t head_dim) {
    if (index >= static_cast<int64_t>(memory.kv_layers.size())) bad("memory.kv_cache has no layer " + str(index));
    const KvLayer& layer = memory.kv_layers[static_cast<size_t>(index)];
    if (layer.kv_heads != kv_heads || layer.head_dim != head_dim)
      bad("cache layer " + str(index) + " is " + str(layer.kv_heads) + " x " + str(layer.head_dim) + ", expected " +
          str(kv_heads) + " x " + str(head_dim));
    const CacheLayout layout = cache_layout(memory.kv_type, kv_heads, head_dim, memory.ctx);
    if (layer.span.bytes < layout.bytes)
      bad("cache layer " + str(index) + " has " + str(layer.span.bytes) + " bytes, expected " + str(layout.bytes));
    if (std::find(cache_layers_.begin(), cache_layers_.end(), index) != cache_layers_.end())
      bad("cache layer " + str(index) + " is written twice");
    cache_layers_.push_back(index);
    return place(layer.span, layout);
  }

  // What keys and values of `group` rows are kept as: words where the op's result is rounded to int8 anyway, where this
  // processor is faster with them, and where they need no more room than floats.
  KvType group_type(int64_t group, int64_t kv_heads, int64_t head_dim) const {
    if (!kernels.pairs || next_ == ops_.end() || !int8_reader(*next_, op_->output)) return KvType::f32;
    const auto bytes = [&](KvType type) { return cache_layout(type, kv_heads, head_dim, group).bytes; };
    return bytes(KvType::int16) <= bytes(KvType::f32) ? KvType::int16 : KvType::f32;
  }

  // Keys and values of every sequence of `group` rows.
  Place group_cache(int64_t groups, int64_t group, int64_t kv_heads, int64_t head_dim, KvType type) const {
    const CacheLayout layout = cache_layout(type, kv_heads, head_dim, group);
    const int64_t room = cache_layout(KvType::f32, kv_heads, head_dim, group).bytes;  // whatever this processor takes of it
    const int64_t bytes = product(groups, room, "memory.group_kv");
    if (memory.group_kv.bytes < bytes)
      bad("memory.group_kv has " + str(memory.group_kv.bytes) + " bytes, expected " + str(bytes));
    return place(memory.group_kv, layout);
  }

  // Softmax sums of one row's spans.
  float* partial(int64_t heads, int64_t head_dim) const {
    const int64_t spans = (memory.ctx + SPAN - 1) / SPAN;
    const int64_t bytes = product(product(heads, spans, "memory.partial"), 4 * (head_dim + 2), "memory.partial");
    if (memory.partial.bytes < bytes)
      bad("memory.partial has " + str(memory.partial.bytes) + " bytes, expected " + str(bytes));
    return reinterpret_cast<float*>(arena_ + memory.partial.offset);
  }

  int64_t declared_rows(const char* role) const { return declared(role).shape[0]; }
  void merges(int64_t token_id) const {
    if (token_id != program.info.image_token_id) bad("token_id " + str(token_id) + " is not info.image_token_id");
  }

  const Kernels& kernels;
  const Program& program;
  const Graph& graph;
  const Memory& memory;

 private:
  [[noreturn]] void unsupported(const char* role, const std::string& scheme, const char* expected) const {
    fail_with(ES_UNSUPPORTED, where_ + ": weight '" + role + "' has a scheme this engine does not run here", scheme,
              expected);
  }

  const Weight& declared(const char* role) const {
    const std::string& name = op_->weights.at(role);
    const auto weight = program.weights.find(name);
    if (weight == program.weights.end()) bad("weight '" + shown(name) + "' is not declared");
    if (weight->second.part != block_->part)
      bad("weight '" + shown(name) + "' lies in part '" + weight->second.part + "', not in '" + block_->part + "'");
    return weight->second;
  }

  const std::byte* tensor(const std::string& name, const Weight& weight, const char* dtype,
                          const std::vector<int64_t>& shape, int64_t alignment) {
    const Tensor& tensor = parts_(weight.part).tensor(name, dtype, shape, alignment);
    weight_bytes_ += tensor.bytes;
    return tensor.data;
  }

  Place place(const Span& span, const CacheLayout& layout) const {
    std::byte* k = arena_ + span.offset;
    Cache cache{k, k + layout.numbers, nullptr, nullptr};
    if (layout.scales != 0) {
      cache.k_scale = reinterpret_cast<float*>(k + 2 * layout.numbers);
      cache.v_scale = reinterpret_cast<float*>(k + 2 * layout.numbers + layout.scales);
    }
    return {cache, layout};
  }

  // The scheme by which `op` reads `value` as int8 rows; nothing when it does not, or in another block.
  std::optional<Scheme> int8_reader(const Located& op, const std::string& value) const {
    if (op.block != block_ || (op.op->kind != "linear" && op.op->kind != "head")) return {};
    if (op.op->inputs != std::vector{value} || op.op->weights.count("weight") == 0) return {};
    const auto weight = program.weights.find(op.op->weights.at("weight"));
    const std::optional<Scheme> scheme =
        weight == program.weights.end() ? std::nullopt : parse_scheme(weight->second.scheme);
    return scheme && scheme->a8 ? scheme : std::nullopt;
  }

  std::shared_ptr<Step> bind_op();

  const size_t g_;
  std::byte* const arena_;
  const Parts& parts_;
  int64_t& weight_bytes_;
  const Block* block_ = nullptr;
  const Op* op_ = nullptr;
  std::string where_;
  std::unordered_map<std::string, Operand> values_;
  std::vector<int64_t> cache_layers_;
  std::vector<Located> ops_;                        // of the graph, in order
  std::vector<Located>::const_iterator next_;       // after op_
  std::unordered_map<std::string, int64_t> reads_;  // how many inputs a value is
  std::pair<std::string, int64_t> in_scratch_;      // value and group of the int8 rows there as the ops run
  BoundGraph bound_;
  float* result_ = nullptr;
};

using Bound = std::shared_ptr<Step>;

Bound bind_embed(Binder& b) {
  b.given(0, "tokens");
  const Matrix table = b.weight_matrix(-1, true);
  if (table.m < b.program.info.vocab_size) b.bad("table has " + str(table.m) + " rows, fewer than the vocabulary");
  const Kernels& k = b.kernels;
  auto step = make<Embed>();
  const int bits = table.scheme.bits;
  step->widen = bits == 32 ? k.widen_f32 : bits == 16 ? k.widen_f16 : k.widen_bf16;
  step->table = table.data;
  step->width = table.k;
  step->row_bytes = step->width * (bits == 32 ? 4 : 2);
  b.result(step->out = b.out(b.rows(0), step->width));
  return step;
}

Bound bind_merge(Binder& b) {
  auto step = make<Merge>();
  step->x = b.matrix(0), step->width = b.columns(0);
  b.tokens_rows(0), b.given(1, "tokens"), b.given(2, "features");
  if (b.in(2).shape[1].per != step->width) b.bad("features and hidden state differ in width");
  step->token_id = b.integer("token_id", 0, limits::VOCAB);
  b.merges(step->token_id);
  b.result(step->out = b.out(b.rows(0), step->width));
  return step;
}

template <class Args>
Bound linear_step(Binder& b, const Matrix& weight, void (*linear)(const Args&), const Args& args, const Int8Rows& int8) {
  auto step = make<LinearStep<Args>>();
  step->linear = linear, step->args = args, step->int8 = int8;
  if (weight.scheme.a8) step->numbers = weight.scheme.bits == 8 ? "int8" : "int4";
  step->x = b.matrix(0), step->rows = b.rows(0), step->m = weight.m;
  step->multiply_adds = weight.m * weight.k, step->weight_bytes = weight.bytes;
  b.result(args.y);
  return step;
}

Bound bind_linear(Binder& b) {
  const float* x = b.matrix(0);
  const int64_t k = b.columns(0);
  const Matrix w = b.weight_matrix(k, false);
  const float* bias = b.floats("bias", {w.m});
  float* y = b.out(b.rows(0), w.m);
  const Kernels& f = b.kernels;
  const Scheme& scheme = w.scheme;
  if (!scheme.packed()) {
    const auto linear = scheme.bits == 32 ? f.linear_f32 : scheme.bits == 16 ? f.linear_f16 : f.linear_bf16;
    return linear_step<LinearArgs>(b, w, linear, {x, w.data, bias, y, 0, k, w.m, 0, 0, nullptr}, {});
  }
  if (!scheme.a8) {
    const auto linear = scheme.bits == 8 ? f.linear_w8a16 : f.linear_w4a16;
    return linear_step<LinearA16Args>(b, w, linear, {x, w.packed(), bias, y, 0, 0, 0, nullptr}, {});
  }
  const bool ready = b.in_scratch(b.input(0), scheme.group);
  const Int8Rows int8 = b.int8_rows(b.input(0), b.rows(0), k, scheme);
  const LinearA8Args args{int8.q, int8.scale, int8.sum, w.packed(), bias, y, 0, int8.stride, 0, 0, nullptr};
  return linear_step<LinearA8Args>(b, w, scheme.bits == 8 ? f.linear_w8a8 : f.linear_w4a8, args,
                                   ready ? Int8Rows{} : int8);
}

template <bool layer>
Bound bind_norm(Binder& b) {
  auto step = make<NormStep>();
  const float* x = b.matrix(0);
  const int64_t width = b.columns(0);
  step->norm = layer ? b.kernels.layer_norm_f32 : b.kernels.rms_norm_f32;
  b.makes_rows(*step, b.rows(0), width);
  const float* bias = layer ? b.floats("bias", {width}) : nullptr;
  step->args = {x, nullptr, b.floats("weight", {width}), bias, 0, width, b.number("eps")};
  return step;
}

// at: each row has a position for every axis, the second input; else one, past and on.
template <bool at>
Bound bind_rope(Binder& b) {
  auto step = make<RopeStep>();
  const float* x = b.matrix(0);
  const int64_t width = b.columns(0);
  int64_t axes = 0;
  if constexpr (at) {
    axes = b.placed(1);
  } else {
    b.tokens_rows(0);
  }
  const int64_t head_dim = b.integer("head_dim", 2, limits::DIM), heads = b.integer("heads", 1, limits::HEADS);
  const int64_t rotary = b.integer("rotary_dim", 2, head_dim);
  if (rotary % 2 != 0) b.bad("rotary_dim " + str(rotary) + " is odd");
  if (heads * head_dim > width) b.bad(str(heads) + " heads of " + str(head_dim) + " do not fit a row of " + str(width));
  const RopeTable& table = b.rope_table(b.rows(0), rotary, b.number("factor"), axes);
  step->rope = b.kernels.rope_f32, step->rows = b.rows(0);
  step->args = {x, b.out(b.rows(0), width), table.cos, table.sin, 0, width, heads, head_dim, rotary};
  b.result(step->args.y);
  return step;
}

struct Heads {
  int64_t all, kv, dim;
};

Heads read_heads(const Binder& b) {
  const Heads h{b.integer("heads", 1, limits::HEADS), b.integer("kv_heads", 1, limits::HEADS),
                b.integer("head_dim", 1, limits::DIM)};
  if (h.all % h.kv != 0) b.bad(str(h.all) + " heads do not share " + str(h.kv) + " key/value heads evenly");
  if (b.columns(0) != (h.all + 2 * h.kv) * h.dim)
    b.bad("row is " + str(b.columns(0)) + " wide, expected (heads + 2 kv_heads) * head_dim");
  if (h.dim > HEAD_DIM) fail_with(ES_UNSUPPORTED, "attention heads are too long", h.dim, "at most " + str(HEAD_DIM));
  return h;
}

void choose_kernels(AttentionStep& step, const Kernels& k, KvType type) {
  AttentionStep* const to = &step;
  switch (type) {
    case KvType::f32:
      to->store = k.store_f32, to->attention = k.attention_f32, to->attention_span = k.attention_span_f32;
      break;
    case KvType::f16:
      to->store = k.store_f16, to->attention = k.attention_f16, to->attention_span = k.attention_span_f16;
      break;
    case KvType::int8:
      to->store = k.store_int8, to->attention = k.attention_int8, to->attention_span = k.attention_span_int8;
      break;
    case KvType::int16:
      to->store = k.store_int16, to->attention = k.attention_int16, to->attention_span = nullptr;
      to->numbers = "int16";
      break;
  }
  to->merge = k.merge_f32;
}

void place_attention(Binder& b, AttentionStep& step, const Heads& h, const Binder::Place& place, int64_t window) {
  step.x = b.matrix(0), step.rows = b.rows(0);
  const CacheLayout& layout = place.layout;
  step.cache = place.cache, step.kv_heads = h.kv;
  step.head_bytes = layout.head, step.head_keys = layout.keys, step.sequence_bytes = layout.bytes;
  step.key_bytes = 2 * (layout.head / layout.keys + (layout.scales ? 4 : 0));
  AttentionArgs& a = step.args;
  a = {};
  a.out = b.out(b.rows(0), h.all * h.dim), a.q_stride = b.columns(0), a.out_stride = h.all * h.dim;
  a.heads = h.all / h.kv, a.head_dim = h.dim, a.window = window, a.scale = b.number("scale");
  b.result(a.out);
}

Bound bind_attention(Binder& b) {
  auto step = make<AttentionStep>();
  const Heads h = read_heads(b);
  const int64_t layer = b.integer("layer", -1, limits::LAYERS), group = b.integer("group", 0, limits::CONTEXT);
  if ((layer >= 0) == (group > 0)) b.bad("name a cache layer or a group, not both");
  const KvType type = group ? b.group_type(group, h.kv, h.dim) : b.memory.kv_type;
  choose_kernels(*step, b.kernels, type);
  if (group)
    b.grouped(0, group);
  else
    b.tokens_rows(0), step->partial = b.partial(h.all, h.dim);
  step->group = group;
  const Binder::Place place =
      group ? b.group_cache(b.rows(0).at(b.memory.units) / group, group, h.kv, h.dim, type) : b.cache(layer, h.kv, h.dim);
  place_attention(b, *step, h, place, b.integer("window", 0, INT32_MAX));
  return step;
}

Bound bind_attention_runs(Binder& b) {
  auto step = make<AttentionRuns>();
  const Heads h = read_heads(b);
  step->which = b.run_input(1);
  const int64_t rows = b.rows(0).at(b.memory.units);
  step->room = run_keys(rows);
  const KvType type = b.group_type(step->room, h.kv, h.dim);
  choose_kernels(*step, b.kernels, type);
  step->group = 0;
  place_attention(b, *step, h, b.group_cache(1, step->room, h.kv, h.dim, type), 0);
  step->runs.reserve(static_cast<size_t>(rows));
  return step;
}

Bound bind_gelu(Binder& b) {
  auto step = make<UnaryStep>();
  step->x = b.matrix(0);
  step->unary = b.flag("tanh") ? b.kernels.gelu_tanh_f32 : b.kernels.gelu_f32;
  b.makes_rows(*step, b.rows(0), b.columns(0));
  return step;
}

Bound bind_swiglu(Binder& b) {
  auto step = make<SwigluStep>();
  step->x = b.matrix(0);
  if (b.columns(0) % 2 != 0) b.bad("row of " + str(b.columns(0)) + " does not split into gate and up");
  step->swiglu = b.kernels.swiglu_f32;
  b.makes_rows(*step, b.rows(0), b.columns(0) / 2);
  return step;
}

Bound bind_add(Binder& b) {
  auto step = make<AddStep>();
  const float *x = b.matrix(0), *y = b.matrix(1);
  const int64_t width = b.columns(0);
  if (b.in(0).shape != b.in(1).shape)
    b.bad("shapes differ: " + shape_text(b.in(0).shape) + " and " + shape_text(b.in(1).shape));
  step->add = b.kernels.add_f32, step->rows = b.rows(0);
  step->args = {x, y, b.floats("scale", {width}), b.out(step->rows, width), 0, width, b.number("alpha")};
  b.result(step->args.out);
  return step;
}

Bound bind_scale(Binder& b) {
  auto step = make<Scale>();
  step->x = b.matrix(0), step->rows = b.rows(0), step->width = b.columns(0), step->factor = b.number("factor");
  b.result(step->y = b.out(step->rows, step->width));
  return step;
}

Bound bind_patches(Binder& b) {
  auto step = make<Patches>();
  b.given(0, "pixels");
  const Shape& shape = b.in(0).shape;  // [t, 3, s, s], checked with the graph's inputs
  const int64_t patch = b.integer("patch", 1, limits::IMAGE_SIDE);
  step->channels = shape[1].per, step->height = shape[2].per, step->width = shape[3].per, step->patch = patch;
  if (step->height < patch || step->width < patch) b.bad("pixels hold no patch of " + str(patch));
  step->rows = {shape[0].per * (step->height / patch) * (step->width / patch), shape[0].of};
  b.result(step->out = b.out(step->rows, step->channels * patch * patch));
  return step;
}

Bound bind_concat(Binder& b) {
  auto step = make<Concat>();
  step->x = b.matrix(0), step->width = b.columns(0), step->group = b.integer("group", 1, limits::CONTEXT);
  b.grouped(0, step->group);
  step->prefix = b.floats("prefix", {1, step->width});
  step->rows = {product(b.rows(0).per / step->group, step->group + 1, "rows"), b.rows(0).of};
  b.result(step->out = b.out(step->rows, step->width));
  return step;
}

Bound bind_position(Binder& b) {
  auto step = make<Position>();
  step->x = b.matrix(0), step->width = b.columns(0), step->rows = b.rows(0), step->add = b.kernels.add_f32;
  step->group = b.declared_rows("weight");
  b.grouped(0, step->group);
  step->table = b.floats("weight", {step->group, step->width});
  b.result(step->out = b.out(step->rows, step->width));
  return step;
}

Bound bind_slice(Binder& b) {
  auto step = make<Slice>();
  step->x = b.matrix(0), step->width = b.columns(0), step->group = b.integer("group", 1, limits::CONTEXT);
  b.grouped(0, step->group);
  step->start = b.integer("start", 0, step->group - 1);
  step->rows = {b.rows(0).per / step->group * (step->group - step->start), b.rows(0).of};
  b.result(step->out = b.out(step->rows, step->width));
  return step;
}

Bound bind_pixel_shuffle(Binder& b) {
  auto step = make<PixelShuffle>();
  step->x = b.matrix(0), step->width = b.columns(0);
  step->side = b.integer("side", 1, limits::IMAGE_SIDE), step->factor = b.integer("factor", 1, step->side);
  b.grouped(0, step->side * step->side);
  const int64_t square = step->factor * step->factor, across = (step->side + step->factor - 1) / step->factor;
  step->rows = {product(b.rows(0).per / (step->side * step->side), across * across, "rows"), b.rows(0).of};
  b.result(step->out = b.out(step->rows, product(step->width, square, "row")));
  return step;
}

Bound bind_select(Binder& b) {
  auto step = make<Select>();
  step->x = b.matrix(0), step->width = b.columns(0);
  b.tokens_rows(0), b.given(1, "rows");
  b.result(step->out = b.out(b.rows(1), step->width));
  return step;
}

struct Rule {
  const char* kind;
  size_t inputs;
  std::vector<const char*> roles;  // optional ones end in '?'
  std::vector<const char*> attrs;
  Bound (*bind)(Binder&);
};

const Rule OPS[] = {
    {"embed", 1, {"weight"}, {}, bind_embed},
    {"merge", 3, {}, {"token_id"}, bind_merge},
    {"linear", 1, {"weight", "bias?"}, {}, bind_linear},
    {"head", 1, {"weight", "bias?"}, {}, bind_linear},
    {"rms_norm", 1, {"weight"}, {"eps"}, bind_norm<false>},
    {"layer_norm", 1, {"weight", "bias"}, {"eps"}, bind_norm<true>},
    {"rope", 1, {"inv_freq"}, {"heads", "head_dim", "rotary_dim", "factor"}, bind_rope<false>},
    {"rope_at", 2, {"inv_freq", "axis"}, {"heads", "head_dim", "rotary_dim", "factor"}, bind_rope<true>},
    {"attention", 1, {}, {"heads", "kv_heads", "head_dim", "scale", "layer", "group", "window"}, bind_attention},
    {"attention_runs", 2, {}, {"heads", "kv_heads", "head_dim", "scale"}, bind_attention_runs},
    {"gelu", 1, {}, {"tanh"}, bind_gelu},
    {"swiglu", 1, {}, {}, bind_swiglu},
    {"add", 2, {"scale?"}, {"alpha"}, bind_add},
    {"scale", 1, {}, {"factor"}, bind_scale},
    {"patches", 1, {}, {"patch"}, bind_patches},
    {"concat", 1, {"prefix"}, {"group"}, bind_concat},
    {"position", 1, {"weight"}, {}, bind_position},
    {"slice", 1, {}, {"group", "start"}, bind_slice},
    {"pixel_shuffle", 1, {}, {"side", "factor"}, bind_pixel_shuffle},
    {"select", 2, {}, {}, bind_select},
};

std::shared_ptr<Step> Binder::bind_op() {
  const Rule* rule = std::find_if(std::begin(OPS), std::end(OPS), [&](const Rule& r) { return op_->kind == r.kind; });
  if (rule == std::end(OPS))
    fail_with(ES_UNSUPPORTED, where_ + ": op kind is unknown to this engine", op_->kind, Nothing{},
              "the bundle was made by a newer eyespot");
  where_ = "op '" + shown(op_->output) + "' (" + op_->kind + ")";
  if (op_->inputs.size() != rule->inputs) bad(str(op_->inputs.size()) + " inputs, expected " + str(rule->inputs));
  for (const std::string& name : op_->inputs)
    if (values_.count(name) == 0) bad("input '" + shown(name) + "' is not defined before it");
  size_t roles = 0;
  for (std::string role : rule->roles) {
    const bool optional = role.back() == '?';
    if (optional) role.pop_back();
    if (has(role.c_str()))
      ++roles;
    else if (!optional)
      bad("weight '" + role + "' is missing");
  }
  if (roles != op_->weights.size()) bad("has a weight role it does not know");
  for (const char* attr : rule->attrs)
    if (op_->attrs.count(attr) == 0) bad(std::string("attribute ") + attr + " is missing");
  if (op_->attrs.size() != rule->attrs.size()) bad("has an attribute it does not know");
  return rule->bind(*this);
}

BoundGraph Binder::bind() {
  const Info& info = program.info;
  const std::vector<std::pair<std::string, Value>> text = {{"tokens", {{{1, N}}, true}},
                                                           {"rows", {{{1, O}}, true}},
                                                           {"features", {{{1, F}, {info.hidden_size, FIXED}}, false}},
                                                           {"positions", {{{1, N}, {AXES, FIXED}}, true}}};
  const Dim side{info.tile_size, FIXED};
  const auto given = std::find_if(graph.inputs.begin(), graph.inputs.end(), [](const auto& i) { return i.first == "places"; });
  const Dim rows{given == graph.inputs.end() ? 1 : given->second.shape[0].per, T};  // patches a tile
  const std::vector<std::pair<std::string, Value>> vision = {
      {"pixels", {{{1, T}, {info.tile_channels, FIXED}, side, side}, false}},
      {"places", {{rows, {2, FIXED}}, true}},
      {"windows", {{rows}, true}},
      {"frames", {{rows}, true}}};
  if (given != graph.inputs.end()) bound_.place_rows = rows;
  const auto& expected = g_ == 0 ? text : vision;
  for (size_t i = 0; i < graph.inputs.size(); ++i) {
    const auto& [name, value] = graph.inputs[i];
    const auto want = std::find_if(expected.begin(), expected.end(), [&](const auto& e) { return e.first == name; });
    if (want == expected.end() || want->second.shape != value.shape || want->second.is_int != value.is_int)
      fail("graph '" + graph.name + "': input '" + shown(name) + "' is not as it should be", shape_text(value.shape),
           want == expected.end() ? std::string("tokens, rows, features, positions, pixels, places, windows or frames")
                                  : shape_text(want->second.shape));
    values_[name] = {value.shape, value.is_int, static_cast<int>(i), nullptr};
  }
  for (size_t i = 0; i < (g_ == 0 ? 2 : 1); ++i)
    if (values_.count(expected[i].first) == 0)
      fail("graph '" + graph.name + "' lacks the input '" + expected[i].first + "'");
  bound_.features = values_.count("features") != 0;
  bound_.positions = g_ == 0 && values_.count("positions") != 0;
  if (g_ == 1 && graph.inputs.size() != (bound_.place_rows.per ? 4 : 1))
    fail("graph 'vision': places, windows and frames come together", graph.inputs.size(), "one input or four");
  if ((bound_.features || g_ == 1) && (info.image_token_id < 0 || info.tile_size < 1 || info.tile_tokens < 1))
    fail("info does not describe the model's eyes", Nothing{}, "image_token_id, tile_size and tile_tokens");

  for (const Block& block : graph.blocks)
    for (const Op& op : block.ops) {
      ops_.push_back({&block, &op});
      for (const std::string& input : op.inputs) ++reads_[input];
    }
  ++reads_[graph.output];
  next_ = ops_.begin();

  for (const Block& block : graph.blocks) {
    block_ = &block;
    BoundBlock bound{block.name, {}, nullptr, {}, 0, true};
    for (const Op& op : block.ops) {
      op_ = &op, ++next_;
      where_ = "op '" + shown(op.output) + "'";
      if (values_.count(op.output) != 0) bad("the value is defined twice");
      std::shared_ptr<Step> step = bind_op();
      step->op = &op;
      const bool over_wanted = op.shape[0].of == O;
      if (over_wanted && !bound.steps.empty() && bound.rows.of != O) {  // the block's rest runs in slices
        bound.whole = false;
        bound_.blocks.push_back(std::move(bound));
        bound = {block.name, {}, nullptr, {}, 0, true};
      }
      if (!over_wanted && (!bound_.wanted.empty() || bound.rows.of == O)) bad("stands after an op over wanted rows");
      bound.steps.push_back(std::move(step));
      bound.last = result_, bound.rows = op.shape[0], bound.columns = op.shape[1].per;
      values_[op.output] = {op.shape, false, -1, result_};
    }
    if (!bound.steps.empty()) (bound.rows.of == O ? bound_.wanted : bound_.blocks).push_back(std::move(bound));
  }

  const auto output = values_.find(graph.output);
  const Shape shape =
      g_ == 0 ? Shape{{1, O}, {info.vocab_size, FIXED}} : Shape{{info.tile_tokens, T}, {info.hidden_size, FIXED}};
  if (output == values_.end() || output->second.input >= 0 || output->second.shape != shape)
    fail("graph '" + graph.name + "': output '" + shown(graph.output) + "' is not as it should be",
         output == values_.end() ? std::string("no such value") : shape_text(output->second.shape), shape_text(shape));
  bound_.output = output->second.data;
  check_plan(program, g_);
  return std::move(bound_);
}

}  // namespace

void RopeTable::row(int64_t r, int64_t i, int64_t position) const {
  const float angle = static_cast<float>(position) * inv_freq[i];
  cos[r * half + i] = static_cast<float>(std::cos(static_cast<double>(angle))) * factor;
  sin[r * half + i] = static_cast<float>(std::sin(static_cast<double>(angle))) * factor;
}

void RopeTable::fill(int64_t past, int64_t rows) const {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < half; ++i) row(r, i, past + r);
}

void RopeTable::fill(const int32_t* positions, int64_t rows) const {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < half; ++i) row(r, i, positions[r * axes + axis[static_cast<size_t>(i)]]);
}

BoundGraph bind_graph(const Program& program, size_t g, std::byte* arena, const Kernels& kernels, const Parts& parts,
                      int64_t& weight_bytes) {
  return Binder(program, g, arena, kernels, parts, weight_bytes).bind();
}

}  // namespace eyespot
