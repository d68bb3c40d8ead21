// The IPluginV3 of an op: trt_plugin.py in C++. One class serves every op, from its contract and its launches.
#pragma once
#include <NvInfer.h>

#include <cstring>
#include <memory>

#include "failures.hpp"
#include "kernels.hpp"
#include "operators.hpp"
#include "shapes.hpp"

namespace deltart {

constexpr char DRIVER[] = "libcuda.so.1";

inline Kernels& kernels() {
  static Kernels all(DRIVER);
  return all;
}

inline std::optional<DType> dtype_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT: return DType::f32;
    case nvinfer1::DataType::kBF16: return DType::bf16;
    case nvinfer1::DataType::kHALF: return DType::f16;
    case nvinfer1::DataType::kINT8: return DType::i8;
    case nvinfer1::DataType::kINT32: return DType::i32;
    default: return {};
  }
}

inline nvinfer1::DataType data_type(DType type) {
  switch (type) {
    case DType::bf16: return nvinfer1::DataType::kBF16;
    case DType::f16: return nvinfer1::DataType::kHALF;
    case DType::i8: return nvinfer1::DataType::kINT8;
    case DType::i32: return nvinfer1::DataType::kINT32;
    default: return nvinfer1::DataType::kFLOAT;
  }
}

// TensorRT's dimension expressions, as SymbolicShapes wants them.
struct ExpressionAlgebra {
  using Expression = const nvinfer1::IDimensionExpr*;
  nvinfer1::IExprBuilder* builder;

