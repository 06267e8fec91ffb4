// json.cc: the reader behind json.h, by recursive descent with a depth counter.
#include "engine/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "engine/fail.h"
#include "eyespot/limits.h"

namespace eyespot {
namespace {

constexpr int64_t JSON_VALUES = int64_t{2}
                                << 20;  // what HEADER_BYTES can name 20 times over; bounds memory to some 100 MiB

class Reader {
 public:
  Reader(std::string_view text, const char* what)
      : at_(text.data()), begin_(at_), end_(at_ + text.size()), what_(what) {}

  Json document() {
    Json value = read(0);
    space();
    if (at_ != end_) stop("text after the value");
    return value;
  }

 private:
  [[noreturn]] void stop(const char* why) const {
    fail(std::string(what_) + ": not valid JSON (" + why + " at byte " + std::to_string(at_ - begin_) + ")", Nothing{},
         Nothing{}, "the file is corrupted or cut off");
  }

  void space() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
  }

  bool take(char c) {
    space();
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }

  void word(std::string_view text) {
    if (static_cast<size_t>(end_ - at_) < text.size() || std::string_view(at_, text.size()) != text)
      stop("unknown word");
    at_ += text.size();
  }

  Json read(int64_t depth) {
    if (depth > limits::JSON_DEPTH) stop("nested too deeply");
    if (++values_ > JSON_VALUES) stop("too many values");
    space();
    if (at_ == end_) stop("the text ends early");
    switch (*at_) {
      case '{': return object(depth);
      case '[': return array(depth);
      case '"': return Json(string());
      case 't': word("true"); return Json(true);
      case 'f': word("false"); return Json(false);
      case 'n': word("null"); return Json(nullptr);
      default: return number();
    }
  }

  Json array(int64_t depth) {
    ++at_;
    Json::Array items;
    if (take(']')) return Json(std::move(items));
    do items.push_back(read(depth + 1));
    while (take(','));
    if (!take(']')) stop("an array is not closed");
    return Json(std::move(items));
  }

  Json object(int64_t depth) {
    ++at_;
    Json::Object members;
    if (take('}')) return Json(std::move(members));
    do {
      space();
      if (at_ == end_ || *at_ != '"') stop("a key is missing");
      std::string key = string();
      if (!take(':')) stop("':' is missing");
      members.emplace_back(std::move(key), read(depth + 1));
    } while (take(','));
    if (!take('}')) stop("an object is not closed");
    std::vector<std::string_view> keys;
    keys.reserve(members.size());
    for (const auto& member : members) keys.push_back(member.first);
    std::sort(keys.begin(), keys.end());
    if (auto twice = std::adjacent_find(keys.begin(), keys.end()); twice != keys.end())
      fail(std::string(what_) + ": duplicate key", *twice);
    return Json(std::move(members));
  }

  Json number() {
    const char* start = at_;
    auto digits = [&] {
      const char* first = at_;
      while (at_ != end_ && *at_ >= '0' && *at_ <= '9') ++at_;
      return at_ - first;
    };
    if (at_ != end_ && *at_ == '-') ++at_;
    const char* first = at_;
    const auto whole = digits();
    if (whole == 0 || (whole > 1 && *first == '0')) stop("not a value");
    bool integral = true;
    if (at_ != end_ && *at_ == '.') {
      integral = false, ++at_;
      if (digits() == 0) stop("digits are missing");
    }
    if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) {
      integral = false, ++at_;
      if (at_ != end_ && (*at_ == '+' || *at_ == '-')) ++at_;
      if (digits() == 0) stop("digits are missing");
    }
    if (integral) {
      int64_t value;
      if (std::from_chars(start, at_, value).ec == std::errc()) return Json(value);
    }
    double value;
    if (std::from_chars(start, at_, value).ec != std::errc() || !std::isfinite(value)) stop("a number is out of range");
    return Json(value);
  }

  uint32_t hex4() {
    uint32_t value = 0;
    if (end_ - at_ < 4 || std::from_chars(at_, at_ + 4, value, 16).ptr != at_ + 4) stop("bad \\u escape");
    at_ += 4;
    return value;
  }

  static void append(std::string& out, uint32_t code) {
    if (code < 0x80) {
      out += static_cast<char>(code);
    } else if (code < 0x800) {
      out += static_cast<char>(0xC0 | code >> 6);
      out += static_cast<char>(0x80 | (code & 63));
    } else if (code < 0x10000) {
      out += static_cast<char>(0xE0 | code >> 12);
      out += static_cast<char>(0x80 | (code >> 6 & 63));
      out += static_cast<char>(0x80 | (code & 63));
    } else {
      out += static_cast<char>(0xF0 | code >> 18);
      out += static_cast<char>(0x80 | (code >> 12 & 63));
      out += static_cast<char>(0x80 | (code >> 6 & 63));
      out += static_cast<char>(0x80 | (code & 63));
    }
  }

