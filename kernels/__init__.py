"""One file per operation: a faster body for the same numbers.

devices serves them all; lanes those that keep rows in registers; walk, course, strip and room the
blocks of convolutions.
"""
