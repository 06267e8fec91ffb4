// engine.cc: the C ABI: opens a bundle and walks its graphs chunk by chunk. Knows ops only as steps to call, and no
// model.
#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/fail.h"
#include "engine/file.h"
#include "engine/ops.h"
#include "engine/plan.h"
#include "engine/pool.h"
#include "engine/program.h"
#include "engine/top.h"
#include "eyespot.h"
#include "eyespot/limits.h"

namespace eyespot {
namespace {

thread_local std::string last_error;  // of this thread, as eyespot.h promises; no engine reads it

// Runs body and turns what it throws into a status and a line. Nothing may cross a C function.
template <class Body>
int guarded(const Body& body) noexcept {
  try {
    last_error.clear();
    body();
    return ES_OK;
  } catch (const Failure& failure) {
    last_error = failure.message;
    return failure.status;
  } catch (const std::bad_alloc&) {
    last_error = "out of memory";
  } catch (const std::exception& error) {
    last_error = std::string("internal error: ") + error.what();
  }
  return ES_FAILED;
}

bool all_finite(const float* values, int64_t n) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    bad |= (bits & 0x7F800000) == 0x7F800000;
  }
  return bad == 0;
}

// The manifest's word on a file's size: a part that was cut off or swapped fails before its header is read.
class Manifest {
 public:
  static constexpr int64_t FORMAT = 2;
  explicit Manifest(const std::string& dir) {
    const Mapping map = Mapping::file(dir + "/manifest.json", "manifest.json");
    const Json root = Json::parse(map.text(), "manifest.json");
    const std::string w = "manifest.json";
    if (const int64_t format = root.at("format", w).integer("manifest.json: format", 0, INT32_MAX); format != FORMAT)
      fail_with(ES_UNSUPPORTED, "manifest.json: format", format, FORMAT,
                format < FORMAT ? "an older eyespot made the bundle: compile it again" : "a newer eyespot made it");
    for (const auto& [name, file] : root.at("files", w).object("manifest.json: files"))
      bytes_[name] = file.at("bytes", w).integer("manifest.json: bytes of '" + shown(name) + "'", 0, INT64_MAX);
  }
  void check(const std::string& name, int64_t bytes) const {
    const auto found = bytes_.find(name);
    if (found == bytes_.end()) fail("manifest.json does not list " + shown(name));
    if (found->second != bytes)
      fail(shown(name) + " has another size than manifest.json says", bytes, found->second,
           "the file is cut off or was replaced");
  }

 private:
  std::unordered_map<std::string, int64_t> bytes_;
};

Program load_program(const std::string& dir, const Manifest& manifest) {
  const Mapping map = Mapping::file(dir + "/program.json", "program.json");
  manifest.check("program.json", map.size());
  return read_program(Json::parse(map.text(), "program.json"));
}

int thread_count(int32_t wanted) {
  if (wanted < 0 || wanted > limits::THREADS)
    fail_with(ES_USAGE, "threads", wanted, "0 (all) to " + str(limits::THREADS));
  if (wanted != 0) return wanted;
  if (const char* text = std::getenv("EYESPOT_THREADS"); text != nullptr && *text != 0) {
    int count = 0;
    const char* end = text + std::strlen(text);
    const auto [stop, fault] = std::from_chars(text, end, count);
    if (fault != std::errc() || stop != end || count < 1 || count > limits::THREADS)
      fail_with(ES_USAGE, "EYESPOT_THREADS", text, "1 to " + str(limits::THREADS));
    return count;
  }
  return static_cast<int>(std::min<int64_t>(usable_processors(), limits::THREADS));
}

Isa isa_for(const char* wanted) {
  Isa isa = Isa::scalar;
  std::string fault;
  if (!choose_isa(wanted, isa, fault)) throw Failure{ES_USAGE, fault};
  return isa;
}

