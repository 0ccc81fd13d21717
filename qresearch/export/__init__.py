"""Quantized models leave the framework: files for other runtimes, checked by running them there."""
