"""The rules of a race: the design, the comparison, the verdict and its statistics. Numbers in, numbers out.

Imports `runs` and `common`, and never trains.
"""
