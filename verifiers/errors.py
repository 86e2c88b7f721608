"""The errors that are for the user: one line, no stack trace, exit status 2."""


class UserError(Exception):
    """The input is wrong; the message says what, where (file, line or key) and what to do."""


class WrongOption(UserError):
    """One option of a verifier is wrong; `option` is its dotted name, by which a job file's line is found."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(option, message)
        self.option = option
        self.message = message

    def __str__(self) -> str:
        return self.message
