"""The one error that is for the user: one line, no stack trace, exit status 2."""


class UserError(Exception):
    """The input is wrong; the message says what, where (file, line or key) and what to do."""
