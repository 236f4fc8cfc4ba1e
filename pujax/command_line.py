"""What the commands share: how they call themselves, a parser whose mistakes are the user's, and the exit status."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pujax.errors import UserError


def program(module: str) -> str:
    """Return how the command of a module was started: "pujax evaluate", or "python -m pujax.evaluate"."""
    return sys.argv[0] if sys.argv[0].startswith(("pujax ", "python -m pujax ")) else f"python -m {module}"


class Parser(argparse.ArgumentParser):
    """A parser that keeps the lines of its description, and raises UserError for a wrong command line."""

    def __init__(self, module: str, description: str):
        super().__init__(
            prog=program(module),
            description=description.replace(f"python -m {module}", program(module)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> Any:
        """Raise UserError with argparse's message."""
        raise UserError(f"{message}; see --help")


def positive(text: str) -> int:
    """Return a whole number above 0, as `type` of an argument.

    Raises:
        ValueError: it is none.
    """
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def share(text: str) -> float:
    """Return a number from 0 to 1, as `type` of an argument.

    Raises:
        ValueError: it is none.
    """
    if not 0 <= float(text) <= 1:
        raise ValueError(text)
    return float(text)


positive.__name__, share.__name__ = "positive whole number", "share from 0 to 1"  # for argparse's messages


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a classifier, and how it is run."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="work directory (its student), weights file, or exported file: .onnx, .tflite, "
        ".stablehlo, _torch.safetensors")  # fmt: skip
    add("--unit", default="", metavar="NAME", help="of a work directory instead of its student: teacher, "
        "baselines/random, export/student.onnx, ...")  # fmt: skip
    add("--network", default="", metavar="NAME", help="what network a PyTorch state dict is of, such as resnet18; it "
        "sees images as torchvision's do")  # fmt: skip
    add("--class_names", metavar="FILE", help="text file with one name a line, in the order of the outputs, where the "
        "model does not know them")  # fmt: skip
    add("--batch_size", type=positive, default=512, metavar="N", help="images a forward pass; changes no result "
        "(default: 512)")  # fmt: skip
    add("--compute_dtype", default="", choices=("float32", "bfloat16"), help="of a network's forward pass (default: "
        "as the work directory's job, else bfloat16 on GPUs and TPUs)")  # fmt: skip


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Call `main` with the command line; the user's mistakes become one line and exit status 2."""
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit("pujax: stopped")
    except UserError as error:
        print(f"pujax: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
        sys.exit(1)
    except OSError as error:
        if not error.filename:
            raise
        sys.exit(f"pujax: {error.filename}: {error.strerror}")
