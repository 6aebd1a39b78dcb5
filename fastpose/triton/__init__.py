"""Matmul-bound kernels in Triton. Importing this package does not import Triton: its modules do, at the first launch."""
