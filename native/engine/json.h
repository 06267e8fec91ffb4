// json.h: a strict JSON reader: bounded in bytes, depth and values; no duplicate key, no NaN, no invalid UTF-8, nothing
// after the value. Knows nothing of what the values mean; the accessors name the place of a value of the wrong kind.
#ifndef EYESPOT_ENGINE_JSON_H_
#define EYESPOT_ENGINE_JSON_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace eyespot {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // in the order of the file
  using Value = std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object>;

  Json() = default;
  explicit Json(Value value) : value_(std::move(value)) {}

  // Throws Failure naming `what` and the byte where reading stopped.
  static Json parse(std::string_view text, const char* what);

  // `where` names this value in the Failure that a value of another kind gives.
  const Object& object(const std::string& where) const;
  const Array& array(const std::string& where) const;
  const std::string& string(const std::string& where) const;
  int64_t integer(const std::string& where, int64_t low, int64_t high) const;
  double number(const std::string& where) const;  // an integer will do
  bool boolean(const std::string& where) const;
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  const Value& value() const { return value_; }

  const Json* find(std::string_view key) const;  // null when this is no object or lacks the key
  const Json& at(const char* key, const std::string& where) const;

 private:
  Value value_ = nullptr;
};

}  // namespace eyespot

#endif
