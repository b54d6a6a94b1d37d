"""`python -m fallline` is the command `fallline`, as `torchrun -m fallline train` needs it."""

from fallline.bench.cli.app import main

if __name__ == "__main__":
    main()