class Engine {
 public:
  Engine(const std::string& dir, const es_options& options)
      : isa_(isa_for(options.isa)), threads_(thread_count(options.threads)), manifest_(dir),
        program_(load_program(dir, manifest_)), pool_(threads_) {
    const Memory& memory = program_.memory;
    if (options.ctx_size < 0 || options.ctx_size > memory.ctx)
      fail_with(ES_USAGE, "ctx_size", options.ctx_size,
                "1 to " + str(memory.ctx) + ", what the bundle was compiled for");
    ctx_ = options.ctx_size ? options.ctx_size : memory.ctx;
    arena_ = Mapping::memory(memory.arena_bytes, "the arena");
    const Kernels& kernels = kernels_for(isa_);
    const Parts parts = [&](const std::string& part) -> const TensorFile& {
      std::unique_ptr<TensorFile>& file = files_[part];
      if (!file) {
        const std::string name = part + ".safetensors";
        file = std::make_unique<TensorFile>(dir + "/" + name, name);
        manifest_.check(name, file->size());
      }
      return *file;
    };
    for (size_t g = 0; g < program_.graphs.size(); ++g)
      graphs_.push_back(bind_graph(program_, g, arena_.data(), kernels, parts, weight_bytes_));
    for (const KvLayer& layer : memory.kv_layers)
      kv_bytes_ += cache_layout(memory.kv_type, layer.kv_heads, layer.head_dim, memory.ctx).bytes;
    wanted_.resize(static_cast<size_t>(memory.units[O]));
    if (graphs_[0].positions) positions_.resize(static_cast<size_t>(ctx_ * AXES));
    for (size_t g = 0; g < graphs_.size(); ++g)
      for (auto* blocks : {&graphs_[g].blocks, &graphs_[g].wanted})
        for (BoundBlock& block : *blocks)
          for (const auto& step : block.steps) {
            step->number = costs_.size();
            costs_.push_back({program_.graphs[g].name.c_str(), block.name.c_str(), step->op->output.c_str(),
                              step->op->kind.c_str(), step->numbers, 0, 0, 0, 0});
          }
  }

  void info(es_info& out) const {
    const Info& info = program_.info;
    out = {};
    out.vocab_size = static_cast<int32_t>(info.vocab_size), out.hidden_size = static_cast<int32_t>(info.hidden_size);
    out.ctx_size = static_cast<int32_t>(ctx_), out.prefill_chunk = static_cast<int32_t>(program_.memory.units[N]);
    out.threads = pool_.threads(), out.processors = usable_processors();
    out.image_token_id = eyes() ? static_cast<int32_t>(info.image_token_id) : -1;
    if (graphs_.size() == 2) {
      out.tile_size = static_cast<int32_t>(info.tile_size), out.tile_tokens = static_cast<int32_t>(info.tile_tokens);
      out.tile_batch = static_cast<int32_t>(program_.memory.units[T]);
      out.tile_channels = static_cast<int32_t>(info.tile_channels);
      out.tile_patches = static_cast<int32_t>(graphs_[1].place_rows.per);
    }
    out.axes = static_cast<int32_t>(graphs_[0].positions ? AXES : 1);
    out.arena_bytes = program_.memory.arena_bytes, out.weight_bytes = weight_bytes_, out.kv_bytes = kv_bytes_;
    std::strncpy(out.isa, isa_name(isa_), sizeof out.isa - 1);
    std::strncpy(out.kv_type, kv_type_name(program_.memory.kv_type), sizeof out.kv_type - 1);
  }

  void encode(const float* pixels, int32_t tiles, float* features) {
    check_eyes(pixels, tiles, features, limits::TILES, false);
    const Info& info = program_.info;
    const int64_t tile_pixels = info.tile_channels * info.tile_size * info.tile_size,
                  tile_features = info.tile_tokens * info.hidden_size;
    for (int64_t done = 0, batch; done < tiles; done += batch) {
      batch = std::min<int64_t>(program_.memory.units[T], tiles - done);
      const Run run{pool_, {1, 0, 0, batch, 0}, 0, nullptr, nullptr, nullptr, pixels + done * tile_pixels};
      walk(1, graphs_[1].blocks, run);
      std::memcpy(features + done * tile_features, graphs_[1].output,
                  static_cast<size_t>(batch * tile_features) * sizeof(float));
    }
  }

