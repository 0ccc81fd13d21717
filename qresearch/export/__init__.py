"""What leaves the framework: stored models, ONNX, StableHLO, and allocations as other tools take them."""
