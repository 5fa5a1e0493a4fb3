"""Where each model family keeps its parts, and loading a model from its folder."""

from raysearch.families.family import Family, family_for
from raysearch.families.known import KNOWN
from raysearch.families.layout import Kind, Layout, Units, layout_of
from raysearch.families.loading import ProcessorLike, load, load_config
from raysearch.families.quiet import quiet
from raysearch.families.stock import empty_model, model_class
from raysearch.model_folder import check_folder

__all__ = [
    "KNOWN",
    "Family",
    "Kind",
    "Layout",
    "ProcessorLike",
    "Units",
    "check_folder",
    "empty_model",
    "family_for",
    "layout_of",
    "load",
    "load_config",
    "model_class",
    "quiet",
]
