"""Tasks of lmms-eval as benchmarks: their rows, prompts and scoring, for a model in memory."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from raysearch.config.benchmarks import LmmsEvalConfig
from raysearch.data.samples import sample_from_row
from raysearch.errors import InputError
from raysearch.evaluation.questions import Question, split_by_image


class LmmsEvalTask:
    """A task of lmms-eval whose score is a mean over its rows."""

    teacher_forced = False

    def __init__(self, entry: LmmsEvalConfig) -> None:
        """Load the task and its rows.

        Raises:
            InputError: lmms-eval isn't installed, has no such task, or can't load its rows.
        """
        self.where = f"benchmarks: {entry.name}: task {entry.task!r}"
        try:
            from lmms_eval.tasks import TaskManager, get_task_dict
        except ImportError as error:
            raise InputError(f"{self.where}: needs lmms-eval ({error}); pip install raysearch[lmms-eval]") from None
        try:
            manager = TaskManager("ERROR", include_path=entry.include, include_defaults=entry.include is None)
            self._task = get_task_dict([entry.task], manager)[entry.task]
            self._docs = self._task.eval_docs
        except Exception as error:  # whatever the code of a task raises
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(f"{self.where}: can't be loaded ({reason})") from None
        self._entry = entry
        settings = self._task.config.generation_kwargs or {}
        self.max_new_tokens = int(settings.get("max_new_tokens", 32))
        until = settings.get("until") or []
        self._until = [until] if isinstance(until, str) else list(until)

    def questions(self, split: str) -> tuple[Question, ...]:
        """The questions of a split; rows are split by image, as those of a custom benchmark."""
        docs = [self._docs[index] for index in range(len(self._docs))]
        images = [self._task.doc_to_visual(doc) or [] for doc in docs]
        hashes = [[hashlib.sha1(image.tobytes()).hexdigest() for image in of_row] for of_row in images]
        groups = [" ".join(of_row) or f"row {index}" for index, of_row in enumerate(hashes)]
        chosen = split_by_image(groups, split, self._entry.num_search, self._entry.num_heldout)
        return tuple(self._question(index, docs[index], images[index], groups[index]) for index in chosen)

    def values(self, responses: Sequence[str], questions: Sequence[Question]) -> np.ndarray:
        """(num_questions,) scores, after the task's filters.

        Raises:
            InputError: the task's score isn't a number per row.
        """
        from lmms_eval.api.instance import Instance

        docs = [self._docs[int(question.id)] for question in questions]
        meta = {"task": self._entry.task, "doc_id": 0, "repeats": 1}
        instances = [
            Instance("generate_until", (), 0, metadata=dict(meta), resps=[self._cut(text)]) for text in responses
        ]
        for chain in self._task._filters:
            chain.apply(instances, docs)
        found = [
            self._task.process_results(doc, [next(iter(instance.filtered_resps.values()))])
            for doc, instance in zip(docs, instances, strict=True)
        ]
        return np.array([self._score(result) for result in found], float)

    def chance(self, questions: Sequence[Question]) -> float:
        """Score of giving the commonest answer to every question."""
        ((commonest, _),) = Counter(question.answer for question in questions).most_common(1)
        return float(self.values([commonest] * len(questions), questions).mean())

    def _question(self, index: int, doc: Any, images: list[Any], image_id: str) -> Question:
        prompt = self._task.doc_to_text(doc)
        target = self._task.doc_to_target(doc)
        answer = str(target[0] if isinstance(target, list) else target)
        if "<image>" not in prompt:
            prompt = "<image>" * len(images) + prompt
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        sample = sample_from_row({"messages": turns, "images": images}, str(index))
        return Question(str(index), image_id, sample, (answer,))

    def _cut(self, response: str) -> str:
        for stop in self._until:
            response = response.split(stop)[0]
        return response

    def _score(self, result: dict[str, Any]) -> float:
        known = [name for name, value in result.items() if isinstance(value, int | float | np.number)]
        name = self._entry.score or (known[0] if len(known) == 1 else None)
        if name not in known:
            raise InputError(
                f"{self.where}: has no score {name!r} that is a number per row; it has {', '.join(known) or 'none'}"
                + ("; name one as score" if known else "; see docs/reference/questions.md for metrics")
            )
        return float(result[name])