  void encode_at(const float* pixels, int32_t tiles, const int32_t* places, const int32_t* windows, const int32_t* frames,
                 float* features) {
    check_eyes(pixels, tiles, features, program_.memory.units[T], true);
    const Info& info = program_.info;
    const BoundGraph& vision = graphs_[1];
    const Counts counts{1, 0, 0, tiles, 0};
    const int64_t rows = vision.place_rows.at(counts);
    if (places == nullptr || windows == nullptr || frames == nullptr)
      fail_with(ES_USAGE, "patches without their places, windows and frames");
    for (int64_t i = 0; i < 2 * rows; ++i)
      if (places[i] < 0 || places[i] > limits::CONTEXT)
        fail_with(ES_USAGE, "place " + str(i), places[i], "0 to " + str(limits::CONTEXT));
    for (const int32_t* runs : {windows, frames})
      for (int64_t i = 1; i < rows; ++i)
        if (runs[i] < runs[i - 1]) fail_with(ES_USAGE, "windows and frames of patches must not fall");
    Run run{pool_, counts, 0, nullptr, nullptr, nullptr, pixels};
    run.positions = places, run.runs[0] = windows, run.runs[1] = frames;
    if (!vision.rope.axis.empty()) vision.rope.fill(places, rows);
    walk(1, vision.blocks, run);
    std::memcpy(features, vision.output, static_cast<size_t>(tiles * info.tile_tokens * info.hidden_size) * sizeof(float));
  }

  void release_eyes() const {
    if (program_.graphs.size() < 2) return;
    for (const Block& block : program_.graphs[1].blocks)
      if (const auto file = files_.find(block.part); file != files_.end()) file->second->release();
  }

  void prefill(const int32_t* tokens, int32_t n, const int32_t* positions, const float* features, int32_t feature_rows,
               int32_t want, float* logits) {
    check_surroundings();
    check_prefill(tokens, n, features, feature_rows, want);
    place(positions, n);
    last_row_ = nullptr;
    const Info& info = program_.info;
    const BoundGraph& text = graphs_[0];
    for (int64_t done = 0, chunk; done < n; done += chunk) {
      chunk = std::min<int64_t>(program_.memory.units[N], n - done);
      const int64_t images = eyes() ? std::count(tokens + done, tokens + done + chunk, info.image_token_id) : 0;
      Run run{pool_, {1, chunk, 0, 0, images}, past_, tokens + done, wanted_.data(), features, nullptr};
      if (!text.rope.axis.empty())
        text.rope.fill(run.positions = positions_.data() + past_ * AXES, chunk);
      else if (text.rope.inv_freq != nullptr)
        text.rope.fill(past_, chunk);
      walk(0, text.blocks, run);
      const int64_t first_wanted = std::max<int64_t>(done, n - want);
      for (int64_t row = first_wanted; row < done + chunk; row += run.counts[O]) {
        run.counts[O] = std::min<int64_t>(program_.memory.units[O], done + chunk - row);
        for (int64_t i = 0; i < run.counts[O]; ++i)
          wanted_[static_cast<size_t>(i)] = static_cast<int32_t>(row + i - done);
        walk(0, text.wanted, run);
        check_finite(run.counts[O]);
        if (logits != nullptr)
          std::memcpy(logits + (row - (n - want)) * info.vocab_size, text.output,
                      static_cast<size_t>(run.counts[O] * info.vocab_size) * sizeof(float));
      }
      past_ += chunk;
      if (features != nullptr) features += images * info.hidden_size;
      if (want > 0 && done + chunk == n) last_row_ = text.output + (run.counts[O] - 1) * info.vocab_size;
    }
  }

  void top(int32_t k, int32_t* ids, float* logits) {
    check_last_row();
    const int64_t vocab = program_.info.vocab_size, most = std::min(limits::TOP, vocab);
    if (k < 1 || k > most || ids == nullptr || logits == nullptr)
      fail_with(ES_USAGE, "top", k, "1 to " + str(most) + " with room for them");
    best_.assign(static_cast<size_t>(k * pool_.threads()), NOBODY);
    pool_.run(vocab, 1, COLUMNS, [&](int64_t first, int64_t last, const Member& member) {
      top_of(last_row_, first, last, {best_.data() + member.index * k, static_cast<size_t>(k)});
    });
    std::partial_sort(best_.begin(), best_.begin() + k, best_.end(), better);
    for (int32_t i = 0; i < k; ++i) {
      ids[i] = best_[static_cast<size_t>(i)].id;
      logits[i] = best_[static_cast<size_t>(i)].logit;
    }
  }

  void last_logits(float* logits) const {
    check_last_row();
    if (logits == nullptr) fail_with(ES_USAGE, "no room for the logits");
    std::memcpy(logits, last_row_, static_cast<size_t>(program_.info.vocab_size) * sizeof(float));
  }

  void profile(bool on) {
    profiled_ = on;
    if (on)
      for (es_op_cost& cost : costs_) cost.calls = cost.nanoseconds = cost.bytes = cost.multiply_adds = 0;
  }

