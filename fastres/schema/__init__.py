"""What an operator takes, before anything computes it: schemas, checks, output shapes, formats.

Python's side of csrc/ops.cpp, csrc/checks.h, csrc/packed_weight.h and csrc/chain.h.
"""
