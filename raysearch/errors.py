"""User-input errors; the CLI prints them as one line and exits with status 2."""


class InputError(ValueError):
    """A wrong file, key, value or command. The message names file, key and value, and the way out."""


class Refused(InputError):
    """A mistake that only showed once the model had been looked at: no trial of the study can be run."""


def first_line(error: BaseException) -> str:
    """An error in one line of bearable length."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
