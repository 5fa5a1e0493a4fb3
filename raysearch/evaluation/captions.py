"""CIDEr-D of captions (arXiv 1411.5726, section 6), with the words and the weights of the COCO caption evaluation."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from raysearch.evaluation.responses import plain

LONGEST_NGRAM = 4
_SIGMA = 6.0  # bigrams of difference in length
_ENDINGS = re.compile(r"(n't|'(?:s|m|d|ll|re|ve))(?!\w)")
_FUSED = re.compile(r"\b(can(?=not\b)|gon(?=na\b)|got(?=ta\b)|wan(?=na\b)|gim(?=me\b)|lem(?=me\b))")
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|ave|blvd|rd|jr|sr|etc|vs|no|inc|co|corp|ltd|sgt"
    "|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec"
)
_WORD = re.compile(
    rf"(?:\w\.){{2,}}(?!\w)|\b(?:{_ABBREVIATIONS})\.(?!\w)|n't(?!\w)|'(?:s|m|d|ll|re|ve)(?!\w)"
    r"|(?<!\w)[+-]?\.?\d\w*(?:[.,:/-]\w+)*|\w+(?:[-/.']\w+)*|[?!]{2,}|[#$%&()*+/<=>@\[\]^_{|}~]"
)
"""Words as the Penn Treebank has them; full stops, commas, colons, dashes and quotes are none."""


def words(text: str) -> list[str]:
    """The words of a caption, in lower case, as the COCO evaluation's Treebank tokenizer finds them."""
    return _WORD.findall(_FUSED.sub(r"\1 ", _ENDINGS.sub(r" \1", plain(text).lower())))


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """A tenth of the published CIDEr-D of each caption: from 0 to 1.

    Mean over the references, and over n = 1..4, of the cosine of clipped tf-idf vectors of n-grams, times
    `exp(-d^2 / 72)`, where d is the difference of the lengths. An n-gram weighs log(number of pictures / number of
    pictures with it in a reference), so the references of all pictures matter, and of one alone every score is 0.

    Args:
        captions: (num_pictures,).
        references: (num_pictures,), at least one for each.

    Returns:
        (num_pictures,)
    """
    corpus = _corpus(tuple(map(tuple, references)))
    return np.array([corpus.score(words(text), index) for index, text in enumerate(captions)], float)


class _Corpus:
    """References of all pictures, weighted."""

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        counts = [[_ngrams(words(text)) for text in texts] for texts in references]
        self._num_with = Counter(gram for texts in counts for gram in set().union(*texts))
        self._log_size = np.log(len(counts))
        self._references = [[self._weighted(text) for text in texts] for texts in counts]

    def score(self, caption: list[str], index: int) -> float:
        """A tenth of the CIDEr-D of a caption of the picture at `index`."""
        said, norms, length = self._weighted(_ngrams(caption))
        total = 0.0
        for wanted, wanted_norms, wanted_length in self._references[index]:
            products = np.zeros(LONGEST_NGRAM)
            for gram in said.keys() & wanted.keys():
                products[len(gram) - 1] += min(said[gram], wanted[gram]) * wanted[gram]
            below = norms * wanted_norms
            cosines = np.divide(products, below, out=np.zeros(LONGEST_NGRAM), where=below > 0)
            total += float(cosines.mean() * np.exp(-((length - wanted_length) ** 2) / (2 * _SIGMA**2)))
        return total / len(self._references[index])

    def _weighted(self, counts: Counter[tuple[str, ...]]) -> tuple[dict[tuple[str, ...], float], np.ndarray, int]:
        """tf-idf by n-gram, its norm by length of the n-grams, and the number of bigrams, as the length."""
        weights = {
            gram: num * float(self._log_size - np.log(max(1, self._num_with[gram]))) for gram, num in counts.items()
        }
        squares = np.zeros(LONGEST_NGRAM)
        for gram, weight in weights.items():
            squares[len(gram) - 1] += weight**2
        return weights, np.sqrt(squares), sum(num for gram, num in counts.items() if len(gram) == 2)


@lru_cache(maxsize=4)
def _corpus(references: tuple[tuple[str, ...], ...]) -> _Corpus:
    return _Corpus(references)


def _ngrams(text: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(text[at : at + size]) for size in range(1, LONGEST_NGRAM + 1) for at in range(len(text) - size + 1)
    )
