// Stands for TensorRT: loads the plugin library as its registry does and drives the plugins that stdin describes.
// A line is a call: op, attributes (name value, a value with a point is a float), "|", inputs (type rank sizes
// address), "|", outputs (address), "|", workspace address. For each call the answers; at the end what CUDA was asked.
#include <NvInfer.h>
#include <dlfcn.h>

#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

using namespace nvinfer1;

struct Logger : ILogger {
  void log(Severity severity, const char* text) noexcept override {
    std::cout << "log " << static_cast<int>(severity) << " " << text << "\n";
  }
};

struct Finder : ILoggerFinder {
  Logger logger;
  ILogger* findLogger() override { return &logger; }
};

struct Field {
  std::string name;
  int32_t integer;
  float real;
  bool is_real;
};

std::vector<PluginField> fields_of(const std::vector<Field>& given) {
  std::vector<PluginField> fields;
  for (const Field& field : given) {
    const void* data = field.is_real ? static_cast<const void*>(&field.real) : &field.integer;
    auto type = field.is_real ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32;
    fields.emplace_back(field.name.c_str(), data, type, 1);
  }
  return fields;
}

DynamicPluginTensorDesc read_input(std::istream& in, void*& address) {
  DynamicPluginTensorDesc tensor{};
  int type;
  in >> type >> tensor.desc.dims.nbDims;
  for (int i = 0; i < tensor.desc.dims.nbDims; ++i) in >> tensor.desc.dims.d[i];
  in >> std::hex >> reinterpret_cast<uint64_t&>(address) >> std::dec;
  tensor.desc.type = static_cast<DataType>(type);
  tensor.desc.format = TensorFormat::kLINEAR;
  tensor.min = tensor.max = tensor.opt = tensor.desc.dims;
  return tensor;
}

template <class T>
T* capability(IPluginV3* plugin, PluginCapabilityType type) {
  return static_cast<T*>(plugin->getCapabilityInterface(type));
}

void say_fields(const PluginFieldCollection& fields) {
  for (int i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    std::cout << " " << field.name << " " << static_cast<int>(field.type) << " " << field.length << " ";
    if (!field.data) std::cout << "-";
    else if (field.type == PluginFieldType::kFLOAT32) std::cout << *static_cast<const float*>(field.data);
    else std::cout << *static_cast<const int32_t*>(field.data);
  }
  std::cout << "\n";
}

// A plugin as a plan holds it: created for a build, serialized, created again for running.
IPluginV3* deserialized(IPluginCreatorV3One& creator, const std::vector<Field>& attributes) {
  std::vector<PluginField> fields = fields_of(attributes);
  PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  std::unique_ptr<IPluginV3> built(creator.createPlugin("node", &collection, TensorRTPhase::kBUILD));
  if (!built) return nullptr;
  std::unique_ptr<IPluginV3> copy(built->clone());
  auto* kept = capability<IPluginV3OneRuntime>(copy.get(), PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
  std::cout << "fields";
  say_fields(*kept);
  return creator.createPlugin("node", kept, TensorRTPhase::kRUNTIME);
}

void drive(IPluginV3& plugin, std::istream& in) {
  auto* build = capability<IPluginV3OneBuildV2>(&plugin, PluginCapabilityType::kBUILD);
  auto* core = capability<IPluginV3OneCore>(&plugin, PluginCapabilityType::kCORE);
  std::cout << core->getPluginName() << " " << core->getPluginVersion() << " '" << core->getPluginNamespace() << "'\n";
  std::vector<DynamicPluginTensorDesc> tensors;
  std::vector<PluginTensorDesc> descriptions;
  std::vector<DataType> types;
  std::vector<void*> inputs, outputs;
  for (std::string mark; in >> std::ws, in.peek() != '|';) {
    tensors.push_back(read_input(in, inputs.emplace_back()));
    descriptions.push_back(tensors.back().desc);
    types.push_back(tensors.back().desc.type);
  }
  in.get();
  for (uint64_t address; in >> std::ws, in.peek() != '|';) {
    in >> std::hex >> address;
    outputs.push_back(reinterpret_cast<void*>(address));
  }
  in.get();
  uint64_t workspace;
  in >> std::hex >> workspace;
  int count = static_cast<int>(inputs.size()), results = build->getNbOutputs();
  std::vector<DataType> result_types(results);
  build->getOutputDataTypes(result_types.data(), results, types.data(), count);
  std::cout << "types";
  for (DataType type : result_types) std::cout << " " << static_cast<int>(type);
  std::cout << "\naliases";
  for (int i = 0; i < results; ++i) std::cout << " " << build->getAliasedInput(i);
  std::cout << "\nsupported";
  for (int i = 0; i < count; ++i)
    std::cout << " " << build->supportsFormatCombination(i, tensors.data(), count, results);
  int configured = build->configurePlugin(tensors.data(), count, nullptr, results);
  std::cout << "\nconfigured " << configured << "\n";
  std::cout << "workspace " << build->getWorkspaceSize(tensors.data(), count, nullptr, results) << "\n";
  auto* runtime = capability<IPluginV3OneRuntime>(&plugin, PluginCapabilityType::kRUNTIME);
  std::unique_ptr<IPluginV3> attached(runtime->attachToContext(nullptr));
  runtime = capability<IPluginV3OneRuntime>(attached.get(), PluginCapabilityType::kRUNTIME);
  runtime->onShapeChange(descriptions.data(), count, nullptr, results);
  int status = runtime->enqueue(descriptions.data(), nullptr, inputs.data(), outputs.data(),
                                reinterpret_cast<void*>(workspace), reinterpret_cast<cudaStream_t>(0x55));
  std::cout << "enqueued " << status << "\n";
}

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (!library) return std::cout << dlerror() << "\n", 1;
  static Finder finder;
  reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
  int32_t count = 0;
  auto* creators =
      reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"))(count);
  for (int i = 0; i < count; ++i) {
    auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
    std::cout << "creator " << creator->getPluginName();
    say_fields(*creator->getFieldNames());
  }
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream in(line);
    std::string op;
    in >> op;
    std::vector<Field> attributes;
    for (std::string name, value; in >> name && name != "|";) {
      in >> value;
      attributes.push_back({name, static_cast<int32_t>(std::stod(value)), std::stof(value),
                            value.find_first_of(".e") != std::string::npos});
    }
    for (int i = 0; i < count; ++i) {
      auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
      if (creator->getPluginName() != op) continue;
      std::unique_ptr<IPluginV3> plugin(deserialized(*creator, attributes));
      if (plugin) drive(*plugin, in);
      else std::cout << "no plugin\n";
    }
  }
  void* cuda = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  if (cuda) std::cout << "recorded\n" << reinterpret_cast<const char* (*)()>(dlsym(cuda, "recorded"))();
}
