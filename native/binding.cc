// binding.cc: the Python module eyespot._native, a thin skin over eyespot.h: checks arrays, lets go of the GIL during
// work, raises Error(status, message). The tokenizer's merges (text/bpe.h) come with it. Knows no bundle and no model.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/fail.h"
#include "engine/measure.h"
#include "eyespot.h"
#include "eyespot/limits.h"
#include "kernels/kernels.h"
#include "text/bpe.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using FloatsIn = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using BytesIn = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IntsIn = nb::ndarray<const int32_t, nb::c_contig, nb::device::cpu>;
using TokensIn = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class Number>
using Numbers = nb::ndarray<nb::numpy, Number>;
using Floats = Numbers<float>;

PyObject* error_type = nullptr;  // _native.Error, made with the module

[[noreturn]] void raise(int status, const std::string& message) {
  nb::object arguments = nb::make_tuple(status, message);
  PyErr_SetObject(error_type, arguments.ptr());
  throw nb::python_error();
}

template <class Number = float>
struct Buffer {
  std::unique_ptr<Number[]> data;
  explicit Buffer(size_t n) : data(new Number[n]) {}
  template <size_t Rank>
  Numbers<Number> array(const size_t (&shape)[Rank]) {
    Number* raw = data.release();
    nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<Number*>(p); });
    return Numbers<Number>(raw, Rank, shape, owner);
  }
};

