"""Kernels written in Triton, for what is bound by matrix products. Imported when first needed: Triton is not a dependency."""
