"""Mistakes that a user can cause."""


class UserError(Exception):
    """One clear line: what is wrong, what was expected, what to do. Command lines print it without a traceback.

    Attributes:
      shared: every process of the run raises it, so that all can end in good order.
    """

    def __init__(self, message: str, *, shared: bool = False):
        super().__init__(message)
        self.shared = shared


def install(*packages: str) -> str:
    """Command that installs packages, for a message. It names no extra, so it works beside a checkout and a wheel."""
    return f"pip install {' '.join(packages)}"