class Engine {
 public:
  Engine(const std::string& path, int threads, int ctx_size, const std::string& isa) {
    const es_options options{threads, ctx_size, isa.c_str()};
    int status;
    {
      nb::gil_scoped_release release;
      status = es_open(path.c_str(), &options, &engine_);
    }
    check(status);
    check(es_get_info(engine_, &info_));
    es_trace(engine_, &Engine::traced, this);
  }
  ~Engine() { es_close(engine_); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  nb::dict info() const {
    nb::dict d;
    d["vocab_size"] = info_.vocab_size, d["hidden_size"] = info_.hidden_size, d["ctx_size"] = info_.ctx_size;
    d["prefill_chunk"] = info_.prefill_chunk, d["image_token_id"] = info_.image_token_id;
    d["threads"] = info_.threads, d["processors"] = info_.processors;
    d["tile_size"] = info_.tile_size, d["tile_tokens"] = info_.tile_tokens, d["tile_batch"] = info_.tile_batch;
    d["tile_channels"] = info_.tile_channels, d["tile_patches"] = info_.tile_patches, d["axes"] = info_.axes;
    d["arena_bytes"] = info_.arena_bytes, d["weight_bytes"] = info_.weight_bytes, d["kv_bytes"] = info_.kv_bytes;
    d["isa"] = info_.isa, d["kv_type"] = info_.kv_type;
    return d;
  }

  Floats encode(const FloatsIn& pixels, const std::optional<IntsIn>& places, const std::optional<IntsIn>& windows,
                const std::optional<IntsIn>& frames) {
    const Use use(*this);
    const auto side = static_cast<size_t>(info_.tile_size), channels = static_cast<size_t>(info_.tile_channels);
    if (side == 0) raise(ES_USAGE, "this model has no eyes: it cannot encode pictures");
    if (pixels.ndim() != 4 || pixels.shape(1) != channels || pixels.shape(2) != side || pixels.shape(3) != side ||
        pixels.shape(0) > INT32_MAX)
      raise(ES_USAGE, "pixels are misshapen; expected [tiles, " + std::to_string(channels) + ", " +
                          std::to_string(side) + ", " + std::to_string(side) + "]");
    const size_t patches = pixels.shape(0) * static_cast<size_t>(info_.tile_patches);
    if (places && (places->ndim() != 2 || places->shape(0) != patches || places->shape(1) != 2))
      raise(ES_USAGE, "places are misshapen; expected [" + std::to_string(patches) + ", 2]");
    for (const auto* runs : {&windows, &frames})
      if (*runs && ((*runs)->ndim() != 1 || (*runs)->shape(0) != patches))
        raise(ES_USAGE, "windows and frames are misshapen; expected [" + std::to_string(patches) + "]");
    const auto tiles = static_cast<int32_t>(pixels.shape(0));
    const size_t rows = static_cast<size_t>(tiles) * static_cast<size_t>(info_.tile_tokens);
    const auto width = static_cast<size_t>(info_.hidden_size);
    Buffer<> out(rows * width);
    work([&] {
      if (!places && !windows && !frames) return es_encode(engine_, pixels.data(), tiles, out.data.get());
      return es_encode_at(engine_, pixels.data(), tiles, places ? places->data() : nullptr,
                          windows ? windows->data() : nullptr, frames ? frames->data() : nullptr, out.data.get());
    });
    return out.array({rows, width});
  }

  Floats prefill(const TokensIn& tokens, const std::optional<FloatsIn>& features, int want,
                 const std::optional<IntsIn>& positions) {
    const Use use(*this);
    const size_t vocab = static_cast<size_t>(info_.vocab_size), n = tokens.shape(0);
    if (want < 0 || static_cast<size_t>(want) > n)
      raise(ES_USAGE, "want is " + std::to_string(want) + "; expected 0 to " + std::to_string(n));
    check_room(n);
    Buffer<> out(static_cast<size_t>(want) * vocab);
    append(tokens, features, positions, want, out.data.get());
    return out.array({static_cast<size_t>(want), vocab});
  }

  Floats decode(int32_t token) {
    const Use use(*this);
    const auto vocab = static_cast<size_t>(info_.vocab_size);
    Buffer<> out(vocab);
    work([&] { return es_decode(engine_, token, out.data.get()); });
    return out.array({vocab});
  }

  void feed(const TokensIn& tokens, const std::optional<FloatsIn>& features, const std::optional<IntsIn>& positions) {
    const Use use(*this);
    check_room(tokens.shape(0));
    append(tokens, features, positions, 1, nullptr);
  }

  nb::tuple top(int k) {
    const Use use(*this);
    if (k < 1 || k > eyespot::limits::TOP) raise(ES_USAGE, "top is out of range; found " + std::to_string(k));
    const auto count = static_cast<size_t>(k);
    Buffer<int32_t> ids(count);
    Buffer<> logits(count);
    check(es_top(engine_, k, ids.data.get(), logits.data.get()));
    return nb::make_tuple(ids.array({count}), logits.array({count}));
  }

  Floats logits() {
    const Use use(*this);
    const auto vocab = static_cast<size_t>(info_.vocab_size);
    Buffer<> out(vocab);
    check(es_logits(engine_, out.data.get()));
    return out.array({vocab});
  }

  void profile(bool on) {
    const Use use(*this);
    check(es_profile(engine_, on));
  }

  nb::list profiled() {
    const Use use(*this);
    std::vector<es_op_cost> costs(static_cast<size_t>(es_profile_read(engine_, nullptr, 0)));
    es_profile_read(engine_, costs.data(), static_cast<int32_t>(costs.size()));
    nb::list list;
    for (const es_op_cost& cost : costs) {
      nb::dict d;
      d["graph"] = cost.graph, d["block"] = cost.block, d["op"] = cost.op, d["kind"] = cost.kind;
      d["numbers"] = cost.numbers;
      d["calls"] = cost.calls, d["nanoseconds"] = cost.nanoseconds;
      d["bytes"] = cost.bytes, d["multiply_adds"] = cost.multiply_adds;
      list.append(d);
    }
    return list;
  }

  int32_t past() const { return es_past(open()); }
  void truncate(int32_t n) {
    const Use use(*this);
    check(es_truncate(engine_, n));
  }
  void release_eyes() {
    const Use use(*this);
    check(es_release_eyes(engine_));
  }
  Numbers<uint8_t> save(int32_t n) {
    const Use use(*this);
    if (n < 0 || n > es_past(engine_)) raise(ES_USAGE, "tokens to save are out of range; found " + std::to_string(n));
    const auto size = static_cast<size_t>(es_state_bytes(engine_, n));
    Buffer<uint8_t> out(size);
    check(es_state_save(engine_, n, out.data.get()));
    return out.array({size});
  }
  void load(const BytesIn& state, int32_t n) {
    const Use use(*this);
    if (n < 0 || n > info_.ctx_size || state.size() != static_cast<size_t>(es_state_bytes(engine_, n)))
      raise(ES_USAGE, "the saved state does not fit this engine; found " + std::to_string(state.size()) + " bytes for " +
                          std::to_string(n) + " tokens");
    check(es_state_load(engine_, n, state.data()));
  }
  void cancel(bool on) const { es_cancel(open(), on); }

  void trace(const nb::object& callback) {
    const Use use(*this);
    callback_ = callback;
  }

  void close() {
    if (engine_ == nullptr) return;
    const Use use(*this);
    es_close(engine_);
    engine_ = nullptr;
  }

 private:
  // One call at a time: the GIL is let go during work, so another Python thread could come in.
  class Use {
   public:
    explicit Use(Engine& engine) : engine_(engine) {
      engine.open();
      if (engine.busy_) raise(ES_USAGE, "the engine is busy: calls on one engine must not overlap");
      engine.busy_ = true;
    }
    ~Use() { engine_.busy_ = false; }

   private:
    Engine& engine_;
  };

  es_engine* open() const {
    if (engine_ == nullptr) raise(ES_USAGE, "the engine is closed");
    return engine_;
  }

  static void check(int status) {
    if (status != ES_OK) raise(status, es_last_error());
  }

  void check_room(size_t n) const {
    if (n > static_cast<size_t>(info_.ctx_size)) raise(ES_USAGE, "more tokens than the context holds");
  }

  void append(const TokensIn& tokens, const std::optional<FloatsIn>& features, const std::optional<IntsIn>& positions,
              int want, float* logits) {
    int32_t rows = 0;
    if (positions && (positions->ndim() != 2 || positions->shape(0) != tokens.shape(0) ||
                      positions->shape(1) != static_cast<size_t>(info_.axes)))
      raise(ES_USAGE, "positions are misshapen; expected [tokens, " + std::to_string(info_.axes) + "]");
    if (features) {
      const auto width = static_cast<size_t>(info_.hidden_size);
      if (features->ndim() != 2 || features->shape(1) != width || features->shape(0) > INT32_MAX)
        raise(ES_USAGE, "features are misshapen; expected [rows, " + std::to_string(width) + "]");
      rows = static_cast<int32_t>(features->shape(0));
    }
    const auto n = static_cast<int32_t>(tokens.shape(0));
    work([&] {
      return es_prefill_at(engine_, tokens.data(), n, positions ? positions->data() : nullptr,
                           features ? features->data() : nullptr, rows, want, logits);
    });
  }

  template <class Call>
  void work(const Call& call) {
    int status;
    std::string
        message;  // es_last_error speaks for this thread, which may run other calls once the GIL is asked for again
    {
      nb::gil_scoped_release release;
      status = call();
      if (status != ES_OK) message = es_last_error();
    }
    if (pending_) {
      if (status != ES_CANCELLED) es_cancel(engine_, 0);  // it came in the last block: no call met the request
      std::rethrow_exception(std::exchange(pending_, nullptr));
    }
    if (status != ES_OK) raise(status, message);
  }

  // After every block. A Python exception may not cross C: it waits in pending_ and stops the call at the next block.
  // So does one that a signal handler raises, or Ctrl-C would have to wait for the end of a long prompt.
  static void traced(void* user, const char* graph, const char* block, const float* data, int32_t rows,
                     int32_t columns) {
    auto* self = static_cast<Engine*>(user);
    const auto now = std::chrono::steady_clock::now();
    const bool look = now - self->looked_ > SIGNAL_INTERVAL;
    if (self->pending_ || (!look && self->callback_.is_none())) return;
    nb::gil_scoped_acquire acquire;
    try {
      if (look) {
        self->looked_ = now;
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
      }
      if (self->callback_.is_none()) return;
      const size_t shape[] = {static_cast<size_t>(rows), static_cast<size_t>(columns)};
      Buffer<> copy(shape[0] * shape[1]);
      std::memcpy(copy.data.get(), data, shape[0] * shape[1] * sizeof(float));
      self->callback_(graph, block, copy.array(shape));
    } catch (...) {
      self->pending_ = std::current_exception();
      es_cancel(self->engine_, 1);
    }
  }

  static constexpr auto SIGNAL_INTERVAL = std::chrono::milliseconds(30);
  es_engine* engine_ = nullptr;
  es_info info_{};
  bool busy_ = false;
  nb::object callback_ = nb::none();
  std::chrono::steady_clock::time_point looked_{};
  std::exception_ptr pending_;
};

using Text = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const int32_t, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;

class Bpe {
 public:
  Bpe(Text text, TokensIn offsets, TokensIn order, TokensIn letters, TokensIn lefts, Rows merges, bool whole_words)
      : arrays_{std::move(text), std::move(offsets), std::move(order), std::move(letters), std::move(lefts),
                std::move(merges)} {
    try {
      bpe_.emplace(arrays_.table(), whole_words);
    } catch (const eyespot::Failure& failure) {
      raise(failure.status, failure.message);
    }
  }

