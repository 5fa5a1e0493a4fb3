"""`raysearch prune`: without a search and without recovery."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from raysearch.cli.search import Verbosity
from raysearch.config.budget import Budget, size_text
from raysearch.config.criteria import ExpertCriterion, HiddenCriterion
from raysearch.config.recipe import check_ratio
from raysearch.config.settings import EMBEDDED_MODELS
from raysearch.errors import InputError


def prune(
    model: Annotated[str, typer.Argument(help="Hugging Face folder or hub id; or pocket or pocket-smollm2.")],
    to: Annotated[Path, typer.Option(help="New or empty folder for the pruned model.")],
    mode: Annotated[Literal["layerwise", "widthwise", "both"], typer.Option(help="What to prune.")] = "layerwise",
    ratio: Annotated[float | None, typer.Option(help="Share of the decoder's parameters to remove, below 1.")] = None,
    budget: Annotated[str | None, typer.Option(help="Or: largest size of the whole model: 60%, 3.2GB, 3B.")] = None,
    depth_share: Annotated[
        float | None, typer.Option(min=0.01, max=0.99, help="Mode both: share of the removal that dropped layers do.")
    ] = None,
    attention_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Heads against FFN channels: 0 keeps all heads, 1 the same share."),
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Or exactly: decoder layers to keep.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Exactly: KV heads per layer to keep.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Exactly: query heads per layer to keep.")] = None,
    ffn: Annotated[int | None, typer.Option(min=1, help="Exactly: FFN channels per layer to keep.")] = None,
    experts: Annotated[int | None, typer.Option(min=1, help="Exactly: experts per layer to keep.")] = None,
    expert_ratio: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Share of the experts to remove, as part of the size.")
    ] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Exactly: hidden size to keep.")] = None,
    hidden_ratio: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Share of the hidden size to remove, as part of the size.")
    ] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option(min=1, help="Only shapes that so many devices can split.")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=N,...", help="Only such shapes: heads_multiple=4,ffn_multiple=64, ..."),
    ] = None,
    criterion: Annotated[str | None, typer.Option(help="Importance: block_influence, taylor, activation, ...")] = None,
    expert_criterion: Annotated[ExpertCriterion | None, typer.Option(help="Importance of experts.")] = None,
    hidden_criterion: Annotated[HiddenCriterion | None, typer.Option(help="Importance of hidden channels.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Data to measure importance on: a JSON file, or pocket; none for weights alone.")
    ] = None,
    compensate: Annotated[bool, typer.Option("--compensate", help="Fit earlier FFNs to dropped layers.")] = False,
    quantization: Annotated[Literal["none", "int8", "int4"], typer.Option(help="Of the linear layers.")] = "none",
    verbose: Verbosity = 0,
) -> None:
    """Prune a vision-language or language model without recovery, and write a stock checkpoint.

    --compensate lets the FFNs in front of dropped layers make up for them;
    --quantization rounds the weights of the decoder's linear layers.

    Examples:

      raysearch prune pocket --mode layerwise --ratio 0.3 --to pruned

      raysearch prune ./llava-1.5-7b --mode widthwise --budget 60% --calibration llava.json --to pruned

      raysearch prune ./llava-1.5-7b --mode widthwise --ratio 0.3 --attention-share 0 --to pruned

      raysearch prune ./llava-1.5-7b --layers 28 --ffn 8192 --to pruned

      raysearch prune ./qwen2-vl-2b --mode widthwise --ratio 0.3 --tensor-parallel 2 --to pruned

      raysearch prune ./qwen3-vl-30b-a3b --experts 96 --calibration mine.json --to pruned

      raysearch prune ./qwen3-vl-2b --mode widthwise --ratio 0.3 --hidden-ratio 0.15 --calibration mine.json --to pruned

      raysearch prune ./llava-1.5-7b --ratio 0 --quantization int4 --to small

    Raises:
        InputError: not just one of a ratio, a budget and an exact shape is given; or the model, the data or the folder
            can't be used.
    """
    names = {"num_layers": layers, "num_kv_heads": kv_heads, "num_heads": heads, "num_ffn_channels": ffn}
    names |= {"num_experts": experts, "hidden_size": hidden}
    exact = {name: num for name, num in names.items() if num is not None}
    if (ratio, budget, exact or None).count(None) != 2:
        raise InputError(
            "prune: needs one of --ratio, --budget and an exact shape (--layers, --kv-heads, --heads, --ffn, "
            "--experts, --hidden); give the share to remove, the size to reach, or what is to be kept"
        )
    parsed = Budget.parse(budget) if budget is not None else None
    if ratio is not None:
        check_ratio(ratio)
    from raysearch.pruning.checkpoint import prune_checkpoint

    done = prune_checkpoint(
        model,
        mode=mode,
        to=to,
        ratio=ratio,
        budget=parsed,
        exact=exact,
        depth_share=depth_share,
        attention_share=attention_share,
        criterion=criterion,
        expert_ratio=expert_ratio,
        expert_criterion=expert_criterion,
        hidden_ratio=hidden_ratio,
        hidden_criterion=hidden_criterion,
        shapes=_rules(shapes or [], tensor_parallel),
        calibration=calibration or ("pocket" if model in EMBEDDED_MODELS else None),
        compensate=compensate,
        quantization=quantization,
    )
    print(f"{to}: {size_text(done['size_bytes'])}, {done['size_ratio']:.1%} of the dense model, by {done['criterion']}")


def _rules(texts: list[str], tensor_parallel: int | None) -> dict[str, Any]:
    """Rules on shapes, from `heads_multiple=4,ffn_multiple=64`.

    Raises:
        InputError: no such form.
    """
    rules: dict[str, Any] = {} if tensor_parallel is None else {"tensor_parallel": tensor_parallel}
    for part in filter(None, ",".join(texts).replace(" ", "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"--shapes {part}: not KEY=NUMBER, such as heads_multiple=4")
        rules[key] = value
    return rules
