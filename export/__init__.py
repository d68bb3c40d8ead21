"""From a checkpoint to ONNX: spec, modules, trace, assemble, lower, bind, check."""
