"""`python -m casckpt` is the `casckpt` command."""

from casckpt.cli import main

if __name__ == "__main__":
    main()
