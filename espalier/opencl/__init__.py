"""Networks as OpenCL kernels, for inference: written through TVM, and run without it."""
