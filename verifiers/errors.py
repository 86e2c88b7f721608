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


class WrongValue(UserError):
    """The value of one key of the job is wrong, which only what it names could tell; the job file's line is found by it."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)
        self.key = key  # dotted: "reward.options.weights"
        self.message = message

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


def cause_line(error: BaseException) -> str:
    """The line of an error that names its cause: Ray puts the trace of the other process before it, and pydantic a link
    and what it was given behind it.

    >>> cause_line(ValueError("1 validation error for VllmConfig\\n  Value error, too long [type=value_error, input=1]"))
    'Value error, too long'
    """
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith("For further information visit")]
    return telling[-1].split(" [type=")[0] if telling else ""


def opening_line(error: BaseException) -> str:
    """The first line of an error whose cause stands there, such as transformers' own; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
