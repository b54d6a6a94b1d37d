"""The papers' equations once more, slowly: plain Python floats and loops, nothing of fallline and nothing of torch.

Every class here holds its parameters as lists of floats (Python's float is IEEE double precision) and is fed gradients
as lists of the same shape. A test runs one of them beside an optimizer of the library and compares the two paths.
"""
