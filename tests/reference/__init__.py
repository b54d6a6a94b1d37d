"""The papers' equations once more, slowly: plain Python floats and loops, nothing of fallline.

Nor of torch, but in lodo.py, whose meta-gradient is autograd's, through the step itself.

Every other class here holds its parameters as lists of floats (Python's float is IEEE double precision) and is fed
gradients as lists of the same shape. A test runs one of them beside an optimizer of the library and compares the paths.
"""
