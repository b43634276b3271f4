"""Timing of networks, interleaved benchmarks of several models, and their rooflines."""
