"""`fallline check`: what everybody expects of an optimizer, as programs of ten lines that any class can be put to.

Imports the library, and its own promises.
"""
