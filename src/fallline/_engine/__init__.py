"""How a kernel runs over many tensors: eagerly, compiled by torch, as C, or as Triton.

The lowest package of the library: it imports nothing of ours.
"""
