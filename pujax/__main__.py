"""`python -m pujax` is the `pujax` command."""

from pujax.command import main

if __name__ == "__main__":
    main()
