"""Model families, the layout of their decoder layers, and loading a model from its folder."""

from raysearch.models.family import Family, family_for
from raysearch.models.layout import Layout, UnitKind, decoder_layout, layout_of
from raysearch.models.loading import ProcessorLike, load, load_config
from raysearch.models.transformers_classes import empty_model, model_class

__all__ = [
    "Family",
    "Layout",
    "ProcessorLike",
    "UnitKind",
    "decoder_layout",
    "empty_model",
    "family_for",
    "layout_of",
    "load",
    "load_config",
    "model_class",
]
