"""`raysearch evaluate` and `raysearch inspect`: a model's answers, and data as a model gets them, before any search."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raysearch.cli.search import Verbosity
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.logging import quiet

if TYPE_CHECKING:
    from rich.table import Table

    from raysearch.data.encoding import Encoder
    from raysearch.data.inspection import Inspection
    from raysearch.data.samples import Sample
    from raysearch.evaluation.benchmarks import Benchmark
    from raysearch.evaluation.retention import Results
    from raysearch.trials.answer_table import AnsweredQuestion

DEFAULT_MAX_LENGTH = 2048
_NUM_CHARACTERS = 200
_NUM_REASONS = 10


def evaluate(
    model: Annotated[str, typer.Argument(help="Hugging Face folder or hub id; or pocket or pocket-smollm2.")],
    space: Annotated[Path | None, typer.Option(metavar="SPACE.yaml", help="Ask the benchmarks of this space.")] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option("--benchmarks", help="Embedded benchmarks by name, or pocket for all; repeatable."),
    ] = None,
    split: Annotated[Literal["search", "heldout"], typer.Option(help="Which of the questions to ask.")] = "heldout",
    compare: Annotated[str | None, typer.Option(metavar="MODEL", help="A second model, compared in pairs.")] = None,
    answers: Annotated[int, typer.Option(min=0, help="Answers to show next to what was expected.")] = 20,
    to: Annotated[Path | None, typer.Option(help="Write every answer to this new .json or .parquet file.")] = None,
    verbose: Verbosity = 0,
) -> None:
    """Score a model on benchmarks, and show its answers.

    Before a search: a wrong chat template, prompt or metric shows in the
    answers. Scores have 95% intervals over questions clustered by image, and
    the score of guessing beside them.

    Examples:

      raysearch evaluate pocket --benchmarks digits

      raysearch evaluate ./llava-1.5-7b --space my-space.yaml --to answers.parquet

      raysearch evaluate ./small --compare ./llava-1.5-7b --space my-space.yaml

    Raises:
        InputError: a model, a benchmark, the space or the file can't be used.
    """
    from raysearch.evaluation.benchmarks import load_benchmarks
    from raysearch.report.terminal import print_rich
    from raysearch.trials.answer_table import answer_all, check_answers_file, write_answers

    if space is not None and benchmarks:
        raise InputError("evaluate: takes the benchmarks of --space or of --benchmarks; leave one out")
    if to is not None:
        check_answers_file(to)
    loaded = SearchSpace.load(space) if space else None
    asked = load_benchmarks(loaded.benchmarks if loaded else benchmarks or ["pocket"], split)
    max_length = loaded.recovery.max_length if loaded else DEFAULT_MAX_LENGTH
    names = [model] if compare is None else [model, compare]
    found = {name: answer_all(name, asked, max_length) for name in dict.fromkeys(names)}
    print_rich(_scores_table(asked, {name: results for name, (results, _) in found.items()}))
    if answers:
        print_rich(_answers_table({name: rows for name, (_, rows) in found.items()}, answers))
    if to is not None:
        write_answers(to, {name: rows for name, (_, rows) in found.items()})
        print(to)


def _scores_table(asked: "list[Benchmark]", found: "dict[str, Results]") -> "Table":
    from rich.table import Table

    from raysearch.evaluation.retention import score_differences, score_intervals

    table = Table(box=None)
    headings = [f"{name} [95%]" for name in found] if len(found) > 1 else ["score [95%]"]
    for heading in ("benchmark", "metric", "questions", "guessing", *headings):
        table.add_column(heading, justify="left" if heading in ("benchmark", "metric") else "right")
    first, *others = found.values()
    differences = [score_differences(first, other) for other in others]
    if differences:
        table.add_column("difference [95%]", justify="right")
    for benchmark in asked:
        name = benchmark.name
        scorer = f"lmms-eval {name}" if benchmark.task else benchmark.metric
        cells = [name, scorer, str(len(benchmark.questions)), f"{benchmark.chance:.1%}"]
        for results in found.values():
            low, high = score_intervals(results)[name]
            cells.append(f"{results.means()[name]:.1%} [{low:.1%}, {high:.1%}]".replace("[", "\\["))
        for of in differences:
            low, high = of[name].interval
            cells.append(f"{of[name].value:+.1%} [{low:+.1%}, {high:+.1%}]".replace("[", "\\["))
        table.add_row(*cells)
    return table


def _answers_table(found: "dict[str, list[AnsweredQuestion]]", num: int) -> "Table":
    from rich.table import Table
    from rich.text import Text

    from raysearch.trials.answer_table import shown

    table = Table(box=None)
    for heading in ("benchmark", "question", "expected"):
        table.add_column(heading, overflow="fold")
    for name in found:
        table.add_column(name if len(found) > 1 else "answer", overflow="fold")
        table.add_column("score", justify="right")
    columns = list(found.values())
    for index in shown(columns[0], num):
        row = columns[0][index]
        cells = [Text(row.benchmark), Text(_short(row.prompt)), Text(_short(" | ".join(row.expected)))]
        for of in columns:
            cells += [Text(_short(of[index].response), "green" if of[index].score else "red")]
            cells += [Text(f"{of[index].score:.3g}")]
        table.add_row(*cells)
    return table


def inspect(
    data: Annotated[str, typer.Argument(help="Recovery data: a file, a folder, a hub id, or pocket.")],
    model: Annotated[str, typer.Option(help="Model whose template, tokenizer and processor read them.")],
    rows: Annotated[int, typer.Option(min=0, help="Rows to show.")] = 3,
    max_length: Annotated[int, typer.Option(min=8, help="recovery.max_length of the space.")] = DEFAULT_MAX_LENGTH,
    verbose: Verbosity = 0,
) -> None:
    """Show data as a model gets them.

    Rows with their answers coloured, pictures, token counts, how many rows are
    longer than max_length, and what is left out and why. No weights are read.

    Examples:

      raysearch inspect pocket --model pocket

      raysearch inspect llava.json --model ./llava-1.5-7b --max-length 1024 --rows 5

    Raises:
        InputError: the data or the model can't be used.
    """
    import sys

    from raysearch import models
    from raysearch.data.encoding import Encoder
    from raysearch.data.inspection import inspect_samples
    from raysearch.data.loading import load_samples
    from raysearch.report.terminal import print_rich

    samples = load_samples(data)
    family = models.family_for(models.load_config(model))
    encoder = Encoder(models.load_processor(model), family, sys.maxsize, cache_bytes=0)
    with quiet():  # a tokenizer warns of long rows
        for sample in samples[:rows]:
            _print_row(sample, encoder)
        found = inspect_samples(samples, encoder, max_length)
    print_rich(_counts_table(found))
    print(f"{found.num_long:,} rows are longer than max_length {max_length:,}; {len(found.bad):,} can't be used")
    for num, row, reason in found.reasons()[:_NUM_REASONS]:
        print(f"left out: {num} rows as row {row}: {reason}")


def _print_row(sample: "Sample", encoder: "Encoder") -> None:
    from rich.text import Text

    from raysearch.data.bad_rows import BadRow
    from raysearch.data.inspection import shown_text
    from raysearch.data.pictures import open_image
    from raysearch.report.terminal import print_rich

    print_rich(Text(f"row {sample.id}", "bold"))
    try:
        parts = shown_text(encoder, sample)
        print_rich(Text.assemble(*[(text, "green" if is_answer else "dim") for text, is_answer in parts]))
        for image in sample.images:
            width, height = open_image(image).size
            print_rich(Text(f"image {width} x {height} {image if isinstance(image, Path) else ''}"))
    except BadRow as error:
        print_rich(Text(f"left out: {error}", "red"))
    print()


def _counts_table(found: "Inspection") -> "Table":
    import numpy as np
    from rich.table import Table

    table = Table(box=None)
    for heading in (f"{found.num_encoded:,} of {found.num_rows:,} rows", "median", "95%", "most"):
        table.add_column(heading, justify="left" if "rows" in heading else "right")
    counts = {"tokens": found.num_tokens, "answer tokens": found.num_answer_tokens, "images": found.num_images}
    for name, values in counts.items():
        numbers = [np.quantile(values, share, method="nearest") for share in (0.5, 0.95, 1)] if values else []
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return table


def _short(text: str) -> str:
    text = " ".join(text.split())
    return (
        text if len(text) <= _NUM_CHARACTERS else f"{text[: _NUM_CHARACTERS // 2]} ... {text[-_NUM_CHARACTERS // 2 :]}"
    )