  std::vector<int32_t> encode(std::string_view word) const {
    std::optional<nb::gil_scoped_release> release;  // for a word it would cost more than the work
    if (word.size() > LONG_WORD) release.emplace();
    return bpe_->encode(word);
  }
  std::optional<int32_t> find(const nb::bytes& text) const { return bpe_->find({text.c_str(), text.size()}); }
  std::optional<nb::bytes> text(int64_t id) const {
    const std::optional<std::string_view> found = bpe_->text(id);
    if (!found) return std::nullopt;
    return nb::bytes(found->data(), found->size());
  }

 private:
  static constexpr size_t LONG_WORD = 1 << 14;

  struct Arrays {  // keeps what the table looks at
    Text text;
    TokensIn offsets, order, letters, lefts;
    Rows merges;

    eyespot::BpeTable table() const {
      const auto view = [](const auto& array) { return std::span<const int32_t>(array.data(), array.size()); };
      return {{reinterpret_cast<const char*>(text.data()), text.size()},
              view(offsets),
              view(order),
              view(letters),
              view(lefts),
              view(merges)};
    }
  };

  Arrays arrays_;
  std::optional<eyespot::Bpe> bpe_;
};

// For `eyespot bench`: what this machine can do at most with these threads and instructions. See engine/measure.h.
nb::dict ceilings(int threads, const std::string& isa) {
  eyespot::Isa chosen;
  eyespot::Ceilings found;
  std::string fault;
  int status = ES_OK;
  {
    nb::gil_scoped_release release;
    try {
      if (!eyespot::choose_isa(isa.c_str(), chosen, fault)) eyespot::fail_with(ES_USAGE, fault);
      found = eyespot::measure_ceilings(threads, chosen);
    } catch (const eyespot::Failure& failure) {
      status = failure.status, fault = failure.message;
    }
  }
  if (status != ES_OK) raise(status, fault);
  const auto rate = [](double per_second, const char* instruction) {
    nb::dict d;
    d["per_second"] = per_second, d["instruction"] = instruction;
    return d;
  };
  nb::dict d;
  d["read"] = rate(found.read, "");
  d["float32"] = rate(found.float32, found.loops.float32.instruction);
  d["int16"] = rate(found.int16, found.loops.int16.instruction);
  d["int8"] = rate(found.int8, found.loops.int8.instruction);
  d["int4"] = rate(found.int4, found.loops.int4.instruction);
  return d;
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The eyespot engine: eyespot.h for Python.";
  error_type = PyErr_NewException("eyespot._native.Error", PyExc_Exception, nullptr);
  m.attr("Error") = nb::handle(error_type);
  m.def("version", [] { return es_version(); });
  m.def("isas", [] {
    nb::dict d;
    for (eyespot::Isa isa : eyespot::ISAS) d[eyespot::isa_name(isa)] = eyespot::isa_runs_here(isa);
    return d;
  });
  m.def("ceilings", &ceilings, "threads"_a, "isa"_a = "");
  nb::class_<Engine>(m, "Engine")
      .def(nb::init<const std::string&, int, int, const std::string&>(), "path"_a, "threads"_a = 0, "ctx_size"_a = 0,
           "isa"_a = "")
      .def_prop_ro("info", &Engine::info)
      .def("encode", &Engine::encode, "pixels"_a, "places"_a = nb::none(), "windows"_a = nb::none(),
           "frames"_a = nb::none())
      .def("prefill", &Engine::prefill, "tokens"_a, "features"_a = nb::none(), "want"_a = 1,
           "positions"_a = nb::none())
      .def("decode", &Engine::decode, "token"_a)
      .def("feed", &Engine::feed, "tokens"_a, "features"_a = nb::none(), "positions"_a = nb::none())
      .def("top", &Engine::top, "k"_a)
      .def("logits", &Engine::logits)
      .def("profile", &Engine::profile, "on"_a)
      .def("profiled", &Engine::profiled)
      .def_prop_ro("past", &Engine::past)
      .def("truncate", &Engine::truncate, "n"_a)
      .def("release_eyes", &Engine::release_eyes)
      .def("save", &Engine::save, "n"_a)
      .def("load", &Engine::load, "state"_a, "n"_a)
      .def("cancel", &Engine::cancel, "on"_a = true)
      .def("trace", &Engine::trace, "callback"_a.none())
      .def("close", &Engine::close);
  nb::class_<Bpe>(m, "Bpe")
      .def(nb::init<Text, TokensIn, TokensIn, TokensIn, TokensIn, Rows, bool>(), "text"_a, "offsets"_a, "order"_a,
           "letters"_a, "lefts"_a, "merges"_a, "whole_words"_a)
      .def("encode", &Bpe::encode, "word"_a)
      .def("find", &Bpe::find, "text"_a)
      .def("text", &Bpe::text, "id"_a);
}
