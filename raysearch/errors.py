"""The one error a person can cause; the doors turn it into a plain line and exit status 2."""


class InputError(ValueError):
    """A wrong file, key, value or command. The message names file, key and value, and the way out."""


class Refused(InputError):
    """A mistake that only showed once the model had been looked at: no trial of the study can be run."""
