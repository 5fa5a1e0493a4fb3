"""Where each model family keeps its parts, and loading a model from its folder."""

from raysearch.models.family import Family, family_for
from raysearch.models.layout import Kind, Layout, layout_of
from raysearch.models.loading import ProcessorLike, load, load_config
from raysearch.models.transformers_classes import empty_model, model_class

__all__ = [
    "Family",
    "Kind",
    "Layout",
    "ProcessorLike",
    "empty_model",
    "family_for",
    "layout_of",
    "load",
    "load_config",
    "model_class",
]
