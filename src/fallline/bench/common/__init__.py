"""What every part of the tool needs: search spaces, seeds, names, files and numbers in words.

Imports nothing of ours.
"""
