"""What the commands share: how they call themselves, a parser whose mistakes are the user's, and the exit status."""

import argparse
import errno
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


def add_network(parser: argparse.ArgumentParser, *, files: str = "weights file", unit: str = "") -> None:
    """Add the arguments that name a network.

    Args:
        parser: gets the arguments.
        files: what else may stand for a work directory.
        unit: an example of a unit beyond the usual ones.
    """
    add = parser.add_argument
    add("model", metavar="MODEL", help=f"work directory (its student), or {files}")
    add("--unit", default="", metavar="NAME", help="of a work directory instead of its student: teacher, "
        f"baselines/random, {unit}...")  # fmt: skip
    add("--network", default="", metavar="NAME", help="what network a PyTorch state dict is of, such as resnet18; it "
        "sees images as torchvision's do")  # fmt: skip
    add("--class_names", metavar="FILE", help="text file with one name a line, in the order of the outputs, where the "
        "model does not know them")  # fmt: skip


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a classifier, a network or an exported file, and how it is run."""
    files = "weights file, or exported file: .onnx, .tflite, .stablehlo, _torch.safetensors"
    add_network(parser, files=files, unit="export/student.onnx, ")
    add = parser.add_argument
    add("--batch_size", type=positive, default=512, metavar="N", help="images a forward pass; changes no result "
        "(default: 512)")  # fmt: skip
    add("--compute_dtype", default="", choices=("float32", "bfloat16"), help="of a network's forward pass (default: "
        "as the work directory's job, else bfloat16 on GPUs and TPUs)")  # fmt: skip


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Call `main` with the command line; what has a line of its own, see `outcome`, ends with that and its status."""
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit("pujax: stopped")
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
        sys.exit(1)
    except Exception as error:
        status, text = outcome(error)
        if not text:
            raise
        print(f"pujax: {text}", file=sys.stderr)
        sys.exit(status)


def outcome(error: BaseException) -> tuple[int, str]:
    """Return the exit status for an error, and the line that tells of it; no line where nothing better is known."""
    if isinstance(error, UserError):
        return 2, in_one_line(error)
    if full := _full_disk(error):
        return 1, in_one_line(full)
    if isinstance(error, OSError) and error.filename:
        return 1, in_one_line(f"{error.filename}: {error.strerror}; mend that, and give the same command again")
    return 1, ""


def in_one_line(text: object) -> str:
    """Return a text without its line breaks."""
    return " ".join(str(text).split())


def _full_disk(error: BaseException | None) -> str:
    """Return one line if a full disk is what an error came from, whichever library met it; else ""."""
    while error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            where = getattr(error, "filename", None) or "the results"
            return f"no space left on the disk of {where}; make room, and give the same command again"
        error = error.__cause__ or error.__context__
    return ""
