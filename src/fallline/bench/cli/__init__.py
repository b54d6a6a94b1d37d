"""The command line: what is typed, and what the terminal answers.

Imports every other package of the tool; no package of the tool imports this one.
"""