  int32_t profile_read(es_op_cost* out, int32_t room) const {
    const auto count = static_cast<int32_t>(costs_.size());
    if (out != nullptr) std::copy_n(costs_.begin(), std::clamp(room, 0, count), out);
    return count;
  }

  int32_t past() const { return static_cast<int32_t>(past_); }

  void truncate(int32_t n) {
    if (n < 0 || n > past_) fail_with(ES_USAGE, "truncate", n, "0 to " + str(past_) + " tokens");
    if (n < past_) last_row_ = nullptr;  // it belongs to a token that is gone
    past_ = n;
  }

  // Calls piece(bytes of the arena or of positions_, their number) for all that the first n tokens have left, in one order.
  template <class Piece>
  void state(int64_t n, const Piece& piece) {
    const Memory& memory = program_.memory;
    for (const KvLayer& layer : memory.kv_layers) {
      const CacheLayout layout = cache_layout(memory.kv_type, layer.kv_heads, layer.head_dim, memory.ctx);
      const int64_t key = layout.head / layout.keys, blocks = round_up(n, PANEL);
      std::byte* k = arena_.data() + layer.span.offset;
      for (int64_t h = 0; h < layer.kv_heads; ++h) {
        piece(k + h * layout.head, blocks * key);
        piece(k + layout.numbers + h * layout.head, n * key);
        if (layout.scales == 0) continue;
        std::byte* scales = k + 2 * layout.numbers + h * layout.keys * 4;
        piece(scales, n * 4);
        piece(scales + layout.scales, n * 4);
      }
    }
    if (graphs_[0].positions) piece(reinterpret_cast<std::byte*>(positions_.data()), n * AXES * 4);
  }

  int64_t state_bytes(int32_t n) {
    int64_t bytes = 0;
    state(n, [&](std::byte*, int64_t size) { bytes += size; });
    return bytes;
  }

  void save(int32_t n, void* out) {
    check_surroundings();
    if (n < 0 || n > past_ || out == nullptr) fail_with(ES_USAGE, "tokens to save", n, "0 to " + str(past_));
    auto* to = static_cast<std::byte*>(out);
    state(n, [&](std::byte* from, int64_t size) {
      std::memcpy(to, from, static_cast<size_t>(size));
      to += size;
    });
  }

  void load(int32_t n, const void* in) {
    check_surroundings();
    if (n < 0 || n > ctx_ || in == nullptr) fail_with(ES_USAGE, "tokens to load", n, "0 to " + str(ctx_));
    last_row_ = nullptr, past_ = 0;
    const auto* from = static_cast<const std::byte*>(in);
    state(n, [&](std::byte* to, int64_t size) {
      std::memcpy(to, from, static_cast<size_t>(size));
      from += size;
    });
    if (graphs_[0].positions) check_positions(positions_.data(), n);
    past_ = n;
  }

  void cancel(bool on) { cancelled_.store(on, std::memory_order_relaxed); }

  void trace(es_trace_fn callback, void* user) { trace_ = callback, trace_user_ = user; }

 private:
  bool eyes() const { return graphs_[0].features; }

  void check_eyes(const float* pixels, int32_t tiles, const float* features, int64_t most, bool at) {
    check_surroundings();
    if (graphs_.size() < 2) fail_with(ES_USAGE, "this model has no eyes: it cannot encode pictures");
    if (at != (graphs_[1].place_rows.per != 0))
      fail_with(ES_USAGE, at ? "this model's tiles have no places" : "this model's patches have places: es_encode_at");
    if (tiles < 1 || tiles > most || pixels == nullptr || features == nullptr)
      fail_with(ES_USAGE, "tiles", tiles, "1 to " + str(most) + " with pixels and room for their features");
    last_row_ = nullptr;
  }

  // Writes down the positions of n new tokens: those given, or on from the largest so far.
  void place(const int32_t* positions, int32_t n) {
    if (!graphs_[0].positions) {
      if (positions != nullptr) fail_with(ES_USAGE, "this model's tokens stand one after the other: it takes no positions");
      return;
    }
    int32_t* const past = positions_.data();
    int32_t* const to = past + past_ * AXES;
    if (positions != nullptr) {
      check_positions(positions, n);
      std::copy_n(positions, n * AXES, to);
      return;
    }
    const int32_t next = past_ == 0 ? 0 : 1 + *std::max_element(past, to);
    for (int64_t i = 0; i < n * AXES; ++i) to[i] = next + static_cast<int32_t>(i / AXES);
  }

