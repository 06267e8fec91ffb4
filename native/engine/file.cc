// file.cc: mmap, and safetensors headers; every size is checked against the file before it is believed.
#include "engine/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/fail.h"
#include "engine/json.h"
#include "eyespot/limits.h"

namespace eyespot {
namespace {

struct ItemBytes {
  const char* dtype;
  int64_t bytes;
};
constexpr ItemBytes ITEM_BYTES[] = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},     {"I32", 4},
                                    {"I16", 2}, {"I8", 1},  {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};

Tensor read_entry(const std::string& file, const std::string& key, const Json& item, const Mapping& map, int64_t base) {
  const std::string where = file + ": tensor '" + shown(key) + "'";
  if (static_cast<int64_t>(key.size()) > limits::NAME_CHARS) fail(where + ": name is too long");
  if (item.object(where).size() != 3) fail(where + ": malformed entry", Nothing{}, "dtype, shape and data_offsets");
  Tensor tensor;
  tensor.dtype = item.at("dtype", where).string(where + ": dtype");
  const auto* known = std::find_if(std::begin(ITEM_BYTES), std::end(ITEM_BYTES),
                                   [&](const ItemBytes& each) { return tensor.dtype == each.dtype; });
  if (known == std::end(ITEM_BYTES)) fail(where + ": unknown dtype", tensor.dtype);
  const Json::Array& shape = item.at("shape", where).array(where + ": shape");
  if (static_cast<int64_t>(shape.size()) > limits::RANK) fail(where + ": too many dimensions");
  int64_t count = 1;
  for (const Json& size : shape) {
    tensor.shape.push_back(size.integer(where + ": shape", 0, limits::TENSOR_ELEMENTS));
    count = product(count, tensor.shape.back(), "tensor");
  }
  if (count > limits::TENSOR_ELEMENTS) fail(where + ": too large", count);
  const Json::Array& offsets = item.at("data_offsets", where).array(where + ": data_offsets");
  if (offsets.size() != 2) fail(where + ": bad data_offsets");
  const int64_t room = map.size() - base;
  const int64_t start = offsets[0].integer(where + ": data_offsets", 0, room);
  const int64_t stop = offsets[1].integer(where + ": data_offsets", start, room);
  tensor.bytes = stop - start, tensor.item = known->bytes;
  if (tensor.bytes != count * known->bytes)
    fail(where + ": size and shape disagree", str(tensor.bytes) + " bytes", str(count * known->bytes) + " bytes");
  tensor.data = map.data() + base + start;
  return tensor;
}

const char* likely_cause(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR: return "the directory is not a bundle, or a file of it is missing";
    case EACCES:
    case EPERM: return "this user may not read it, or a directory above it";
    case ENOMEM: return "the machine has no memory left for it";
    default: return nullptr;
  }
}

}  // namespace

Mapping Mapping::file(const std::string& path, const std::string& name) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe nobody writes to opens at once
  struct stat status{};
  int fault = file < 0 || ::fstat(file, &status) != 0 ? errno : 0;
  void* data = MAP_FAILED;
  if (fault == 0 && S_ISREG(status.st_mode) && status.st_size > 0) {
    data = ::mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    if (data == MAP_FAILED) fault = errno;
  }
  Mapping map;
  map.file_ = file;
  if (fault != 0)
    fail(shown(name) + ": cannot be read (" + std::strerror(fault) + ")", Nothing{}, Nothing{}, likely_cause(fault));
  if (data == MAP_FAILED) fail(shown(name) + (S_ISREG(status.st_mode) ? ": is empty" : ": not a regular file"));
  map.data_ = static_cast<std::byte*>(data);
  map.size_ = status.st_size;
  return map;
}

Mapping Mapping::memory(int64_t bytes, const char* what) {
  void* data = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    fail(std::string("no memory for ") + what, std::strerror(errno), str(bytes) + " bytes",
         "the machine has less to give");
  Mapping map;
  map.data_ = static_cast<std::byte*>(data);
  map.size_ = bytes;
  return map;
}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(file_, other.file_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) ::munmap(data_, static_cast<size_t>(size_));
  if (file_ >= 0) ::close(file_);
}

void Mapping::release() const {
  if (data_ != nullptr && file_ >= 0) ::madvise(data_, static_cast<size_t>(size_), MADV_DONTNEED);
}

int64_t Mapping::file_size() const {
  struct stat status{};
  return ::fstat(file_, &status) == 0 ? status.st_size : -1;
}

TensorFile::TensorFile(const std::string& path, const std::string& name)
    : name_(name), map_(Mapping::file(path, name)) {
  uint64_t length = 0;
  if (map_.size() >= 8) std::memcpy(&length, map_.data(), 8);  // little-endian, as every machine we build for
  if (map_.size() < 8 || length > static_cast<uint64_t>(limits::HEADER_BYTES) ||
      static_cast<int64_t>(length) > map_.size() - 8)
    fail(name + ": header does not fit", str(map_.size()) + " bytes, header of " + str(length), "a safetensors file",
         "the file is cut off or is not safetensors");
  const int64_t base = 8 + static_cast<int64_t>(length);
  const Json header = Json::parse(map_.text().substr(8, length), name.c_str());
  const Json::Object& members = header.object(name + ": header");
  if (static_cast<int64_t>(members.size()) > limits::TENSORS + 1) fail(name + ": too many tensors", members.size());
  std::vector<std::pair<int64_t, int64_t>> spans;
  for (const auto& [key, item] : members) {
    if (key == "__metadata__") {
      for (const auto& [field, value] : item.object(name + ": __metadata__"))
        value.string(name + ": __metadata__ '" + shown(field) + "'");
      continue;
    }
    const Tensor& tensor = tensors_[key] = read_entry(name, key, item, map_, base);
    const int64_t start = tensor.data - map_.data();
    spans.emplace_back(start, start + tensor.bytes);
  }
  std::sort(spans.begin(), spans.end());
  int64_t end = base;
  for (const auto& [start, stop] : spans) {
    if (start < end && stop > start) fail(name + ": tensors overlap", Nothing{}, Nothing{}, "the header is corrupted");
    end = std::max(end, stop);
  }
}

const Tensor& TensorFile::tensor(const std::string& name, const char* dtype, const std::vector<int64_t>& shape,
                                 int64_t alignment) const {
  const std::string where = name_ + ": tensor '" + shown(name) + "'";
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail(where + " is missing");
  const Tensor& tensor = found->second;
  if (tensor.dtype != dtype || tensor.shape != shape)
    fail(where + " differs from program.json", tensor.dtype + " " + shape_text(tensor.shape),
         dtype + (" " + shape_text(shape)));
  alignment = std::max(alignment, tensor.item);
  if ((tensor.data - map_.data()) % alignment != 0)
    fail(where + " is not aligned", tensor.data - map_.data(), "a multiple of " + str(alignment));
  return tensor;
}

void TensorFile::check_length() const {
  if (const int64_t now = map_.file_size(); now < map_.size())
    fail(name_ + ": the file shrank while it was in use", str(now) + " bytes", str(map_.size()) + " bytes",
         "it was written to in place: put new files beside old ones and rename them");
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace eyespot
