"""qresearch: learnable and mixed-precision quantization research in JAX."""