  static void check_positions(const int32_t* positions, int32_t n) {
    for (int64_t i = 0; i < n * AXES; ++i)
      if (positions[i] < 0 || positions[i] > limits::CONTEXT)
        fail_with(ES_USAGE, "position " + str(i), positions[i], "0 to " + str(limits::CONTEXT));
  }

  // What others may have done since the last call, and what would hang or kill the process if it went unnoticed.
  void check_surroundings() const {
    check_process();
    for (const auto& [part, file] : files_) file->check_length();
  }

  void check_prefill(const int32_t* tokens, int32_t n, const float* features, int32_t feature_rows, int32_t want) const {
    const Info& info = program_.info;
    if (n < 1 || tokens == nullptr) fail_with(ES_USAGE, "tokens", n, "at least one");
    if (want < 0 || want > n) fail_with(ES_USAGE, "want", want, "0 to " + str(n) + " rows");
    if (n > ctx_ - past_)
      fail_with(ES_USAGE, "the tokens do not fit the context", str(past_) + " cached + " + str(n) + " new",
                "at most " + str(ctx_));
    int64_t images = 0;
    for (int32_t i = 0; i < n; ++i) {
      if (tokens[i] < 0 || tokens[i] >= info.vocab_size)
        fail_with(ES_USAGE, "token " + str(i) + " is outside the vocabulary", tokens[i],
                  "0 to " + str(info.vocab_size - 1));
      images += eyes() && tokens[i] == info.image_token_id;
    }
    if (feature_rows != images || (images > 0 && features == nullptr))
      fail_with(ES_USAGE, "image tokens and feature rows disagree", str(feature_rows) + " rows",
                str(images) + " image tokens");
  }

  void check_process() const {
    if (pool_.forked())
      fail_with(ES_USAGE, "the engine was opened in another process", Nothing{}, Nothing{},
                "a fork(): threads do not follow into the child, which must open the bundle itself");
  }

  void check_last_row() const {
    check_process();
    if (last_row_ == nullptr)
      fail_with(ES_USAGE, "there are no logits", Nothing{}, Nothing{},
                "the last call wanted none, failed, or encoded a picture");
  }

  // NaN or Inf in the logits just made is an error, never a token. Each member looks at about the
  // columns it has made.
  void check_finite(int64_t rows) const {
    const int64_t vocab = program_.info.vocab_size;
    std::atomic<bool> fault{false};
    pool_.run(vocab, 1, COLUMNS, [&](int64_t first, int64_t last, const Member&) {
      for (int64_t row = 0; row < rows; ++row)
        if (!all_finite(graphs_[0].output + row * vocab + first, last - first))
          fault.store(true, std::memory_order_relaxed);
    });
    if (fault)
      fail("logits are not finite", "NaN or Inf", Nothing{}, "the weights or the input overflow float32");
  }

  void walk(size_t g, const std::vector<BoundBlock>& blocks, const Run& run) {
    for (const BoundBlock& block : blocks) {
      if (cancelled_.exchange(false, std::memory_order_relaxed)) throw Failure{ES_CANCELLED, "cancelled"};
      if (profiled_)
        for (const auto& step : block.steps) timed(*step, run);
      else
        for (const auto& step : block.steps) step->call(*step, run);
      if (trace_ != nullptr && block.whole)
        trace_(trace_user_, program_.graphs[g].name.c_str(), block.name.c_str(), block.last,
               static_cast<int32_t>(block.rows.at(run.counts)), static_cast<int32_t>(block.columns));
    }
  }

  void timed(const Step& step, const Run& run) {
    const auto start = std::chrono::steady_clock::now();
    step.call(step, run);
    const auto time = std::chrono::steady_clock::now() - start;
    es_op_cost& cost = costs_[step.number];
    cost.calls += 1;
    cost.nanoseconds += std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
    if (step.cost == nullptr) return;
    const Cost moved = step.cost(step, run);
    cost.bytes += moved.bytes, cost.multiply_adds += moved.multiply_adds;
  }

