"""The names of the classes, in the order of a network's outputs."""

from pathlib import Path

from pujax.config import DataConfig
from pujax.errors import UserError


def given_class_names(data: DataConfig) -> tuple[str, ...] | None:
    """Return the names that a job's options give, one a class; None where they give none.

    Raises:
        UserError: the file of names cannot be read, their number is not `data.num_classes`, or two are the same.
    """
    names = data.class_names
    if len(names) == 1 and data.num_classes > 1:
        try:
            lines = Path(names[0]).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"data.class_names is {names[0]!r}, which is no text file that can be read ({type(error).__name__}); "
                "give one with a name a line, or the names as a,b,c"
            ) from error
        names = tuple(line.strip() for line in lines if line.strip())
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
