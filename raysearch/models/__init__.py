"""Model families, the layout of their decoder layers, and loading a model from its folder.

The names below are imported when they are first used: counting parameters in this package needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysearch.models.family import Family, family_for
    from raysearch.models.layout import Layout, UnitKind, decoder_layout
    from raysearch.models.loading import ProcessorLike, load, load_config, load_processor
    from raysearch.models.transformers_classes import empty_model, model_class

__all__ = [
    "Family",
    "Layout",
    "ProcessorLike",
    "UnitKind",
    "decoder_layout",
    "empty_model",
    "family_for",
    "load",
    "load_config",
    "load_processor",
    "model_class",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in ("family", "layout", "loading", "transformers_classes"):
            module = import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
