// scheme.h: what a scheme's name says, and how many bytes a matrix packed by it takes: DESIGN.md, "Schemes and storage".
// Knows no file and no kernel.
#ifndef EYESPOT_ENGINE_SCHEME_H_
#define EYESPOT_ENGINE_SCHEME_H_

#include <cstdint>
#include <optional>
#include <string_view>

#include "engine/fail.h"
#include "kernels/generic.h"

namespace eyespot {

constexpr const char* LAYOUT = "r16q4";
constexpr const char* SCHEMES =
    "f32, f16, bf16, W8A16, W8A8 (alone or with -g32, -g64, -g128), or W4A16, W4A8 with -g32, -g64, -g128 and maybe "
    "-asym";

struct Scheme {
  int bits = 32;         // of a weight: 32, 16 and BRAIN are floats, 8 and 4 packed integers
  bool a8 = false;       // rows are rounded to int8 before
  int64_t group = 0;     // columns that share a scale, 0 for all
  bool minimum = false;  // -asym

  static constexpr int BRAIN = 17;  // bf16

  bool packed() const { return bits < 16; }
  int64_t groups(int64_t k) const { return group ? (k + group - 1) / group : 1; }

  // Bytes of 16 rows of k columns: for each group its scales, minima and numbers.
  int64_t panel_bytes(int64_t k) const {
    const int64_t scale = group ? 2 : 4, columns = group ? groups(k) * group : round_up(k, CHUNK);
    return PANEL * (groups(k) * (scale + (minimum ? 2 : 0)) + columns * bits / 8);
  }
};

// The scheme of that name; nothing when there is none.
inline std::optional<Scheme> parse_scheme(std::string_view name) {
  if (name == "f32") return Scheme{};
  if (name == "f16") return Scheme{16};
  if (name == "bf16") return Scheme{Scheme::BRAIN};
  const auto take = [&](std::string_view text) {
    if (!name.starts_with(text)) return false;
    name.remove_prefix(text.size());
    return true;
  };
  Scheme scheme;
  scheme.bits = take("W8") ? 8 : take("W4") ? 4 : 0;
  scheme.a8 = take("A8");
  if (scheme.bits == 0 || (!scheme.a8 && !take("A16"))) return {};
  scheme.group = take("-g32") ? 32 : take("-g64") ? 64 : take("-g128") ? 128 : 0;
  scheme.minimum = take("-asym");
  const bool known = scheme.bits == 4 ? scheme.group != 0 : !scheme.minimum;
  return name.empty() && known ? std::optional(scheme) : std::nullopt;
}

}  // namespace eyespot

#endif
