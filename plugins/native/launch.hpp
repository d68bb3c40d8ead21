// What a kernel call is: plugins/launch.py and plugins/kernel_call.py in C++. No TensorRT and no CUDA in here.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "error.hpp"

namespace deltart {

enum class DType { f32, bf16, i8, i32, f16 };

inline std::string name(DType type) {
  static const char* const names[] = {"f32", "bf16", "i8", "i32", "f16"};
  return names[static_cast<int>(type)];
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

using Names = std::initializer_list<std::string_view>;

// Sizes, types and addresses of one call of an op, by the names of its contract.
struct Call {
  std::map<std::string_view, int64_t> sizes;  // axes and integer attributes
  std::map<std::string_view, float> reals;    // float attributes
  std::map<std::string_view, DType> dtypes;   // by input tensor
  std::map<std::string_view, uint64_t> at;    // device addresses: tensors and "workspace"; empty while a plan is built
  int64_t shared_limit = 0;                   // bytes of shared memory that the device gives a block
  int64_t capability = 0;                     // compute capability times ten (90 for 9.0)
  int64_t multiprocessors = 0;

  int64_t size(std::string_view axis) const { return find(sizes, axis); }
  float real(std::string_view attribute) const { return find(reals, attribute); }
  DType dtype(std::string_view tensor) const { return find(dtypes, tensor); }
  uint64_t address(std::string_view tensor) const { return find(at, tensor); }

 private:
  template <class T>
  static T find(const std::map<std::string_view, T>& values, std::string_view key) {
    auto found = values.find(key);
    if (found == values.end()) throw Error("a call without " + std::string(key), "every name of the op's contract");
    return found->second;
  }
};

// One kernel argument by value; `kind` is what the kernel reads.
struct Argument {
  enum Kind { pointer, int32, int64, float32 } kind;
  union Value {
    uint64_t address;
    int64_t count;
    int32_t integer;
    float real;
  } value;
};

// The arguments of a launch, appended in the kernel's order.
struct Arguments {
  std::vector<Argument> list;

  Arguments& pointers(const Call& call, Names tensors) {
    for (std::string_view tensor : tensors) list.push_back({Argument::pointer, {call.address(tensor)}});
    return *this;
  }

  Arguments& address(uint64_t value) {
    list.push_back({Argument::pointer, {value}});
    return *this;
  }

  // Null where the call does not have the tensor.
  Arguments& optional(const Call& call, Names tensors) {
    for (std::string_view tensor : tensors)
      list.push_back({Argument::pointer, {call.at.count(tensor) ? call.address(tensor) : 0}});
    return *this;
  }

  Arguments& ints(std::initializer_list<int64_t> values) {
    for (int64_t value : values) {
      Argument argument{Argument::int32, {0}};
      argument.value.integer = static_cast<int32_t>(value);
      list.push_back(argument);
    }
    return *this;
  }

  Arguments& count(int64_t value) {
    Argument argument{Argument::int64, {0}};
    argument.value.count = value;
    list.push_back(argument);
    return *this;
  }

  Arguments& real(float value) {
    Argument argument{Argument::float32, {0}};
    argument.value.real = value;
    list.push_back(argument);
    return *this;
  }
};

// One kernel launch: entry point, geometry, bytes of dynamic shared memory, arguments by value.
struct Launch {
  std::string kernel;
  int64_t grid[3];
  int64_t block;
  int64_t shared_bytes;
  Arguments args;
};

// The .cu file in the op's folder that holds the kernels, and their launches in order.
struct Launches {
  const char* source;
  std::vector<Launch> list;
};

}  // namespace deltart
