"""LRBench for PyTorch Lightning: verify, rank and find learning-rate policies."""

__version__ = "0.1.0"
