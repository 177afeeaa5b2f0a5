"""Training in exact fixed point on PyTorch tensors, and in float32 by the same loop."""
