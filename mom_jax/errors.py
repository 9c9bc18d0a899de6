"""The one exception type for mistakes a user can make and mend."""

import os


class InputError(ValueError):
    """Bad input: names the field, the value and the remedy in one line.

    The command line prints it as a single line and exits with status 2; library
    users see an ordinary ``ValueError``.

    Example:
        >>> raise InputError("topk", 5, "must lie between 1 and num_memories (4)")
        Traceback (most recent call last):
        ...
        mom_jax.errors.InputError: topk=5: must lie between 1 and num_memories (4)
    """

    def __init__(self, field: str, value: object, remedy: str):
        self.field, self.value, self.remedy = field, value, remedy
        shown = str(value) if isinstance(value, str | os.PathLike) else repr(value)
        super().__init__(f"{field}={shown}: {remedy}")

    def __reduce__(self):
        # Exceptions pickle by their message alone; this one must cross from worker processes whole.
        return type(self), (self.field, self.value, self.remedy)
