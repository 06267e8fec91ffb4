// file.h: read-only memory maps, and the header of a safetensors file checked as hostile bytes: the same rules as
// src/eyespot/tensorfile.py. Knows no program; a tensor's bytes are never copied or touched here.
#ifndef EYESPOT_ENGINE_FILE_H_
#define EYESPOT_ENGINE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace eyespot {

// Owns a mapping: a file's bytes (read-only) or zeroed memory that takes no page until it is touched. The file stays open:
// only so can be seen that it shrank, which turns the bytes past its end into SIGBUS.
class Mapping {
 public:
  Mapping() = default;
  static Mapping file(const std::string& path, const std::string& name);
  static Mapping memory(int64_t bytes, const char* what);
  Mapping(Mapping&& other) noexcept { *this = static_cast<Mapping&&>(other); }
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  std::byte* data() const { return data_; }
  int64_t size() const { return size_; }
  int64_t file_size() const;  // of the file as it is now; -1 when there is no telling
  void release() const;  // lets go of a file's pages in memory; they come back when they are read
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), static_cast<size_t>(size_)}; }

 private:
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
  int file_ = -1;
};

struct Tensor {
  std::string dtype;  // as safetensors names it
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  int64_t bytes = 0, item = 0;  // of all of it; of one element
};

class TensorFile {
 public:
  TensorFile(const std::string& path, const std::string& name);
  // The tensor, which must exist with this dtype and shape, aligned to its items and to `alignment`; Failure names file and
  // tensor.
  const Tensor& tensor(const std::string& name, const char* dtype, const std::vector<int64_t>& shape,
                       int64_t alignment) const;
  int64_t size() const { return map_.size(); }
  void release() const { map_.release(); }
  void check_length() const;  // Failure when the file is shorter than it was

 private:
  std::string name_;
  Mapping map_;
  std::unordered_map<std::string, Tensor> tensors_;
};

std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace eyespot

#endif
