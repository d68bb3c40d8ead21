// The contract of an op as data. The table itself is written by contract.py from the OpSpecs at build time.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "launch.hpp"

namespace deltart {

struct Factor {
  std::string axis;  // empty: `number`
  int64_t number;
};

using Product = std::vector<Factor>;
using Sum = std::vector<Product>;

struct Input {
  std::string name;
  bool activation;              // shares one type with the other activations
  std::vector<DType> accepted;
  std::vector<std::string> axes;
};

struct Output {
  std::string name;
  bool activation;
  std::vector<DType> accepted;
  std::vector<Sum> axes;
  int alias;        // the input that it updates in place, or -1
  int type_source;  // the input whose type it has, or -1: the first that is accepted
};

struct Attribute {
  std::string name;
  bool real;
};

struct Op {
  std::string name, folder;
  std::vector<Input> inputs;
  std::vector<Output> outputs;
  std::vector<Attribute> attributes;
};

}  // namespace deltart

#include <deltart_contract.inc>  // OPS, OP_VERSION, PLUGIN_VERSION, CONTRACT_FIELD, CONTRACT_DIGEST
