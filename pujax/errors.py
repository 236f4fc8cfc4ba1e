"""The errors that a user can mend. Everything else is a failure of the machine or of pujax."""


class UserError(ValueError):
    """A wrong input: the message is one line that names the file or option, what is expected, and the remedy.

    The command line ends with status 2 on it, so that a scheduler does not start the job again; on all other errors,
    a file system that is away among them, it ends with status 1.
    """
