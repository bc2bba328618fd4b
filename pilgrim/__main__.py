"""`python -m pilgrim` is the `pilgrim` command."""

from pilgrim.cli import main

if __name__ == "__main__":
    main()
