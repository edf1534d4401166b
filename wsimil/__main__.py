"""`python -m wsimil` is the command line."""

from wsimil.cli import main

if __name__ == "__main__":
    main()
