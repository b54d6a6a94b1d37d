"""Holding a race: which run comes next, on which worker, and what is kept.

Imports `protocol`, `runs`, `contenders`, `tasks` and `common`, not the report.
"""
