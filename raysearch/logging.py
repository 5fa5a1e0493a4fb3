"""Keep transformers from talking while a checkpoint is read or written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of transformers inside; as before outside."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not torch.cuda.is_available():  # else DeepSpeed, which accelerate imports to save, announces the CPU on stdout
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
