// bpe.cc: the checks of a table, its look-ups, and the merging of one word on a heap of candidates.
#include "text/bpe.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "engine/fail.h"
#include "eyespot/limits.h"

namespace eyespot {
namespace {

constexpr const char* CAUSE = "the file is corrupted";

void check_ids(std::span<const int32_t> ids, int32_t low, int64_t tokens, const char* what) {
  const auto bad = std::find_if(ids.begin(), ids.end(), [&](int32_t id) { return id < low || id >= tokens; });
  if (bad != ids.end()) fail(std::string(what) + " is out of range", *bad, "below " + str(tokens), CAUSE);
}

// [tokens + 1] numbers that rise from 0 to `end`.
void check_starts(std::span<const int32_t> starts, size_t count, size_t end, const char* what) {
  if (starts.size() != count || starts.front() != 0 || static_cast<size_t>(starts.back()) != end ||
      !std::is_sorted(starts.begin(), starts.end()))
    fail(std::string(what) + " do not rise from 0 to " + str(end), Nothing{}, Nothing{}, CAUSE);
}

struct Symbol {
  int32_t token, before, after;  // positions of its neighbours, -1 at the ends; token is -1 once merged away
};

}  // namespace

Bpe::Bpe(const BpeTable& table, bool whole_words) : table_(table), whole_words_(whole_words) {
  if (table.offsets.empty() || tokens() > limits::VOCAB || table.text.size() > INT32_MAX ||
      table.merges.size() > INT32_MAX)
    fail("sizes are out of range", table.offsets.size(), Nothing{}, CAUSE);
  check_starts(table.offsets, table.offsets.size(), table.text.size(), "offsets");
  check_starts(table.lefts, table.offsets.size(), table.merges.size() / 3, "lefts");
  check_ids(table.order, 0, tokens(), "order");
  check_ids(table.letters, -1, tokens(), "letters");
  int32_t lowest = 0, highest = -1;  // without an early end: this is most of the time of opening
  for (size_t i = 0; i + 2 < table.merges.size(); i += 3) {
    lowest = std::min({lowest, table.merges[i], table.merges[i + 2]});
    highest = std::max({highest, table.merges[i], table.merges[i + 2]});
  }
  if (lowest < 0 || highest >= tokens())
    fail("merges are out of range", lowest < 0 ? lowest : highest, "below " + str(tokens()), CAUSE);
}

std::string_view Bpe::text_of(int32_t id) const {
  const auto i = static_cast<size_t>(id);
  const int32_t start = table_.offsets[i], stop = table_.offsets[i + 1];
  return table_.text.substr(static_cast<size_t>(start), static_cast<size_t>(stop - start));
}

std::optional<std::string_view> Bpe::text(int64_t id) const {
  if (id < 0 || id >= tokens()) return std::nullopt;
  const std::string_view found = text_of(static_cast<int32_t>(id));
  return found.empty() ? std::nullopt : std::optional(found);
}

std::optional<int32_t> Bpe::find(std::string_view text) const {
  const auto found = std::lower_bound(table_.order.begin(), table_.order.end(), text,
                                      [this](int32_t id, std::string_view other) { return text_of(id) < other; });
  if (found == table_.order.end() || text_of(*found) != text) return std::nullopt;
  return *found;
}

bool Bpe::merge(int32_t left, int32_t right, Merge& out) const {
  const auto row = static_cast<size_t>(left);
  int32_t low = table_.lefts[row], high = table_.lefts[row + 1];
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    const int32_t* found = &table_.merges[static_cast<size_t>(middle) * 3];
    if (found[0] == right) {
      out.left = left, out.right = right, out.rank = found[1], out.joint = found[2];
      return true;
    }
    if (found[0] < right)
      low = middle + 1;
    else
      high = middle;
  }
  return false;
}

std::vector<int32_t> Bpe::encode(std::string_view word) const {
  if (word.size() > INT32_MAX) throw std::length_error("word is too long");  // a caller's mistake, not the table's
  if (whole_words_)
    if (const std::optional<int32_t> id = find(word)) return {*id};

  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (size_t i = 0; i < word.size(); ++i) {
    const auto byte = static_cast<unsigned char>(word[i]);
    size_t letter = byte;  // its code point; UTF-8 of three bytes and more lies behind every table
    if (byte >= 0x80) {
      const bool two = byte >= 0xC0 && byte < 0xE0 && i + 1 < word.size();
      letter = two ? (byte & 0x1Fu) << 6 | (static_cast<unsigned char>(word[++i]) & 0x3Fu) : SIZE_MAX;
    }
    const int32_t token = letter < table_.letters.size() ? table_.letters[letter] : -1;
    const auto at = static_cast<int32_t>(symbols.size());
    if (token >= 0) symbols.push_back({token, at - 1, at + 1});
  }
  if (!symbols.empty()) symbols.back().after = -1;

  const auto later = [](const Merge& a, const Merge& b) { return a.rank != b.rank ? a.rank > b.rank : a.at > b.at; };
  std::vector<Merge> heap;
  const auto symbol = [&](int32_t at) -> Symbol& { return symbols[static_cast<size_t>(at)]; };
  const auto offer = [&](int32_t at) {
    Merge candidate;
    const int32_t after = symbol(at).after;
    if (after < 0 || !merge(symbol(at).token, symbol(after).token, candidate)) return false;
    candidate.at = at;
    heap.push_back(candidate);
    return true;
  };
  for (size_t i = 0; i < symbols.size(); ++i) offer(static_cast<int32_t>(i));
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Merge best = heap.back();
    heap.pop_back();
    Symbol& left = symbol(best.at);
    if (left.token != best.left || left.after < 0 || symbol(left.after).token != best.right) continue;  // merged since
    Symbol& right = symbol(left.after);
    left.token = best.joint, left.after = right.after, right.token = -1;
    if (left.after >= 0) symbol(left.after).before = best.at;
    if (offer(best.at)) std::push_heap(heap.begin(), heap.end(), later);
    if (left.before >= 0 && offer(left.before)) std::push_heap(heap.begin(), heap.end(), later);
  }

  std::vector<int32_t> ids;
  for (int32_t at = symbols.empty() ? -1 : 0; at >= 0; at = symbol(at).after) ids.push_back(symbol(at).token);
  return ids;
}

}  // namespace eyespot
