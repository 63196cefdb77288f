"""CIDEr, BLEU and ROUGE-L of captions, by pycocoevalcap, with a tokenizer that needs no Java.

The tokenizer follows what the COCO evaluation does with Stanford's: Penn Treebank tokens in lower
case, without punctuation. Round brackets stay as `-lrb-` and `-rrb-`, as they do there: its list of
what to remove has them in capitals. It differs on web addresses, emoticons, pound signs,
and abbreviations beyond single letters and ABBREVIATIONS.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cm3leon_jax.fields import require

TOKENIZER = "Penn Treebank, without Java, 1"  # raise the number when its tokens change
ABBREVIATIONS = (
    "mr|mrs|ms|dr|st|mt|jr|sr|prof|vs|etc|ave|blvd|co|inc|ltd|corp"
    "|jan|feb|apr|jun|jul|aug|sept|oct|nov|dec|tue|thu|fri"
)
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
PUNCTUATION = frozenset(".?!,:;-'`\"\u2018\u2019\u201c\u201d\u2013\u2014\u2026")
FUSED = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"}
TOKEN = re.compile(
    rf"(?:{ABBREVIATIONS})\.(?!\w)"
    r"|(?:[a-z]\.){2,}"  # u.s.
    r"|'\d\ds?\b"  # '90s
    r"|\d+(?:[.,:/]\d+)*[a-z]*(?:-\w+)*"  # 1,000  3.5  10:30  3rd  2-story
    r"|n't\b|'(?:s|re|ve|ll|d|m)\b"
    r"|o'clock\b"
    r"|[^\W\d_]+?(?=n't\b)"  # do of don't
    r"|\w+(?:[-/&.]\w+)*(?<!n(?='t\b))"  # well-lit
    r"|\S"
)


def tokenize(text: str) -> str:
    """The tokens of a caption with single spaces between them."""
    found: list[str] = []
    for token in TOKEN.findall(text.lower().replace("\u2019", "'")):
        if token not in PUNCTUATION:
            found.append(FUSED.get(token, BRACKETS.get(token, token)))
    return " ".join(found)


def open_scorers() -> tuple[Any, Any, Any]:
    """pycocoevalcap's BLEU, CIDEr and ROUGE-L. Raises ValueError where it is missing."""
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError:
        raise ValueError("captions need pycocoevalcap: pip install 'cm3leon_jax[eval]'") from None
    return Bleu(4), Cider(), Rouge()


def caption_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Corpus scores of one caption a picture against its references; CIDEr is 10 at most.

    An empty candidate scores 0. Raises ValueError where a picture has no reference with a token.
    """
    of_bleu, of_cider, of_rouge = open_scorers()
    require(len(candidates) == len(references), "captions", len(candidates), "use one a picture")
    said = {i: [tokenize(text)] for i, text in enumerate(candidates)}
    wanted: Mapping[int, list[str]] = {
        i: [tokens for text in texts if (tokens := tokenize(text))]
        for i, texts in enumerate(references)
    }
    for i, texts in wanted.items():
        require(bool(texts), f"references[{i}]", references[i], "use one or more with words")
    bleu, _ = of_bleu.compute_score(wanted, said, verbose=0)
    cider, _ = of_cider.compute_score(wanted, said)
    rouge, _ = of_rouge.compute_score(wanted, said)
    scores = {"cider": cider} | {f"bleu_{n}": value for n, value in enumerate(bleu, start=1)}
    return {name: float(value) for name, value in (scores | {"rouge_l": rouge}).items()}
