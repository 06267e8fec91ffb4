// program.cc: program.json into the records of program.h. Every string that will name a file is checked here.
#include "engine/program.h"

#include <cmath>

#include "engine/fail.h"
#include "engine/scheme.h"
#include "eyespot/limits.h"

namespace eyespot {
namespace {

constexpr int64_t FORMAT = 1;
constexpr int64_t INT_MAX_ = INT32_MAX;

Dim read_dim(const Json& json, const std::string& where) {
  if (!json.is_string()) return {json.integer(where, 0, limits::TENSOR_ELEMENTS), FIXED};
  const std::string& text = json.string(where);
  const std::string_view letters = "notf";
  const size_t symbol = text.empty() ? letters.npos : letters.find(text.back());
  Dim dim{1, static_cast<Symbol>(symbol + 1)};
  if (symbol != letters.npos && text.size() == 1) return dim;
  const std::string_view count = std::string_view(text).substr(0, text.size() < 2 ? 0 : text.size() - 2);
  if (symbol == letters.npos || text[text.size() - 2] != '*' || count.empty() || count.size() > 7 ||
      count.find_first_not_of("0123456789") != count.npos)
    fail(where + ": dimension is malformed", text, "'n', 'o', 't', 'f' or '<int>*' before one");
  dim.per = std::stoll(std::string(count));
  if (dim.per == 0) fail(where + ": dimension is zero", text);
  return dim;
}

Shape read_shape(const Json& json, const std::string& where) {
  const Json::Array& items = json.array(where);
  if (items.empty() || static_cast<int64_t>(items.size()) > limits::RANK) fail(where + ": bad rank", items.size());
  Shape shape;
  for (const Json& item : items) shape.push_back(read_dim(item, where));
  return shape;
}

const std::string& read_name(const Json& json, const std::string& where) {
  const std::string& name = json.string(where);
  if (name.empty() || static_cast<int64_t>(name.size()) > limits::NAME_CHARS || name.find('\0') != name.npos)
    fail(where + ": bad name", name);
  return name;
}

// A part names a file of the bundle: plain characters, so that no path leads out of the directory.
const std::string& read_part(const Json& json, const std::string& where) {
  const std::string& part = read_name(json, where);
  for (char c : part)
    if (!(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z') && !(c >= '0' && c <= '9') && c != '_' && c != '.' &&
        c != '-')
      fail(where + ": a part's name is not a plain file name", part);
  if (part.front() == '.') fail(where + ": a part's name starts with a dot", part);
  return part;
}

Attr read_attr(const Json& json, const std::string& where) {
  if (const bool* value = std::get_if<bool>(&json.value())) return *value;
  if (const int64_t* value = std::get_if<int64_t>(&json.value())) return *value;
  if (const double* value = std::get_if<double>(&json.value())) return *value;
  return json.string(where);
}

Op read_op(const Json& json, const std::string& block) {
  Op op;
  op.output = read_name(json.at("out", block), block + ": op's out");
  const std::string where = "op '" + shown(op.output) + "'";
  op.kind = json.at("kind", where).string(where + ": kind");
  op.shape = read_shape(json.at("shape", where), where + ": shape");
  for (const Json& input : json.at("in", where).array(where + ": in"))
    op.inputs.push_back(read_name(input, where + ": in"));
  for (const auto& [role, name] : json.at("weights", where).object(where + ": weights"))
    op.weights[role] = read_name(name, where + ": weights");
  for (const auto& [key, value] : json.at("attrs", where).object(where + ": attrs"))
    op.attrs[key] = read_attr(value, where + ": attribute " + shown(key));
  return op;
}

Graph read_graph(const std::string& name, const Json& json, int64_t& ops) {
  const std::string where = "graph '" + name + "'";
  Graph graph;
  graph.name = name;
  const Json::Array& inputs = json.at("inputs", where).array(where + ": inputs");
  if (static_cast<int64_t>(inputs.size()) > limits::INPUTS)
    fail(where + ": too many inputs", inputs.size(), "at most " + str(limits::INPUTS));
  for (const Json& item : inputs) {
    const std::string& input = read_name(item.at("name", where), where + ": input");
    const std::string& dtype = item.at("dtype", where).string(where + ": dtype");
    if (dtype != "i32" && dtype != "f32") fail(where + ": unknown dtype", dtype, "i32 or f32");
    for (const auto& other : graph.inputs)
      if (other.first == input) fail(where + ": input is given twice", input);
    graph.inputs.push_back({input, {read_shape(item.at("shape", where), where + ": shape"), dtype == "i32"}});
  }
  const Json::Array& outputs = json.at("outputs", where).array(where + ": outputs");
  if (outputs.size() != 1) fail(where + ": outputs", outputs.size(), "one");
  graph.output = read_name(outputs[0], where + ": output");
  for (const Json& item : json.at("blocks", where).array(where + ": blocks")) {
    Block block;
    block.name = read_name(item.at("name", where), where + ": block");
    const std::string block_where = "block '" + shown(block.name) + "'";
    block.part = read_part(item.at("part", block_where), block_where);
    for (const Json& op : item.at("ops", block_where).array(block_where + ": ops")) {
      if (++ops > limits::OPS) fail("program is too long", Nothing{}, "at most " + str(limits::OPS) + " ops");
      block.ops.push_back(read_op(op, block_where));
    }
    graph.blocks.push_back(std::move(block));
  }
  return graph;
}

Info read_info(const Json& json) {
  const std::string w = "info";
  auto integer = [&](const char* key, int64_t low, int64_t high) {
    return json.at(key, w).integer(w + "." + key, low, high);
  };
  Info info;
  info.vocab_size = integer("vocab_size", 1, limits::VOCAB);
  info.hidden_size = integer("hidden_size", 1, limits::DIM);
  info.max_position = integer("max_position", 1, INT_MAX_);
  info.image_token_id = integer("image_token_id", -1, info.vocab_size - 1);
  info.tile_size = integer("tile_size", 0, limits::IMAGE_SIDE);
  info.tile_tokens = integer("tile_tokens", 0, limits::CONTEXT);
  info.tile_channels = json.find("tile_channels") ? integer("tile_channels", 1, 64) : 3;
  return info;
}

Span read_span(const Json& json, const std::string& where, int64_t arena) {
  const Json::Array& pair = json.array(where);
  if (pair.size() != 2) fail(where + ": bad span", Nothing{}, "[offset, bytes]");
  Span span;
  span.offset = pair[0].integer(where + ": offset", 0, arena);
  span.bytes = pair[1].integer(where + ": bytes", 0, arena - span.offset);
  if (span.offset % 64 != 0) fail(where + ": offset is not aligned", span.offset, "a multiple of 64");
  return span;
}

Memory read_memory(const Json& json) {
  const std::string w = "memory";
  Memory memory;
  const Json& units = json.at("units", w);
  memory.units[FIXED] = 1;
  memory.units[N] = units.at("n", w).integer("memory.units.n", 1, limits::CHUNK_ROWS);
  memory.units[O] = units.at("o", w).integer("memory.units.o", 1, limits::CHUNK_ROWS);
  memory.units[T] = units.at("t", w).integer("memory.units.t", 1, limits::UNITS);
  memory.units[F] = 0;
  memory.ctx = json.at("ctx", w).integer("memory.ctx", 1, limits::CONTEXT);
  const int64_t arena = memory.arena_bytes =
      json.at("arena_bytes", w).integer("memory.arena_bytes", 1, limits::ARENA_BYTES);

  const Json& cache = json.at("kv_cache", w);
  const std::string& type = cache.at("type", "memory.kv_cache").string("memory.kv_cache.type");
  if (type == "f32")
    memory.kv_type = KvType::f32;
  else if (type == "f16")
    memory.kv_type = KvType::f16;
  else if (type == "int8")
    memory.kv_type = KvType::int8;
  else
    fail_with(ES_UNSUPPORTED, "memory.kv_cache.type is unknown", type, "f32, f16 or int8");
  const Json::Array& layers = cache.at("layers", "memory.kv_cache").array("memory.kv_cache.layers");
  if (static_cast<int64_t>(layers.size()) > limits::LAYERS) fail("memory.kv_cache: too many layers", layers.size());
  for (const Json& item : layers) {
    const std::string where = "memory.kv_cache.layers[" + str(memory.kv_layers.size()) + "]";
    KvLayer layer;
    layer.span.offset = item.at("offset", where).integer(where + ".offset", 0, arena);
    layer.span.bytes = item.at("bytes", where).integer(where + ".bytes", 0, arena - layer.span.offset);
    if (layer.span.offset % 64 != 0) fail(where + ".offset is not aligned", layer.span.offset, "a multiple of 64");
    layer.kv_heads = item.at("kv_heads", where).integer(where + ".kv_heads", 1, limits::HEADS);
    layer.head_dim = item.at("head_dim", where).integer(where + ".head_dim", 1, limits::DIM);
    memory.kv_layers.push_back(layer);
  }
  const char* const NAMES[] = {"text", "vision"};
  for (int g = 0; g < 2; ++g) {
    if (const Json* values = json.at("values", w).find(NAMES[g]))
      for (const auto& [name, span] : values->object("memory.values"))
        memory.values[g][name] = read_span(span, "memory.values '" + shown(name) + "'", arena);
    if (const Json* span = json.at("rope", w).find(NAMES[g]))
      memory.rope[g] = read_span(*span, std::string("memory.rope.") + NAMES[g], arena);
  }
  memory.scratch = read_span(json.at("scratch", w), "memory.scratch", arena);
  memory.group_kv = read_span(json.at("group_kv", w), "memory.group_kv", arena);
  memory.partial = read_span(json.at("partial", w), "memory.partial", arena);
  return memory;
}

}  // namespace

Program read_program(const Json& root) {
  const std::string w = "program.json";
  if (const int64_t format = root.at("format", w).integer("program.json: format", 0, INT_MAX_); format != FORMAT)
    fail_with(ES_UNSUPPORTED, "program.json: format", format, FORMAT,
              "the bundle was made by another version of eyespot");
  if (const std::string& layout = root.at("layout", w).string("program.json: layout"); layout != LAYOUT)
    fail_with(ES_UNSUPPORTED, "program.json: layout", layout, LAYOUT,
              "the bundle was packed for another target: compile it for this one");
  Program program;
  program.info = read_info(root.at("info", w));
  for (const auto& [name, values] : root.at("constants", w).object("constants")) {
    std::vector<float>& constant = program.constants[name];
    for (const Json& value : values.array("constant '" + shown(name) + "'")) {
      constant.push_back(static_cast<float>(value.number("constant '" + shown(name) + "'")));
      if (!std::isfinite(constant.back())) fail("constant '" + shown(name) + "' is not finite");
    }
  }
  for (const auto& [name, item] : root.at("weights", w).object("weights")) {
    const std::string where = "weight '" + shown(name) + "'";
    Weight& weight = program.weights[name];
    const Json::Array& shape = item.at("shape", where).array(where + ": shape");
    if (shape.empty() || static_cast<int64_t>(shape.size()) > limits::RANK) fail(where + ": bad rank", shape.size());
    for (const Json& size : shape) weight.shape.push_back(size.integer(where + ": shape", 1, limits::VOCAB));
    weight.part = read_part(item.at("part", where), where);
    weight.scheme = item.at("scheme", where).string(where + ": scheme");
  }
  const Json& graphs = root.at("graphs", w);
  int64_t ops = 0;
  for (const auto& [name, json] : graphs.object("graphs"))
    if (name != "text" && name != "vision") fail_with(ES_UNSUPPORTED, "graph is unknown", name, "text or vision");
  program.graphs.push_back(read_graph("text", graphs.at("text", "graphs"), ops));
  if (const Json* vision = graphs.find("vision")) program.graphs.push_back(read_graph("vision", *vision, ops));
  program.memory = read_memory(root.at("memory", w));
  return program;
}

const char* kv_type_name(KvType type) {
  switch (type) {
    case KvType::f32: return "f32";
    case KvType::f16: return "f16";
    case KvType::int8: return "int8";
    case KvType::int16: return "int16";
  }
  return "";
}

std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += i ? ", " : "";
    if (shape[i].of == FIXED)
      text += std::to_string(shape[i].per);
    else
      text += (shape[i].per == 1 ? "" : std::to_string(shape[i].per) + "*") + " notf"[shape[i].of];
  }
  return text + "]";
}

}  // namespace eyespot
