"""Networks from outside: ``torch.export`` and ONNX to a float graph, and a graph back to ONNX."""
