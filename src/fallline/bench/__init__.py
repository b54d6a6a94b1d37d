"""`fallline race`: a fair comparison of optimizers. Needs the extra: `pip install "fallline[bench]"`.

The tool imports public names of the library only. Each of its packages imports only those on lower floors.
"""
