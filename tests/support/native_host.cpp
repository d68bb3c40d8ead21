// The plugin library without TensorRT, behind a C interface: what the tests compare with Python.
#include <cstdio>
#include <cstring>

#include "../../plugins/native/kernels.hpp"
#include "../../plugins/native/operators.hpp"
#include "../../plugins/native/shapes.hpp"

namespace {

using namespace deltart;

// One call in the order of the contract: all shapes one after the other, types as DType, addresses of the inputs, the
// outputs and the workspace.
struct Given {
  const char* op;
  const int64_t* sizes;
  const int32_t* ranks;
  const int32_t* types;
  const int64_t* integers;
  const float* reals;
  const uint64_t* at;
  int64_t shared_limit, capability, multiprocessors;
};

const Op& op_of(const char* name) {
  for (const Op& op : OPS)
    if (op.name == name) return op;
  throw Error(std::string("no op ") + name);
}

Attributes attributes_of(const Op& op, const Given& given) {
  Attributes attributes;
  size_t integer = 0, real = 0;
  for (const Attribute& attribute : op.attributes) {
    if (attribute.real)
      attributes.reals[attribute.name] = given.reals[real++];
    else
      attributes.integers[attribute.name] = given.integers[integer++];
  }
  return attributes;
}

std::vector<std::vector<int64_t>> shapes_of(const Op& op, const Given& given) {
  std::vector<std::vector<int64_t>> shapes;
  const int64_t* next = given.sizes;
  for (size_t i = 0; i < op.inputs.size(); next += given.ranks[i++]) shapes.emplace_back(next, next + given.ranks[i]);
  return shapes;
}

Call call_of(const Op& op, const Given& given) {
  Attributes attributes = attributes_of(op, given);
  Call call;
  call.sizes = bind_axes(op, shapes_of(op, given), attributes);
  call.reals = attributes.reals;
  for (size_t i = 0; i < op.inputs.size(); ++i) call.dtypes[op.inputs[i].name] = static_cast<DType>(given.types[i]);
  call.at = addresses(op, given.at, given.at + op.inputs.size());
  call.at["workspace"] = given.at[op.inputs.size() + op.outputs.size()];
  call.shared_limit = given.shared_limit;
  call.capability = given.capability;
  call.multiprocessors = given.multiprocessors;
  return call;
}

std::string text_of(const Argument& argument) {
  char text[32];
  uint32_t bits;
  std::memcpy(&bits, &argument.value.real, sizeof bits);
  auto address = static_cast<unsigned long>(argument.value.address);
  switch (argument.kind) {
    case Argument::pointer: std::snprintf(text, sizeof text, " p%lx", address); break;
    case Argument::int32: std::snprintf(text, sizeof text, " i%d", argument.value.integer); break;
    case Argument::int64: std::snprintf(text, sizeof text, " l%ld", static_cast<long>(argument.value.count)); break;
    case Argument::float32: std::snprintf(text, sizeof text, " f%08x", bits); break;
  }
  return text;
}

std::string text_of(const Launches& launches) {
  std::string text = launches.source;
  for (const Launch& launch : launches.list) {
    text += "\n" + launch.kernel;
    for (int64_t size : {launch.grid[0], launch.grid[1], launch.grid[2], launch.block, launch.shared_bytes})
      text += " " + std::to_string(size);
    for (const Argument& argument : launch.args.list) text += text_of(argument);
  }
  return text;
}

struct Text {  // symbolic sizes as text
  using Expression = std::string;
  std::string constant(int64_t number) const { return std::to_string(number); }
  std::string add(const std::string& a, const std::string& b) const { return "(" + a + "+" + b + ")"; }
  std::string multiply(const std::string& a, const std::string& b) const { return "(" + a + "*" + b + ")"; }
};

// The length of what `body` returns, copied to `text`; -1 with found, expected and to-do lines where it throws.
template <class Body>
int64_t answer(char* text, size_t room, Body body) {
  std::string result;
  int64_t sign = 1;
  try {
    result = body();
  } catch (const Error& error) {
    result = error.found + "\n" + error.expected + "\n" + error.hint;
    sign = -1;
  }
  text[result.copy(text, room - 1)] = '\0';
  return sign * static_cast<int64_t>(result.size());
}

}  // namespace

extern "C" {

int64_t deltart_ops(char* text, size_t room) {
  return answer(text, room, [] {
    std::string names;
    for (const Op& op : OPS) names += (names.empty() ? "" : " ") + op.name;
    return names;
  });
}

int64_t deltart_launches(const Given* given, char* text, size_t room) {
  return answer(text, room, [&] {
    return text_of(operator_of(given->op).launches(call_of(op_of(given->op), *given)));
  });
}

int64_t deltart_workspace(const Given* given, char* text, size_t room) {
  return answer(text, room, [&] {
    return std::to_string(operator_of(given->op).workspace_bytes(call_of(op_of(given->op), *given)));
  });
}

// Output shapes with every input axis a symbol: "<tensor>.<axis position>".
int64_t deltart_symbolic_shapes(const Given* given, char* text, size_t room) {
  return answer(text, room, [&] {
    const Op& op = op_of(given->op);
    std::vector<std::vector<std::string>> shapes;
    for (const Input& input : op.inputs) {
      shapes.emplace_back();
      for (size_t a = 0; a < input.axes.size(); ++a) shapes.back().push_back(input.name + "." + std::to_string(a));
    }
    SymbolicShapes<Text> evaluate(op, shapes, attributes_of(op, *given), Text{});
    std::string result;
    for (const Output& output : op.outputs)
      for (const Sum& axis : output.axes) result += evaluate(axis) + (&axis == &output.axes.back() ? "\n" : " ");
    return result;
  });
}

// Alias and type source of every output.
int64_t deltart_outputs(const char* name, char* text, size_t room) {
  return answer(text, room, [&] {
    std::string result;
    for (const Output& output : op_of(name).outputs)
      result += output.name + " " + std::to_string(output.alias) + " " + std::to_string(output.type_source) + "\n";
    return result;
  });
}

// Whether a tensor may have a type (-1: one that we do not know) when the first activation has another.
int32_t deltart_accepts(const char* name, int32_t position, int32_t type, int32_t first) {
  auto known = [](int32_t number) { return number < 0 ? std::nullopt : std::optional(static_cast<DType>(number)); };
  return accepts(op_of(name), position, known(type), known(first));
}

// Runs calls through the CUDA driver `library`, kernels loaded first.
int64_t deltart_run(const char* library, const Given* given, int32_t count, void* stream, char* text, size_t room) {
  return answer(text, room, [&] {
    Kernels kernels(library);
    for (int32_t i = 0; i < count; ++i) {
      const Op& op = op_of(given[i].op);
      if (i == 0) kernels.prepare(op.folder);
      Call call = call_of(op, given[i]);
      kernels.describe_device(call);
      kernels.run(op.folder, operator_of(op.name).launches(call), stream);
    }
    return std::string();
  });
}
}
