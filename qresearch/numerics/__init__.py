"""Pure arrays: grids, rounding, the fake-quantization primitive, range calibration and codes. Depends on jax only."""
