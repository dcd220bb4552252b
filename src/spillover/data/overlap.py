"""Texts that hold the same words: rows that are nearly an earlier row, and evaluation questions inside of rows."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

SHINGLE = 5  # words
SAME = 0.8  # Jaccard similarity of the shingles of two texts from which on they are near-duplicates
BANDS, PER_BAND = 24, 5  # a pair at SAME is missed once in 10,000; one in 18 at 0.3 is compared for nothing
LOOSE = 0.2  # the share of equal hashes is the similarity give or take 0.04 (one standard deviation)
SEED = 0

LEAK_WORDS = 8  # a shorter question is looked for word for word only; below LEAK_WORDS / 2 as a whole turn
LEAK_SHARE = 0.7  # of a question's word pairs: one word changed in eight, or two in fifteen

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, without case, punctuation and the ways of writing one letter."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (text, earlier text) whose Jaccard similarity of word shingles is at least SAME, one for each such text.

    Texts are taken in order, and compared with earlier ones that have no such pair, so that without the first of each
    pair no near-duplicates are left. Candidates come from a MinHash (Broder 1997) in bands (Leskovec,
    Rajaraman and Ullman, Mining of Massive Datasets, ch. 3); what is returned has been compared in full.
    """
    if not texts:
        return []
    shingles = _shingles(texts)
    signatures = _minhash(shingles)
    buckets: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in range(BANDS)]
    pairs = []
    for number, signature in enumerate(signatures):
        keys = [band.tobytes() for band in signature.reshape(BANDS, PER_BAND)]
        earlier = sorted({other for bucket, key in zip(buckets, keys, strict=True) for other in bucket.get(key, ())})
        close = (signatures[earlier] == signature).mean(1) > SAME - LOOSE if earlier else []
        candidates = (other for other, is_close in zip(earlier, close, strict=True) if is_close)
        near = next((other for other in candidates if jaccard(shingles[number], shingles[other]) >= SAME), None)
        if near is not None:
            pairs.append((number, near))
            continue
        for bucket, key in zip(buckets, keys, strict=True):
            bucket[key].append(number)
    return pairs


def _shingles(texts: Sequence[str]) -> list[np.ndarray]:
    """The distinct shingles of each text, sorted, as 64-bit hashes; a text shorter than a shingle is one."""
    numbers: dict[str, int] = {}
    encoded = [np.array([numbers.setdefault(word, len(numbers)) for word in words(text)], np.int64) for text in texts]
    generator = np.random.default_rng(SEED)
    hashes = generator.integers(0, 2**64, size=(SHINGLE, max(1, len(numbers))), dtype=np.uint64)  # (place, word)
    shingles = []
    for ids in encoded:
        width = min(SHINGLE, len(ids))
        sums = np.zeros(len(ids) - width + 1, np.uint64)
        for place in range(width):
            sums += hashes[place, ids[place : place + len(sums)]]  # wraps around
        shingles.append(np.unique(sums))
    return shingles


def _minhash(shingles: Sequence[np.ndarray]) -> np.ndarray:
    """The least hash of each text's shingles under each hash function, shape (texts, BANDS * PER_BAND)."""
    generator = np.random.default_rng(SEED + 1)
    every = np.concatenate(shingles)
    starts = np.cumsum([0, *map(len, shingles)])[:-1]
    signatures = np.empty((len(shingles), BANDS * PER_BAND), np.uint32)
    for column in range(BANDS * PER_BAND):
        flips, factor = generator.integers(0, 2**63, size=2, dtype=np.uint64)
        hashed = (every ^ flips) * (factor * np.uint64(2) + np.uint64(1))  # multiply-shift (Dietzfelbinger et al. 1997)
        signatures[:, column] = np.minimum.reduceat((hashed >> np.uint64(32)).astype(np.uint32), starts)
    return signatures


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard similarity of two texts, each given as the sorted distinct hashes of its shingles."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


class Questions:
    """Looks for questions in texts: word for word after normalizing, or nearly."""

    def __init__(self, questions: Sequence[str]) -> None:
        """`questions` that hold no word are never in a text."""
        self.words = [words(question) for question in questions]
        self.pairs = [set(pairwise(asked)) for asked in self.words]
        self.short: dict[tuple[str, ...], list[int]] = defaultdict(list)  # words -> numbers of questions
        self.holding: dict[tuple[str, str], list[int]] = defaultdict(list)  # pair of words -> numbers of questions
        for number, asked in enumerate(self.words):
            if len(asked) < LEAK_WORDS / 2:
                self.short[tuple(asked)].append(number)
            else:
                for pair in self.pairs[number]:
                    self.holding[pair].append(number)

    def find(self, text: str) -> list[tuple[int, bool]]:
        """The questions that are in a text, as (number, whether word for word).

        Word for word: the question's words are in the text one after the other; a question of less than half of
        LEAK_WORDS words must be all of the text. Nearly: LEAK_SHARE of the pairs of neighboring words of a question of
        LEAK_WORDS or more are in the text.
        """
        written = words(text)
        matches = [(number, True) for number in self.short.get(tuple(written), ()) if written]
        hits = Counter(number for pair in set(pairwise(written)) for number in self.holding.get(pair, ()))
        running = f" {' '.join(written)} "
        for number, shared in hits.items():
            share = shared / len(self.pairs[number])
            if share == 1 and f" {' '.join(self.words[number])} " in running:
                matches.append((number, True))
            elif share >= LEAK_SHARE and len(self.words[number]) >= LEAK_WORDS:
                matches.append((number, False))
        return sorted(matches)
