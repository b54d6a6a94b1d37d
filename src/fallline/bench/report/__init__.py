"""What is shown of a race: series, tables and words, on a page, in print and as exports.

Imports `protocol`, `runs`, `contenders` and `common`; it never trains, and does not know where records are kept.
"""