  Expression constant(int64_t number) const { return builder->constant(number); }
  Expression add(Expression a, Expression b) const {
    return builder->operation(nvinfer1::DimensionOperation::kSUM, *a, *b);
  }
  Expression multiply(Expression a, Expression b) const {
    return builder->operation(nvinfer1::DimensionOperation::kPROD, *a, *b);
  }
};

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuildV2,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  Plugin(const Op& op, Attributes attributes, nvinfer1::TensorRTPhase phase)
      : op_(op), operator_(operator_of(op.name)), attributes_(std::move(attributes)), phase_(phase) {
    using Type = nvinfer1::PluginFieldType;
    for (const Attribute& attribute : op.attributes) {
      const char* field = attribute.name.c_str();
      if (attribute.real)
        fields_.emplace_back(field, &attributes_.reals.at(attribute.name), Type::kFLOAT32, 1);
      else
        fields_.emplace_back(field, &integers_.emplace(field, integer(attribute)).first->second, Type::kINT32, 1);
    }
    fields_.emplace_back(CONTRACT_FIELD, &OP_VERSION, Type::kINT32, 1);
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  }

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }

  nvinfer1::IPluginV3* clone() noexcept override {
    return guarded<nvinfer1::IPluginV3*>(nullptr, [&] { return new Plugin(op_, attributes_, phase_); });
  }

  // Core
  const char* getPluginName() const noexcept override { return op_.name.c_str(); }
  const char* getPluginVersion() const noexcept override { return PLUGIN_VERSION; }
  const char* getPluginNamespace() const noexcept override { return ""; }

  // Build
  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(op_.outputs.size()); }

  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t, const nvinfer1::DataType* inputs,
                             int32_t) const noexcept override {
    for (size_t i = 0; i < op_.outputs.size(); ++i) {
      const Output& output = op_.outputs[i];
      outputs[i] = output.type_source < 0 ? data_type(output.accepted[0]) : inputs[output.type_source];
    }
    return OK;
  }

  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t count, const nvinfer1::DimsExprs*, int32_t,
                          nvinfer1::DimsExprs* outputs, int32_t, nvinfer1::IExprBuilder& builder) noexcept override {
    return guarded(FAILED, [&] {
      std::vector<std::vector<ExpressionAlgebra::Expression>> shapes;
      for (int32_t i = 0; i < count; ++i) shapes.emplace_back(inputs[i].d, inputs[i].d + inputs[i].nbDims);
      SymbolicShapes<ExpressionAlgebra> evaluate(op_, shapes, attributes_, {&builder});
      for (size_t i = 0; i < op_.outputs.size(); ++i) {
        const auto& axes = op_.outputs[i].axes;
        outputs[i].nbDims = static_cast<int32_t>(axes.size());
        for (size_t axis = 0; axis < axes.size(); ++axis) outputs[i].d[axis] = evaluate(axes[axis]);
      }
      return OK;
    });
  }

  int32_t getAliasedInput(int32_t output) noexcept override { return op_.outputs[output].alias; }

  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t,
                                 int32_t) noexcept override {
    const nvinfer1::PluginTensorDesc& desc = tensors[position].desc;
    return desc.format == nvinfer1::TensorFormat::kLINEAR &&
           accepts(op_, position, dtype_of(desc.type), dtype_of(tensors[first_activation(op_)].desc.type));
  }

  // getWorkspaceSize has no error code, so what it would throw is found here, just before.
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t count,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept override {
    return guarded(FAILED, [&] { return workspace_bytes(inputs, count), OK; });
  }

  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t count,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept override {
    return guarded<size_t>(0, [&] { return workspace_bytes(inputs, count); });
  }

  // Runtime
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc*, int32_t, const nvinfer1::PluginTensorDesc*,
                        int32_t) noexcept override {
    return OK;
  }

  // Loads the kernels of a plan that is to run: a capture takes no loading. TensorRT attaches while it builds, too,
  // where no GPU needs to be, and does not survive a null: a failure is reported again by enqueue.
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
    if (phase_ == nvinfer1::TensorRTPhase::kRUNTIME)
      guarded(0, [&] { return kernels().prepare(op_.folder), 0; });
    return clone();
  }

  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

  int32_t enqueue(const nvinfer1::PluginTensorDesc* descriptions, const nvinfer1::PluginTensorDesc*,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override {
    return guarded(FAILED, [&] {
      std::vector<nvinfer1::Dims> dims;
      for (size_t i = 0; i < op_.inputs.size(); ++i) dims.push_back(descriptions[i].dims);
      Call call = call_of(dims, [&](size_t i) { return descriptions[i].type; });
      call.at = addresses(op_, reinterpret_cast<const uint64_t*>(inputs), reinterpret_cast<const uint64_t*>(outputs));
      call.at["workspace"] = reinterpret_cast<uint64_t>(workspace);
      kernels().describe_device(call);
      kernels().run(op_.folder, operator_.launches(call), stream);
      return OK;
    });
  }

 private:
  static constexpr int32_t OK = 0, FAILED = -1;

  int32_t integer(const Attribute& attribute) const {
    return static_cast<int32_t>(attributes_.integers.at(attribute.name));
  }

  template <class TypeOf>
  Call call_of(const std::vector<nvinfer1::Dims>& dims, TypeOf type_of) const {
    Call call;
    std::vector<std::vector<int64_t>> shapes;
    for (size_t i = 0; i < op_.inputs.size(); ++i) {
      shapes.emplace_back(dims[i].d, dims[i].d + dims[i].nbDims);
      std::optional<DType> type = dtype_of(type_of(i));
      if (!type) throw Error(op_.name + "." + op_.inputs[i].name + " has a type that no kernel takes");
      call.dtypes[op_.inputs[i].name] = *type;
    }
    call.sizes = bind_axes(op_, shapes, attributes_);
    call.reals = attributes_.reals;
    return call;
  }

  size_t workspace_bytes(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t count) const {
    std::vector<nvinfer1::Dims> largest;
    for (int32_t i = 0; i < count; ++i) largest.push_back(inputs[i].max);
    return operator_.workspace_bytes(call_of(largest, [&](size_t i) { return inputs[i].desc.type; }));
  }

  const Op& op_;
  const Operator& operator_;
  Attributes attributes_;
  nvinfer1::TensorRTPhase phase_;
  std::map<std::string, int32_t> integers_;  // the attributes at the width in which they are serialized
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace deltart
