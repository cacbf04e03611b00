"""The one exception for everything a user can cause or mend."""


class UserError(Exception):
    """A failure with a known cause: shown as one line, without a traceback.

    `message` says what failed and where; `hint` what to do next.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message
