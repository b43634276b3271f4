"""PyTorch implementations ("twins") of some methods, with the keys of their published weights.

Tests compare the JAX networks with them, at any size and in float64.
"""
