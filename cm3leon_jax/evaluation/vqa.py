"""Scores of answers: VQA accuracy, multiple choice, and the ranking of VisDial.

VQA accuracy is that of the official script for VQA 2, OK-VQA and VizWiz (arXiv 1505.00468): an
answer that 3 of 9 people gave is right, and the mean is taken over all ways to leave one of ten
out. Its normalisation is followed to the letter, with what looks like slips of the pen:
`somebody'd` loses its apostrophe, and near a number like 1,000 no mark becomes a space.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.fields import require

NUMBERS = "zero one two three four five six seven eight nine ten"
DIGITS = {word: str(n) for n, word in enumerate(NUMBERS.split())} | {"none": "0"}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")
COMMA = re.compile(r"\d,\d")
CONTRACTED = """
    ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't
    needn't oughtn't shan't shouldn't wasn't weren't won't wouldn't could've might've must've
    not've should've they've we've what've where've who've would've you've couldn't've hadn't've
    mightn't've shouldn't've wouldn't've he'd how'd it'd someone'd something'd there'd they'd
    where'd who'd you'd he'd've it'd've she'd've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've you'd've how'll it'll somebody'll someone'll
    something'll they'll what'll who'll why'll you'll y'all'll he's how's somebody's someone's
    that's there's what's when's where's who's why's there're they're what're why're you're ma'am
    o'clock y'all y'all'd've 'twas 'ow's'at
"""
# The script knows each of them with any one apostrophe left out.
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in CONTRACTED.split()
    for i, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


def normalise(answer: str) -> str:
    """An answer in lower case, digits for numbers, without articles and most punctuation."""
    text = answer
    glues = COMMA.search(answer) is not None
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if glues or beside_space else " ")
    text = PERIOD.sub("", text, count=int(re.UNICODE))  # so many at most, as in the script
    words = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """How right an answer is, 0 to 1, by those of people, mostly ten.

    Where all people say the same, nothing is normalised: as in the official script. Raises
    ValueError for fewer than 2 people.
    """
    require(len(people) > 1, "answers", people, "use those of 2 people or more")
    said, given = [_strip(text) for text in people], _strip(answer)
    if len(set(said)) > 1:
        said, given = [normalise(text) for text in said], normalise(given)
    same = said.count(given)
    shares = [min(1.0, (same - (text == given)) / 3) for text in said]
    return sum(shares) / len(shares)


def exact_accuracy(answer: str, right: Sequence[str]) -> float:
    """1 where an answer is one of the right ones once all are normalised, else 0: where a dataset
    has fewer than VQA's ten people."""
    return float(normalise(_strip(answer)) in {normalise(_strip(text)) for text in right})


def read_choice(answer: str, choices: Sequence[str]) -> int | None:
    """The number of the choice that an answer names: its letter, its text, or the only one of the
    texts that stands in the answer. None where that is not plain; ScienceQA counts it as wrong."""
    said = normalise(answer)
    texts = [normalise(choice) for choice in choices]
    if said and texts.count(said) == 1:  # normalised, a choice "A" is empty
        return texts.index(said)
    letter = re.fullmatch(r"(?:the answer is )?\(?([a-z])\)?[.:]?", _strip(answer).lower())
    if letter and ord(letter[1]) - ord("a") < len(choices):
        return ord(letter[1]) - ord("a")
    inside = [
        i for i, text in enumerate(texts) if text and re.search(rf"\b{re.escape(text)}\b", said)
    ]
    # "red ring" also holds "ring": the longest stands for those inside it.
    longest = [i for i in inside if not any(i != j and texts[i] in texts[j] for j in inside)]
    return longest[0] if len(longest) == 1 else None


def rank(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """The place from 1 on of each option by its log-likelihood [Q options]; equals keep their
    order."""
    order = np.argsort(-scores, axis=1, kind="stable")
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(1, scores.shape[1] + 1)[None], axis=1)
    return places


def ndcg(scores: NDArray[np.floating], relevance: NDArray[np.floating]) -> float:
    """VisDial NDCG: the gain of the K best-ranked options over the most there can be, mean over Q.

    scores: log-likelihoods [Q options]. relevance: the share of people that call an option right;
    K is how many options have any. Raises ValueError for a question without one.
    """
    require(scores.shape == relevance.shape, "relevance", relevance.shape, f"use {scores.shape}")
    known = np.count_nonzero(relevance, axis=1)
    require(bool((known > 0).all()), "relevance", 0.0, "use an option above 0 in each question")
    discounts = 1 / np.log2(np.arange(scores.shape[1]) + 2)
    best = np.arange(scores.shape[1]) < known[:, None]
    found = np.take_along_axis(relevance, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    most = -np.sort(-relevance, axis=1)
    gains = [(ranked * discounts * best).sum(1) for ranked in (found, most)]
    return float((gains[0] / gains[1]).mean())


def rank_scores(scores: NDArray[np.floating], right: NDArray[np.integer]) -> dict[str, float]:
    """VisDial's sparse scores: mean rank, mean reciprocal rank, and recall at 1, 5 and 10, of the
    option `right` [Q]."""
    places = np.take_along_axis(rank(scores), right[:, None], axis=1)[:, 0]
    recall = {f"recall_{k}": float((places <= k).mean()) for k in (1, 5, 10)}
    return {"mean_rank": float(places.mean()), "mrr": float((1 / places).mean())} | recall


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
