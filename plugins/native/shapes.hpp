// What TensorRT asks about an op's tensors, answered from its contract: OpSpec and trt_plugin.py in C++.
#pragma once
#include <algorithm>
#include <optional>

#include "contract.hpp"

namespace deltart {

// The attributes of one node: integers by name, reals by name.
struct Attributes {
  std::map<std::string_view, int64_t> integers;
  std::map<std::string_view, float> reals;
};

// Axis sizes by name; throws where two inputs disagree on a size. `shapes`: one per input.
inline std::map<std::string_view, int64_t> bind_axes(const Op& op, const std::vector<std::vector<int64_t>>& shapes,
                                                     const Attributes& attributes) {
  std::map<std::string_view, int64_t> sizes = attributes.integers;
  for (size_t i = 0; i < op.inputs.size(); ++i) {
    const Input& input = op.inputs[i];
    std::string where = op.name + "." + input.name;
    if (shapes[i].size() != input.axes.size())
      throw Error(where + ": rank " + std::to_string(shapes[i].size()), "rank " + std::to_string(input.axes.size()));
    for (size_t a = 0; a < input.axes.size(); ++a) {
      auto [known, is_new] = sizes.emplace(input.axes[a], shapes[i][a]);
      if (!is_new && known->second != shapes[i][a])
        throw Error(where + ": axis " + input.axes[a] + " is " + std::to_string(shapes[i][a]),
                    std::to_string(known->second));
    }
  }
  return sizes;
}

// Sizes that may be symbolic. `Algebra` has a type Expression, and constant(n), add(x, y) and multiply(x, y) of it.
template <class Algebra>
class SymbolicShapes {
 public:
  using Expression = typename Algebra::Expression;

  SymbolicShapes(const Op& op, const std::vector<std::vector<Expression>>& shapes, const Attributes& attributes,
                 Algebra algebra)
      : algebra_(algebra) {
    for (auto [axis, size] : attributes.integers) sizes_.emplace(axis, Size{size, {}});
    for (size_t i = 0; i < op.inputs.size(); ++i)
      for (size_t a = 0; a < op.inputs[i].axes.size(); ++a)
        sizes_.emplace(op.inputs[i].axes[a], Size{0, shapes[i][a]});
  }

  Expression operator()(const Sum& sum) const {
    Size total{0, {}};
    for (const Product& product : sum) {
      Size term{1, {}};
      for (const Factor& factor : product)
        term = combine(term, factor.axis.empty() ? Size{factor.number, {}} : sizes_.at(factor.axis), 1);
      total = combine(total, term, 0);
    }
    return total.symbol ? *total.symbol : algebra_.constant(total.number);
  }

 private:
  struct Size {
    int64_t number;
    std::optional<Expression> symbol;  // instead of the number
  };

  // The product (neutral: 1) or sum (neutral: 0); numbers are folded, and stand second beside a symbol.
  Size combine(const Size& a, const Size& b, int64_t neutral) const {
    if (!a.symbol && !b.symbol) return {neutral ? a.number * b.number : a.number + b.number, {}};
    const Size &left = a.symbol ? a : b, &right = a.symbol ? b : a;
    if (!right.symbol && right.number == neutral) return left;
    Expression second = right.symbol ? *right.symbol : algebra_.constant(right.number);
    return {0, neutral ? algebra_.multiply(*left.symbol, second) : algebra_.add(*left.symbol, second)};
  }

  Algebra algebra_;
  std::map<std::string_view, Size> sizes_;
};

inline bool accepts(const Op& op, size_t position, std::optional<DType> type, std::optional<DType> first_activation) {
  bool is_input = position < op.inputs.size();
  size_t output = position - op.inputs.size();
  const auto& accepted = is_input ? op.inputs[position].accepted : op.outputs[output].accepted;
  if (!type || std::find(accepted.begin(), accepted.end(), *type) == accepted.end()) return false;
  return !(is_input ? op.inputs[position].activation : op.outputs[output].activation) || type == first_activation;
}

// The position of the input that all activations take their type from.
inline size_t first_activation(const Op& op) {
  auto is_activation = [](const Input& input) { return input.activation; };
  return std::find_if(op.inputs.begin(), op.inputs.end(), is_activation) - op.inputs.begin();
}

// Addresses by tensor; throws where an output that updates an input in place was given another buffer.
inline std::map<std::string_view, uint64_t> addresses(const Op& op, const uint64_t* inputs, const uint64_t* outputs) {
  std::map<std::string_view, uint64_t> at;
  for (size_t i = 0; i < op.inputs.size(); ++i) at[op.inputs[i].name] = inputs[i];
  for (size_t i = 0; i < op.outputs.size(); ++i) {
    const Output& output = op.outputs[i];
    if (output.alias >= 0 && inputs[output.alias] != outputs[i])
      throw Error(op.name + "." + output.name + " has different buffers as input and output",
                  "one buffer, updated in place",
                  "build with PreviewFeature.ALIASED_PLUGIN_IO_10_03 and bind both to one address");
    at[output.name] = outputs[i];
  }
  return at;
}

}  // namespace deltart
