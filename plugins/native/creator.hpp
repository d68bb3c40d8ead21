// The creator of an op's plugin, from the attributes of an ONNX node or the fields of a plan.
#pragma once
#include <set>

#include "plugin.hpp"

namespace deltart {

// Throws for fields of another contract, or where an attribute is missing.
inline Attributes read_fields(const Op& op, const nvinfer1::PluginFieldCollection& fields) {
  std::map<std::string, double> given;
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const nvinfer1::PluginField& field = fields.fields[i];
    if (!field.data) continue;
    if (field.type == nvinfer1::PluginFieldType::kINT32)
      given[field.name] = *static_cast<const int32_t*>(field.data);
    else if (field.type == nvinfer1::PluginFieldType::kINT64)
      given[field.name] = static_cast<double>(*static_cast<const int64_t*>(field.data));
    else if (field.type == nvinfer1::PluginFieldType::kFLOAT32)
      given[field.name] = *static_cast<const float*>(field.data);
  }
  auto contract = given.find(CONTRACT_FIELD);
  if (contract != given.end() && contract->second != OP_VERSION)
    throw Error("a plan holds " + op.name + " of contract " + std::to_string(static_cast<int64_t>(contract->second)),
                "contract " + std::to_string(OP_VERSION), "build it again");
  Attributes attributes;
  for (const Attribute& attribute : op.attributes) {
    auto found = given.find(attribute.name);
    if (found == given.end()) throw Error(op.name + " came without " + attribute.name, "every attribute of the op");
    if (attribute.real)
      attributes.reals[attribute.name] = static_cast<float>(found->second);
    else
      attributes.integers[attribute.name] = static_cast<int64_t>(found->second);
  }
  return attributes;
}

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const Op& op) : op_(op) {
    for (const Attribute& attribute : op.attributes) {
      auto type = attribute.real ? nvinfer1::PluginFieldType::kFLOAT32 : nvinfer1::PluginFieldType::kINT32;
      fields_.emplace_back(attribute.name.c_str(), nullptr, type, 0);
    }
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  }

  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override {
    return guarded<nvinfer1::IPluginV3*>(nullptr, [&] { return new Plugin(op_, read_fields(op_, *fields), phase); });
  }

  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return op_.name.c_str(); }
  const char* getPluginVersion() const noexcept override { return PLUGIN_VERSION; }
  const char* getPluginNamespace() const noexcept override { return ""; }

 private:
  const Op& op_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

// One creator for each op, in the order of the contract. They are never destroyed: a registry may keep them to the end.
inline const std::vector<nvinfer1::IPluginCreatorInterface*>& creators() {
  static const std::vector<nvinfer1::IPluginCreatorInterface*> all = [] {
    std::vector<nvinfer1::IPluginCreatorInterface*> made;
    for (const Op& op : OPS) made.push_back(new Creator(op));
    return made;
  }();
  return all;
}

}  // namespace deltart
