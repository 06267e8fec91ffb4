// fail.h: how native code says no: a status of eyespot.h and one line with what was found, what was expected, the
// likely cause. Thrown inside the library alone; the C functions turn it into a status.
#ifndef EYESPOT_ENGINE_FAIL_H_
#define EYESPOT_ENGINE_FAIL_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "eyespot.h"

namespace eyespot {

struct Failure {
  int status;
  std::string message;
};

// Hostile text as one printable line: control characters and quotes that could forge a line are shown as '?', long text
// is cut.
inline std::string shown(std::string_view text, size_t limit = 80) {
  std::string line(text.substr(0, limit));
  for (char& c : line)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  return text.size() > limit ? line + "..." : line;
}

inline std::string str(std::string_view text) { return shown(text); }
inline std::string str(const std::string& text) { return shown(text); }
inline std::string str(const char* text) { return shown(text); }
template <class Number>
  requires std::is_arithmetic_v<Number>
std::string str(Number value) {
  return std::to_string(value);
}

struct Nothing {};
inline std::string str(Nothing) { return ""; }

template <class Found = Nothing, class Expected = Nothing>
[[noreturn]] void fail_with(int status, const std::string& what, const Found& found = {}, const Expected& expected = {},
                            const char* cause = nullptr) {
  std::string line = what;
  if (const std::string text = str(found); !text.empty()) line += "; found " + text;
  if (const std::string text = str(expected); !text.empty()) line += "; expected " + text;
  if (cause != nullptr) line += std::string("; likely cause: ") + cause;
  throw Failure{status, std::move(line)};
}

template <class Found = Nothing, class Expected = Nothing>
[[noreturn]] void fail(const std::string& what, const Found& found = {}, const Expected& expected = {},
                       const char* cause = nullptr) {
  fail_with(ES_FAILED, what, found, expected, cause);
}

// Products and sums of sizes from a file: negative or past 2^62 fails instead of wrapping.
inline int64_t checked(int64_t value, const char* what) {
  if (value < 0 || value > int64_t{1} << 62) fail(std::string(what) + " is out of range", value);
  return value;
}

inline int64_t product(int64_t a, int64_t b, const char* what) {
  int64_t result;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &result)) fail(std::string(what) + " overflows");
  return checked(result, what);
}

inline int64_t sum(int64_t a, int64_t b, const char* what) {
  int64_t result;
  if (__builtin_add_overflow(a, b, &result)) fail(std::string(what) + " overflows");
  return checked(result, what);
}

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace eyespot

#endif
