// main.cc: eyespot-run: greedy decoding by token ids on a board without Python. Knows no tokenizer and no pictures.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "eyespot.h"

namespace {

constexpr const char* HELP = R"(usage: eyespot-run -m BUNDLE --tokens 1,2,3 [-n 16] [-t N] [-c N] [--isa NAME] [--json]

Appends the most likely token, again and again, to a sequence of token ids.

  -m, --model DIR       bundle directory, as `eyespot compile` writes it
      --tokens LIST     ids of the prompt, separated by commas
  -n, --max-tokens N    tokens to generate (default 16)
  -t, --threads N       threads (default: EYESPOT_THREADS, or every processor this process may use)
  -c, --ctx-size N      tokens the sequence may hold (default 0: what the bundle was compiled for)
      --isa NAME        instruction set, such as scalar or avx2 (default: the best this machine runs)
      --json            one JSON object on standard output instead of text
      --version         print the version and exit
  -h, --help            print this and exit

Ids go to standard output, timings to standard error. Stop tokens are not known here: exactly N tokens are generated,
or as many as the context holds. Exit codes: 0 ok, 1 failed, 2 usage, 3 unsupported model, 130 interrupted.
)";

// For the signal handler alone.
es_engine* running = nullptr;
volatile std::sig_atomic_t interrupted = 0;

void interrupt(int) {
  interrupted = 1;
  es_cancel(running, 1);
}

[[noreturn]] void usage(const std::string& fault) {
  std::fprintf(stderr, "eyespot-run: %s (see --help)\n", fault.c_str());
  std::exit(ES_USAGE);
}

int32_t number(const char* flag, const char* text) {
  int32_t value = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, fault] = std::from_chars(text, end, value);
  if (fault != std::errc() || stop != end) usage(std::string(flag) + " takes a whole number, found '" + text + "'");
  return value;
}

int32_t positive(const char* flag, const char* text) {
  const int32_t value = number(flag, text);
  if (value < 1) usage(std::string(flag) + " takes a number from 1, found '" + text + "'");
  return value;
}

std::vector<int32_t> numbers(const char* flag, const std::string& text) {
  std::vector<int32_t> values;
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    values.push_back(number(flag, text.substr(at, comma - at).c_str()));
    at = comma + 1;
  }
  return values;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Arguments {
  std::string model, isa;
  std::vector<int32_t> tokens;
  int32_t max_tokens = 16, threads = 0, ctx_size = 0;
  bool json = false;
};

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    auto value = [&] {
      if (i + 1 == argc) usage(flag + " needs a value");
      return argv[++i];
    };
    if (flag == "-h" || flag == "--help") std::fputs(HELP, stdout), std::exit(ES_OK);
    if (flag == "--version") std::puts(es_version()), std::exit(ES_OK);
    if (flag == "-m" || flag == "--model")
      arguments.model = value();
    else if (flag == "--tokens")
      arguments.tokens = numbers("--tokens", value());
    else if (flag == "-n" || flag == "--max-tokens")
      arguments.max_tokens = number("-n", value());
    else if (flag == "-t" || flag == "--threads")
      arguments.threads = positive("-t", value());
    else if (flag == "-c" || flag == "--ctx-size")
      arguments.ctx_size = number("-c", value());
    else if (flag == "--isa")
      arguments.isa = value();
    else if (flag == "--json")
      arguments.json = true;
    else
      usage("unknown argument '" + flag + "'");
  }
  if (arguments.model.empty()) usage("-m BUNDLE is missing");
  if (arguments.tokens.empty()) usage("--tokens is missing");
  if (arguments.max_tokens < 0) usage("-n must not be negative");
  return arguments;
}

int failed(int status) {
  std::fprintf(stderr, "eyespot-run: %s\n", status == ES_CANCELLED ? "interrupted" : es_last_error());
  return status;
}

std::string joined(const std::vector<int32_t>& ids) {
  std::string text;
  for (int32_t id : ids) {
    if (!text.empty()) text += ',';
    text += std::to_string(id);
  }
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  const Arguments arguments = parse(argc, argv);
  auto start = std::chrono::steady_clock::now();
  const es_options options{arguments.threads, arguments.ctx_size, arguments.isa.c_str()};
  es_engine* engine = nullptr;
  if (const int status = es_open(arguments.model.c_str(), &options, &engine)) return failed(status);
  running = engine;
  const auto before = std::signal(SIGINT, interrupt);
  es_info info;
  es_get_info(engine, &info);
  if (info.threads > info.processors)
    std::fprintf(stderr, "eyespot-run: %d threads on %d processors: slower than %d threads\n", info.threads,
                 info.processors, info.processors);
  const double open_s = seconds_since(start);

  start = std::chrono::steady_clock::now();
  const auto n = static_cast<int32_t>(arguments.tokens.size());
  int status = es_prefill(engine, arguments.tokens.data(), n, nullptr, 0, 1, nullptr);
  const double prefill_s = seconds_since(start);

  std::vector<int32_t> ids;
  start = std::chrono::steady_clock::now();
  while (status == ES_OK && static_cast<int32_t>(ids.size()) < arguments.max_tokens) {
    int32_t best;
    float logit;
    status = es_top(engine, 1, &best, &logit);
    if (status != ES_OK) break;
    ids.push_back(best);
    if (static_cast<int32_t>(ids.size()) == arguments.max_tokens || es_past(engine) == info.ctx_size) break;
    status = es_decode(engine, ids.back(), nullptr);
  }
  const double decode_s = seconds_since(start);
  std::signal(SIGINT, before);  // as while the bundle was opened: a signal ends the process
  if (status == ES_OK && interrupted) status = ES_CANCELLED;
  const double steps = ids.empty() ? 0 : static_cast<double>(ids.size() - 1);
  if (status == ES_OK) {
    const double rate = decode_s > 0 ? steps / decode_s : 0;
    if (arguments.json) {
      std::printf(
          "{\"tokens\": [%s], \"isa\": \"%s\", \"threads\": %d, \"open_s\": %.6f, \"prefill_tokens\": %d, "
          "\"prefill_s\": %.6f, \"decode_tokens_per_s\": %.3f}\n",
          joined(ids).c_str(), info.isa, info.threads, open_s, n, prefill_s, rate);
    } else {
      std::printf("%s\n", joined(ids).c_str());
      std::fprintf(stderr,
                   "open %.3f s | prefill %d tokens in %.3f s | decode %.1f tokens/s, %.2f GB of weights a token | %s, "
                   "%d threads\n",
                   open_s, n, prefill_s, rate, static_cast<double>(info.weight_bytes) * 1e-9, info.isa, info.threads);
    }
  } else {
    failed(status);
  }
  es_close(engine);
  return status;
}
