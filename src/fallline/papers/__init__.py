"""Research on top of the tool: the papers' experiments, their claims, and pictures.

Imports the tool and the library; neither imports this package, and its commands reach `fallline` as entry points.
"""
