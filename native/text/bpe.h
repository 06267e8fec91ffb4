// bpe.h: byte-pair encoding over a table that is looked at where it lies, so opening it costs one pass of checks.
// Knows tokens as texts and ids, and merges by rank. How text is cut into words, and what the texts mean, it does not.
#ifndef EYESPOT_TEXT_BPE_H_
#define EYESPOT_TEXT_BPE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace eyespot {

// Views of memory that outlives the Bpe. A token is an id from 0 to tokens - 1; not every id needs to be one.
struct BpeTable {
  std::string_view text;             // all tokens' texts, UTF-8, one after the other
  std::span<const int32_t> offsets;  // [tokens + 1]: token i is text[offsets[i] .. offsets[i + 1]), empty when it is none
  std::span<const int32_t> order;    // the tokens, by the bytes of their text
  std::span<const int32_t> letters;  // the token of a single character by its code point, -1 for none
  std::span<const int32_t> lefts;    // [tokens + 1]: merges with left part i are rows lefts[i] .. lefts[i + 1]
  std::span<const int32_t> merges;   // [rows][3]: right part, rank, joint; right parts rise within a left part
};

class Bpe {
 public:
  // whole_words: a word that is a token is that token, whatever the merges say. Throws Failure when the table has a
  // number that points outside of it; a table that is wrong in another way gives wrong tokens, never a crash.
  Bpe(const BpeTable& table, bool whole_words);

  // The tokens of a word: its characters, then always the merge of lowest rank, the leftmost of equals, until none
  // applies. Characters without a token are left out. O(n log n) for n characters.
  std::vector<int32_t> encode(std::string_view word) const;

  std::optional<int32_t> find(std::string_view text) const;
  std::optional<std::string_view> text(int64_t id) const;

 private:
  struct Merge {
    int32_t rank, at, left, right, joint;
  };

  int64_t tokens() const { return static_cast<int64_t>(table_.offsets.size()) - 1; }
  std::string_view text_of(int32_t id) const;
  bool merge(int32_t left, int32_t right, Merge& out) const;

  BpeTable table_;
  bool whole_words_;
};

}  // namespace eyespot

#endif
