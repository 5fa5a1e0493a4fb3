"""Try every architecture of transformers, and write the table at the end of docs/reference/families.md.

    python scripts/maintenance/document_families.py                  # all, about an hour on two cores
    python scripts/maintenance/document_families.py llava qwen3_vl   # these rows anew; the others stay

Each type's own default configuration is tried; where transformers' defaults contradict each other, `CORRECTIONS` has
the numbers of a published checkpoint or smaller ones.
"""

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from raysearch.errors import first_line
from raysearch.files import write_text
from raysearch.pruning.self_check import NO_EXPERTS, Verdict, examine

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "families.md"
HEADING = "## Every architecture of transformers\n"
INTRODUCTION = """
Written by `python scripts/maintenance/document_families.py`, which tries each type of transformers {version} as the
commands do before they load a model: a tiny copy with random weights is pruned and compared with itself, layers
skipped, units or hidden channels zeroed or tokens routed among fewer experts, and every tensor of the real size is
compared on the meta device. "right" means equal logits, with the cache and without; "none" that there are no experts.
*picture* says whether a picture was among the inputs. All other entries are the line that a person gets, before any
weight is read.
{num_lvlms} of {all_lvlms} vision-language types and {num_decoders} of {all_decoders} text decoders are right in at
least one mode; {num_untried} types have no row, since they have not been tried here.
"""
COLUMNS = "| type | layers | widths | experts | hidden size | picture |\n|---|---|---|---|---|---|\n"
LVLMS = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
DECODERS = tuple(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in LVLMS)
_SWA = ["sliding_attention", "sliding_attention", "full_attention"] * 2
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [16, 24, 24]}
CORRECTIONS: dict[str, dict[str, Any]] = {
    "aya_vision": {"vision_config.num_attention_heads": 16},
    "gemma3": {"vision_config.image_size": 896},
    "qwen2_5_omni_thinker": {
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "text_config.rope_parameters": _MROPE,
    },
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 151652, "vision_end_token_id": 151653},
    "chameleon": {"vocabulary_map": {"<image>": 8711, "IMGIMGBSZ": 8710}},
    "emu3": {"vocabulary_map": {"<image>": 5, "<|extra_200|>": 6}},
    "hunyuan_vl": {"text_config.head_dim": 128},
    "cohere_compass": {
        "text_config.num_hidden_layers": 6,
        "text_config.layer_types": _SWA,
        "text_config.rope_parameters": {"full_attention": _MROPE, "sliding_attention": _MROPE},
    },
    "deepseek_ocr2": {
        "text_config.mlp_layer_types": ["dense"] + ["sparse"] * 11,
        "text_config.num_experts_per_tok": 2,
        "text_config.n_routed_experts": 4,
    },
    "granite4_vision": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[0, 1], [-1, 3]],
        "spatial_vision_layer": -1,
        "spatial_target_layers": [2, 3, 4, 5],
        "vision_config.image_size": 56,
        "vision_config.patch_size": 14,
        "image_grid_pinpoints": [[56, 56]],
    },
    "gemma4": {"vision_config": {"model_type": "gemma4_vision"}},
    **{
        name: {"text_config.rope_parameters": {**_MROPE, "partial_rotary_factor": 1.0}}
        for name in (*("glm4v", "glm46v", "glm_ocr", "glm4v_moe", "glmga", "paddleocr_vl", "qwen2_vl", "qwen2_5_vl"),)
    },
}
"""By type, values that replace those of the default configuration, by dotted names."""


def config_of(model_type: str) -> PretrainedConfig:
    """The default configuration, corrected; a tower whose outputs are not the decoder's width gets that width."""
    cls = CONFIG_MAPPING[model_type]
    default = cls()
    values, text = default.to_dict(), default.get_text_config(decoder=True)
    corrections = dict(CORRECTIONS.get(model_type, {}))
    vision = values.get("vision_config")
    if isinstance(vision, dict) and "out_hidden_size" in vision:
        corrections = {"vision_config.out_hidden_size": text.hidden_size} | corrections
    if not corrections:
        return default
    for name, value in corrections.items():
        *parents, leaf = name.split(".")
        part = values
        for parent in parents:
            part = part.setdefault(parent, {})
        part[leaf] = value
    values.pop("model_type", None)
    return cls(**values)


def row(model_type: str) -> str:
    """The table's row of a type."""
    try:
        verdict = examine(config_of(model_type))
    except Exception as error:  # a default configuration that its own class refuses
        reason = f"its default configuration is refused ({first_line(error)})"
        verdict = Verdict(reason, reason, reason, reason, picture=False)
    cells = [reason or "right" for reason in (verdict.layers, verdict.widths, verdict.experts, verdict.hidden)]
    picture = "yes" if verdict.picture else "no"
    cells = [cells[0], *("the same" if cell == cells[0] != "right" else cell for cell in cells[1:])]
    cells[2] = "none" if verdict.experts == NO_EXPERTS else cells[2]
    return f"| `{model_type}` | {' | '.join(_plain(cell) for cell in cells)} | {picture} |"


def _plain(reason: str) -> str:
    """A reason in a cell of a table, without the list of known families."""
    return re.sub(r"; known families: .*", "", reason).replace("|", "\\|")[:220]


def table(types: tuple[str, ...], rows: dict[str, str]) -> str:
    """The rows of some types, those that were tried."""
    return COLUMNS + "\n".join(rows[name] for name in sorted(types) if name in rows) + "\n"


def is_right(found: str) -> bool:
    """Whether a row has a mode that is right."""
    return "| right |" in found


def main(names: list[str]) -> None:
    """Try the types, and write the page after each, so that what is done is kept."""
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    for name in names or [*LVLMS, *DECODERS]:
        found = row(name)
        print(found, flush=True)
        written, _, tables = PAGE.read_text(encoding="utf-8").partition(HEADING)
        write_text(PAGE, written.rstrip() + "\n\n" + HEADING + page(rows_of(tables) | {name: found}))


def rows_of(tables: str) -> dict[str, str]:
    """The rows of the page's tables by type."""
    return {found[1]: found[0] for found in re.finditer(r"^\| `([^`]+)` \|.*$", tables, re.MULTILINE)}


def page(rows: dict[str, str]) -> str:
    """What the page says below its heading."""
    import transformers

    right = {name for name, found in rows.items() if is_right(found)}
    numbers = {
        "num_lvlms": len(right & set(LVLMS)),
        "all_lvlms": len(LVLMS),
        "num_decoders": len(right & set(DECODERS)),
        "all_decoders": len(DECODERS),
        "num_untried": len({*LVLMS, *DECODERS} - rows.keys()),
    }
    introduction = INTRODUCTION.format(version=transformers.__version__, **numbers)
    parts = (
        introduction,
        "### Vision-language models\n",
        table(LVLMS, rows),
        "### Text decoders\n",
        table(DECODERS, rows),
    )
    return "\n".join(parts)


if __name__ == "__main__":
    main(sys.argv[1:])
