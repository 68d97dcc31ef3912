"""ONNX graphs: export of torch modules, lowering to integer products, conversion of boosted trees."""
