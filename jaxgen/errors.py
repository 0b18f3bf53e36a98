"""Mistakes that a user can cause."""


class UserError(Exception):
    """One clear line: what is wrong, what was expected, what to do. Command lines print it without a traceback."""
