"""Logging: the `raysearch` logger writes to stderr; `quiet` silences transformers."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from raysearch.errors import InputError, printable

LEVEL_VARIABLE = "RAYSEARCH_LOG_LEVEL"
LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR}

logger = logging.getLogger("raysearch")


class StderrHandler(logging.Handler):
    """Prints `raysearch: warning: MESSAGE`, each line once: the driver and the workers find the same unusable rows."""

    def __init__(self) -> None:
        super().__init__()
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print to what `sys.stderr` is now: rich replaces it while the live view is on."""
        try:
            line = f"raysearch: {record.levelname.lower()}: {printable(' '.join(record.getMessage().split()))}"
            if line not in self._printed:
                self._printed.add(line)
                print(line, file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def configure(verbosity: int = 0) -> int:
    """Log to stderr from a level on: INFO for a verbosity of 1, DEBUG above, else what RAYSEARCH_LOG_LEVEL says.

    Returns:
        `verbosity`, so that it can be the callback of an option.

    Raises:
        InputError: RAYSEARCH_LOG_LEVEL names no level.
    """
    name = os.environ.get(LEVEL_VARIABLE) or "WARNING"
    if name.upper() not in LEVELS:
        raise InputError(f"{LEVEL_VARIABLE} {name!r}: no such level; known are {', '.join(LEVELS)}")
    logger.setLevel({0: LEVELS[name.upper()], 1: logging.INFO}.get(verbosity, logging.DEBUG))
    others = [handler for handler in logger.handlers if not isinstance(handler, StderrHandler)]
    logger.handlers[:] = [*others, StderrHandler()]
    return verbosity


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of transformers inside; as before outside."""
    import torch
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not torch.cuda.is_available():  # else DeepSpeed, which accelerate imports to save, announces the CPU on stdout
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
