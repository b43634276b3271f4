"""The networks of some methods in PyTorch, under the keys of their published weights.

They are what our networks are compared with, live, at any size and in double precision.
"""