  void escape(std::string& out) {
    if (at_ == end_) stop("a string is not closed");
    switch (*at_++) {
      case '"': out += '"'; return;
      case '\\': out += '\\'; return;
      case '/': out += '/'; return;
      case 'b': out += '\b'; return;
      case 'f': out += '\f'; return;
      case 'n': out += '\n'; return;
      case 'r': out += '\r'; return;
      case 't': out += '\t'; return;
      case 'u': break;
      default: stop("bad escape");
    }
    uint32_t code = hex4();
    if (code >= 0xDC00 && code < 0xE000) stop("lone surrogate");
    if (code >= 0xD800 && code < 0xDC00) {
      if (end_ - at_ < 2 || at_[0] != '\\' || at_[1] != 'u') stop("lone surrogate");
      at_ += 2;
      const uint32_t low = hex4();
      if (low < 0xDC00 || low >= 0xE000) stop("lone surrogate");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append(out, code);
  }

  // One UTF-8 sequence of two bytes or more: no overlong form, no surrogate, nothing above U+10FFFF.
  void sequence(std::string& out) {
    const auto lead = static_cast<unsigned char>(*at_);
    const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    uint32_t code = lead & (0x3F >> more);
    if (lead < 0xC2 || lead > 0xF4 || end_ - at_ <= more) stop("invalid UTF-8");
    for (int i = 1; i <= more; ++i) {
      const auto next = static_cast<unsigned char>(at_[i]);
      if ((next & 0xC0) != 0x80) stop("invalid UTF-8");
      code = code << 6 | (next & 63);
    }
    if (code < (more == 1   ? 0x80u
                : more == 2 ? 0x800u
                            : 0x10000u) ||
        code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
      stop("invalid UTF-8");
    out.append(at_, static_cast<size_t>(more) + 1);
    at_ += more + 1;
  }

  std::string string() {
    ++at_;
    std::string out;
    while (true) {
      if (at_ == end_) stop("a string is not closed");
      const auto c = static_cast<unsigned char>(*at_);
      if (c == '"') break;
      if (c < 0x20) stop("control character in a string");
      if (c >= 0x80) {
        sequence(out);
      } else if (c == '\\') {
        ++at_;
        escape(out);
      } else {
        out += *at_++;
      }
    }
    ++at_;
    return out;
  }

  const char *at_, *begin_, *end_;
  const char* what_;
  int64_t values_ = 0;
};

template <class Kind>
const Kind& get(const Json::Value& value, const std::string& where, const char* kind) {
  if (const Kind* found = std::get_if<Kind>(&value)) return *found;
  static const char* const NAMES[] = {"null",     "a boolean", "an integer", "a number",
                                      "a string", "an array",  "an object"};
  fail(where + " is of the wrong kind", NAMES[value.index()], kind);
}

}  // namespace

Json Json::parse(std::string_view text, const char* what) {
  if (static_cast<int64_t>(text.size()) > limits::JSON_BYTES)
    fail(std::string(what) + ": too large", static_cast<int64_t>(text.size()),
         "at most " + str(limits::JSON_BYTES) + " bytes");
  return Reader(text, what).document();
}

const Json::Object& Json::object(const std::string& where) const { return get<Object>(value_, where, "an object"); }
const Json::Array& Json::array(const std::string& where) const { return get<Array>(value_, where, "an array"); }
const std::string& Json::string(const std::string& where) const { return get<std::string>(value_, where, "a string"); }
bool Json::boolean(const std::string& where) const { return get<bool>(value_, where, "true or false"); }

int64_t Json::integer(const std::string& where, int64_t low, int64_t high) const {
  const int64_t value = get<int64_t>(value_, where, "an integer");
  if (value < low || value > high) fail(where + " is out of range", value, str(low) + " to " + str(high));
  return value;
}

double Json::number(const std::string& where) const {
  if (const int64_t* integer = std::get_if<int64_t>(&value_)) return static_cast<double>(*integer);
  return get<double>(value_, where, "a number");
}

const Json* Json::find(std::string_view key) const {
  if (const Object* members = std::get_if<Object>(&value_))
    for (const auto& [name, value] : *members)
      if (name == key) return &value;
  return nullptr;
}

const Json& Json::at(const char* key, const std::string& where) const {
  object(where);
  if (const Json* value = find(key)) return *value;
  fail(where + ": key '" + key + "' is missing");
}

}  // namespace eyespot
