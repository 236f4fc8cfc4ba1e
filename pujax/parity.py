"""How far the logits of a network are from those that it was made to give, and what runs it in a process of its own."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pujax.errors import UserError


class Difference(NamedTuple):
    """How far the logits of two networks are apart."""

    largest: float
    relative: float  # to the largest logit
    top1_agreement: float  # share of images put into the same class


def difference(expected: np.ndarray, logits: np.ndarray, *, ties: float) -> Difference:
    """Compare logits float32 [N, K] with those that are expected.

    Args:
        expected: float32 [N, K].
        logits: float32 [N, K].
        ties: classes whose expected logits are within twice this of one another, relative to the largest logit, are
            the same.
    """
    largest, scale = float(np.abs(logits - expected).max()), float(np.abs(expected).max())
    taken = np.take_along_axis(expected, logits.argmax(1)[:, None], 1)[:, 0]
    agrees = taken >= expected.max(1) - 2 * ties * scale
    return Difference(largest, largest / max(scale, 1e-30), float(agrees.mean()))


def run_apart(
    program: str, path: os.PathLike, images: np.ndarray, arguments: Sequence[str], *, what: str, env: Mapping[str, str]
) -> tuple[np.ndarray, str]:
    """Run a Python program that reads a network and images, and writes logits.

    Args:
        program: its text; it gets the paths of the network, of the images (.npy) and for the logits (.npy), and the
            further arguments.
        path: of the network.
        images: [N, H, W, C].
        arguments: further ones.
        what: the network in a message.
        env: variables of its environment beside this process's; JAX runs on the CPU there, for accelerators round
            sums to fewer digits.

    Returns:
        (logits [N, K], what it printed).

    Raises:
        UserError: it fails; the message has its last word.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "images.npy", Path(folder) / "logits.npy"
        np.save(inputs, images)
        command = [sys.executable, "-c", program, str(path), str(inputs), str(outputs), *arguments]
        done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"} | env, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.splitlines() or ["no word on stderr"])[-1]
            raise UserError(f"{what} does not run: {last} (exit status {done.returncode})")
        return np.load(outputs), done.stdout
