"""What is done to any ONNX graph, whether it streams or not: clean-up, folding, sizes that are known."""
