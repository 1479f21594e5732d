"""The kinds of file that a model comes in: Python source, programs saved by torch.export, ONNX."""
