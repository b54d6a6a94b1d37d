"""One training run: its loop, checkpoint, processes and loggers, and the identity by which its record is found again.

Imports the library, `contenders`, `tasks` and `common`.
"""
