"""What the commands beside `pujax.launch` share: a parser whose mistakes are the user's, and the exit status."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pujax.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser that keeps the lines of its description, and raises UserError for a wrong command line."""

    def __init__(self, module: str, description: str):
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> Any:
        """Raise UserError with argparse's message."""
        raise UserError(f"{message}; see --help")


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Call `main` with the command line; the user's mistakes become one line and exit status 2."""
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("pujax: stopped")
    except UserError as error:
        print(f"pujax: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
