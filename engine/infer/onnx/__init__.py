"""ONNX graphs: export, lowering of integers, boosted trees."""
