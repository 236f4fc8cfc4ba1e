"""The names of the classes, in the order of a network's outputs."""

from etils import epath

from pujax.config import DataConfig
from pujax.errors import UserError


def given_class_names(data: DataConfig) -> tuple[str, ...] | None:
    """Return the names that a job's options give, one a class; None where they give none.

    Raises:
        UserError: the file of names cannot be read, their number is not `data.num_classes`, or two are the same.
    """
    names = data.class_names
    if len(names) == 1 and data.num_classes > 1:
        names = read_names(names[0], "data.class_names")
    if not names:
        return None
    if len(names) != data.num_classes:
        raise UserError(
            f"data.class_names gives {len(names)} names, but data.num_classes is {data.num_classes}; correct one of "
            "them"
        )
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise UserError(f"data.class_names gives {twice!r} twice; every class needs a name of its own")
    return names


def read_names(path: str, option: str) -> tuple[str, ...]:
    """Return the names in a text file, one a line.

    Raises:
        UserError: it cannot be read; the message names the option.
    """
    try:
        lines = epath.Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{option} is {path!r}, which is no text file that can be read ({type(error).__name__}); give one with a "
            "name a line"
        ) from error
    return tuple(line.strip() for line in lines if line.strip())