  static constexpr int64_t COLUMNS = 8192;  // of logits that a thread looks at at least
  const Isa isa_;
  const int threads_;
  const Manifest manifest_;
  const Program program_;
  const Pool pool_;
  std::unordered_map<std::string, std::unique_ptr<TensorFile>> files_;
  Mapping arena_;
  std::vector<BoundGraph> graphs_;
  std::vector<int32_t> wanted_;
  std::vector<int32_t> positions_;  // [ctx][AXES] of the tokens in the sequence, where the model takes them
  std::vector<Candidate> best_;     // of es_top, k a member
  std::vector<es_op_cost> costs_;   // by Step::number
  bool profiled_ = false;
  const float* last_row_ = nullptr;  // the last row of logits, while it stands in the arena
  int64_t ctx_ = 0, past_ = 0, weight_bytes_ = 0, kv_bytes_ = 0;
  std::atomic<bool> cancelled_{false};  // asked for, and not yet met by a call
  static_assert(std::atomic<bool>::is_always_lock_free, "es_cancel must be safe in a signal handler");
  es_trace_fn trace_ = nullptr;
  void* trace_user_ = nullptr;
};

}  // namespace
}  // namespace eyespot

struct es_engine {
  eyespot::Engine engine;
};

using eyespot::guarded;

extern "C" {

int es_open(const char* dir, const es_options* options, es_engine** out) {
  return guarded([&] {
    if (out == nullptr) eyespot::fail_with(ES_USAGE, "es_open needs a place for the engine");
    *out = nullptr;
    if (dir == nullptr || *dir == 0) eyespot::fail_with(ES_USAGE, "es_open needs a bundle's directory");
    *out = new es_engine{eyespot::Engine(dir, options ? *options : es_options{})};
  });
}

void es_close(es_engine* engine) { delete engine; }

int es_get_info(const es_engine* engine, es_info* out) {
  return guarded([&] { engine->engine.info(*out); });
}

int es_encode(es_engine* engine, const float* pixels, int32_t tiles, float* features) {
  return guarded([&] { engine->engine.encode(pixels, tiles, features); });
}

int es_encode_at(es_engine* engine, const float* pixels, int32_t tiles, const int32_t* places, const int32_t* windows,
                 const int32_t* frames, float* features) {
  return guarded([&] { engine->engine.encode_at(pixels, tiles, places, windows, frames, features); });
}

int es_release_eyes(es_engine* engine) {
  return guarded([&] { engine->engine.release_eyes(); });
}

int es_prefill(es_engine* engine, const int32_t* tokens, int32_t n, const float* features, int32_t feature_rows,
               int32_t want, float* logits) {
  return guarded([&] { engine->engine.prefill(tokens, n, nullptr, features, feature_rows, want, logits); });
}

int es_prefill_at(es_engine* engine, const int32_t* tokens, int32_t n, const int32_t* positions, const float* features,
                  int32_t feature_rows, int32_t want, float* logits) {
  return guarded([&] { engine->engine.prefill(tokens, n, positions, features, feature_rows, want, logits); });
}

int es_decode(es_engine* engine, int32_t token, float* logits) {
  return guarded([&] { engine->engine.prefill(&token, 1, nullptr, nullptr, 0, 1, logits); });
}

int32_t es_past(const es_engine* engine) { return engine->engine.past(); }

int es_truncate(es_engine* engine, int32_t n) {
  return guarded([&] { engine->engine.truncate(n); });
}

int64_t es_state_bytes(const es_engine* engine, int32_t n) {
  auto& inner = const_cast<es_engine*>(engine)->engine;  // it only looks
  return n < 0 ? 0 : inner.state_bytes(n);
}

int es_state_save(es_engine* engine, int32_t n, void* out) {
  return guarded([&] { engine->engine.save(n, out); });
}

int es_state_load(es_engine* engine, int32_t n, const void* in) {
  return guarded([&] { engine->engine.load(n, in); });
}

void es_cancel(es_engine* engine, int32_t on) { engine->engine.cancel(on != 0); }

void es_trace(es_engine* engine, es_trace_fn callback, void* user) { engine->engine.trace(callback, user); }

int es_top(es_engine* engine, int32_t k, int32_t* ids, float* logits) {
  return guarded([&] { engine->engine.top(k, ids, logits); });
}

int es_logits(const es_engine* engine, float* logits) {
  return guarded([&] { engine->engine.last_logits(logits); });
}

int es_profile(es_engine* engine, int32_t on) {
  return guarded([&] { engine->engine.profile(on != 0); });
}

int32_t es_profile_read(const es_engine* engine, es_op_cost* out, int32_t room) {
  return engine->engine.profile_read(out, room);
}

const char* es_last_error(void) { return eyespot::last_error.c_str(); }

const char* es_version(void) { return ES_VERSION; }
int32_t es_abi_version(void) { return ES_ABI_VERSION; }

}  // extern "C"
