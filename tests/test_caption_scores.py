"""Tokens against Stanford's tokenizer, scores against formulas; CLIP score by hand."""

import json
import math

import numpy as np
import pytest
from metric_oracles import CAPTIONS, GOLDEN

from cm3leon_jax.evaluation.captions import caption_scores, tokenize
from cm3leon_jax.evaluation.clip_score import clip_score, retrieval_precision

TOKENS = json.loads((GOLDEN / "texts.json").read_text(encoding="utf-8"))["tokens"]


def test_captions_are_tokenized_as_by_the_coco_evaluation():
    assert [tokenize(text) for text in CAPTIONS] == TOKENS


def test_scores_are_those_of_their_formulas():
    references = [["A dog on a red mat."], ["two cats", "Two cats; asleep!"], ["the sea"]]
    same = caption_scores([texts[0] for texts in references], references)
    assert same["bleu_1"] == pytest.approx(1)
    assert same["rouge_l"] == pytest.approx(1)
    found = caption_scores(["a dog on a mat", "two cats", ""], references)
    # 7 of 7 words are right, and 10 are wanted
    assert found["bleu_1"] == pytest.approx(math.exp(1 - 10 / 7), rel=1e-6)
    recall, weight = 5 / 6, 1.2**2
    rouge = (1 + weight) * recall / (recall + weight)
    assert found["rouge_l"] == pytest.approx((rouge + 1 + 0) / 3)
    assert 0 < found["cider"] < same["cider"]


def test_a_picture_without_reference_is_refused():
    with pytest.raises(ValueError, match=r"references\[1\]"):
        caption_scores(["a", "b"], [["a"], ["..."]])


def test_clip_score_is_the_cosine_in_percent_and_never_negative():
    pictures = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    texts = np.array([[0.6, 0.8], [0.6, 0.8], [-1, 0]], np.float32)
    assert clip_score(pictures, texts) == pytest.approx((60 + 80 + 0) / 3)


def test_retrieval_precision_is_the_share_of_pictures_nearest_to_their_own_text():
    texts = np.eye(4, dtype=np.float32)
    assert retrieval_precision(texts[[0, 1, 3, 2]], texts) == 0.5
    assert retrieval_precision(texts[[0, 0]], texts[[0, 0]]) == 1  # equal texts are no rivals
    blind = np.full((4, 4), 0.5, np.float32)
    assert retrieval_precision(blind, texts) == 0
