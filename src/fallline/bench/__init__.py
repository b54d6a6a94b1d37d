"""`fallline race`: a fair comparison of optimizers. Needs the extra: `pip install "fallline[bench]"`."""
