"""The experiment: nested frozen dataclasses, the truth behind the gin and ml_collections fronts.

Every rule is checked at construction and every message names the field, its value, the rule and
the fix. `presets` has the shipped experiments; `from_dict` and `fields.to_dict` are inverses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cm3leon_jax.fields import build, require, require_choice, to_dict
from cm3leon_jax.network_config import (
    ImageTokenizer,
    Model,
    Optimizer,
    Retriever,
    Train,
    Upscaler,
)

__all__ = [
    "Data",
    "Decode",
    "Experiment",
    "ImageTokenizer",
    "Mesh",
    "Model",
    "Objective",
    "Optimizer",
    "Retrieval",
    "Retriever",
    "Train",
    "Upscaler",
    "from_dict",
    "replace",
]


@dataclass(frozen=True)
class Objective:
    """CM3 span rotation (paper section 2.2; values not stated are marked in the reference)."""

    rate: float = 1.0  # spans per document ~ min(Poisson(rate), max_spans)
    max_spans: int = 16
    whole_segment: float = 0.5  # probability that a masked unit is a whole caption or image
    retrieved_weight: float = 1.0  # loss weight of retrieved documents (RA-CM3: 0.1)
    sentinel_weight: float = 1.0  # loss weight of <mask:i>
    z_loss: float = 0.0  # weight of log(Z)^2 (Chameleon: 1e-5)
    answer_last: float = 0.0  # share of the documents whose answer alone is masked, to be read last
    answer_only: bool = False  # whether the loss counts answers alone
    answer_length: float = 1.0  # what an answer then weighs: its length to this power; 0: all alike

    def __post_init__(self) -> None:
        require(self.rate >= 0, "objective.rate", self.rate, "must be >= 0")
        require(self.max_spans >= 0, "objective.max_spans", self.max_spans, "must be >= 0")
        rule = "is a probability; use a value from 0 to 1"
        for name in ("whole_segment", "answer_last"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"objective.{name}", value, rule)
        length = self.answer_length
        require(0 <= length <= 1, "objective.answer_length", length, "use a power from 0 to 1")
        holds = length == 1 or self.answer_only
        require(holds, "objective.answer_length", length, "needs objective.answer_only=true")
        for name in ("retrieved_weight", "sentinel_weight", "z_loss"):
            require(getattr(self, name) >= 0, f"objective.{name}", getattr(self, name), ">= 0")


@dataclass(frozen=True)
class Mesh:
    """Devices along each mesh axis; one of them may be -1, 'all that are left'.

    Without a -1 the first data x fsdp x tensor devices are used.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        rule = "use positive numbers, and -1 for at most one axis"
        holds = all(n == -1 or n > 0 for n in sizes) and sizes.count(-1) <= 1
        require(holds, "mesh (data, fsdp, tensor)", sizes, rule)


@dataclass(frozen=True)
class Data:
    """Where documents come from, and which of them are held out."""

    source: str = "scenes"  # scenes | emoji | tfds:NAME | a folder, JSONL, CSV or tar shards
    fields: str = ""  # of a TFDS source: "image=image,text=captions/text"; empty: the shipped map
    task: str = "plain"  # how records are told, or DATASET[:TEMPLATE] of a public dataset's layout
    tasks: tuple[str, ...] = ()  # further ones of this source, which the tokenizers see as well
    mixture: str = ""  # SeqIO task or mixture to train on; empty: the work directory's documents
    allow_licenses: tuple[str, ...] = ()  # keep only these; empty: keep all
    count: int = 50_000  # records read at most; 0: all
    sample: int = 50_000  # records held in memory to train tokenizers and retriever on
    part: int = 4096  # records per part of the preparation
    seed: int = 0  # of procedural sources
    font: str = ""  # emoji font file; empty: the installed one
    row_length: int = 4096  # tokens per packed row
    held_out: float = 0.05  # share of ids never trained on
    max_bad_fraction: float = 0.01  # more unreadable records than this stop the preparation
    workers: int = 0  # processes that make batches; 0: a thread of this one

    def __post_init__(self) -> None:
        for name in ("sample", "part", "row_length"):
            require(getattr(self, name) > 0, f"data.{name}", getattr(self, name), "must be > 0")
        for name in ("count", "workers", "seed"):
            require(getattr(self, name) >= 0, f"data.{name}", getattr(self, name), "must be >= 0")
        rule = "use scenes, emoji, tfds:NAME, or a folder, JSONL, CSV or tar file"
        require(bool(self.source), "data.source", self.source, rule)
        require(0 < self.held_out < 1, "data.held_out", self.held_out, "must be > 0 and < 1")
        value = self.max_bad_fraction
        require(0 <= value < 1, "data.max_bad_fraction", value, "must be >= 0 and < 1")


@dataclass(frozen=True)
class Retrieval:
    """Which documents stand in front of another one (paper section 2.1).

    For each, `by_text` are found with its text and `by_image` with its image; in training as many
    as a uniform draw from `least` to `most` says are taken from them anew every epoch, and none in
    the share of the examples that stands `alone`.
    """

    least: int = 0
    most: int = 0  # 0: no retrieval
    alone: float = 0.0
    by_text: int = 2
    by_image: int = 2
    candidates: int = 64  # nearest documents among which the rules choose
    max_score: float = 0.9  # a document that matches the query better is a near copy
    max_similarity: float = 0.9  # a document nearer to one already taken adds nothing
    query_dropout: float = 0.2  # share of a query's tokens left out
    search: Literal["exact", "approximate", "faiss"] = "exact"  # on all devices; or on the host
    index_gib: float = 16.0  # of memory for FAISS: exact where the vectors fit, else IVF-PQ

    def __post_init__(self) -> None:
        rule = "must be >= 0 and <= retrieval.most"
        require(0 <= self.least <= self.most, "retrieval.least", self.least, rule)
        for name in ("by_text", "by_image"):
            require(getattr(self, name) >= 0, f"retrieval.{name}", getattr(self, name), ">= 0")
        found = self.by_text + self.by_image
        rule = f"must be at most retrieval.by_text + by_image = {found}"
        require(self.most <= found, "retrieval.most", self.most, rule)
        rule = f"must be at least retrieval.by_text + by_image = {found}"
        require(self.candidates >= found, "retrieval.candidates", self.candidates, rule)
        for name in ("alone", "query_dropout"):
            value = getattr(self, name)
            require(0 <= value < 1, f"retrieval.{name}", value, "must be >= 0 and < 1")
        for name in ("max_score", "max_similarity"):
            value = getattr(self, name)
            require(-1 < value <= 1, f"retrieval.{name}", value, "is a cosine; use > -1 and <= 1")
        require_choice("retrieval.search", self.search, ("exact", "approximate", "faiss"))
        require(self.index_gib > 0, "retrieval.index_gib", self.index_gib, "must be > 0")


@dataclass(frozen=True)
class Decode:
    """Default sampling settings, used wherever a call names none (paper section 3.2)."""

    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0  # 0: all
    guidance: float = 3.0
    guidance_image: float = 1.5  # of edits: how much they keep of the picture,
    guidance_text: float = 7.5  # and how much they follow the instruction
    text_temperature: float = 0.7
    text_tokens: int = 64  # longest caption or infill
    repetition_penalty: float = 1.0  # of texts (CTRL); 1: none, Chameleon's own default is 1.2
    documents: int = 0  # retrieved documents in front of a prompt

    def __post_init__(self) -> None:
        scales = ("guidance", "guidance_image", "guidance_text")
        for name in ("temperature", "text_temperature", "top_k", "documents", *scales):
            require(getattr(self, name) >= 0, f"decode.{name}", getattr(self, name), ">= 0")
        require(0 < self.top_p <= 1, "decode.top_p", self.top_p, "must be > 0 and <= 1")
        require(self.text_tokens > 0, "decode.text_tokens", self.text_tokens, "must be > 0")
        penalty = self.repetition_penalty
        require(penalty >= 1, "decode.repetition_penalty", penalty, "must be >= 1")


@dataclass(frozen=True)
class Experiment:
    """All of one experiment; written beside every checkpoint and read back by the decoder."""

    model: Model = field(default_factory=Model)
    image_tokenizer: ImageTokenizer = field(default_factory=ImageTokenizer)
    retriever: Retriever = field(default_factory=Retriever)
    upscaler: Upscaler = field(default_factory=Upscaler)
    data: Data = field(default_factory=Data)
    retrieval: Retrieval = field(default_factory=Retrieval)
    objective: Objective = field(default_factory=Objective)
    optimizer: Optimizer = field(default_factory=Optimizer)
    mesh: Mesh = field(default_factory=Mesh)
    train: Train = field(default_factory=Train)
    decode: Decode = field(default_factory=Decode)

    def __post_init__(self) -> None:
        rule = f"must not exceed model.context={self.model.context}"
        require(
            self.data.row_length <= self.model.context,
            "data.row_length",
            self.data.row_length,
            rule,
        )
        rule = f"must fit into model.sentinels={self.model.sentinels}"
        holds = self.objective.max_spans <= self.model.sentinels
        require(holds, "objective.max_spans", self.objective.max_spans, rule)
        least = self.model.image_tokens + 8
        rule = f"must hold an image and some text; use at least {least}"
        require(self.data.row_length >= least, "data.row_length", self.data.row_length, rule)
        room = self.model.context - self.model.image_tokens - 5
        rule = f"a caption must fit behind its image in the context: use at most {room}"
        longest = self.decode.text_tokens
        require(longest <= room, "decode.text_tokens", longest, rule)
        most = self.retrieval.most
        rule = f"must be at most retrieval.most={most}: training has seen no more"
        require(self.decode.documents <= most, "decode.documents", self.decode.documents, rule)
        sizes = (self.image_tokenizer.grid**2, self.image_tokenizer.codes)
        wanted = (self.model.image_tokens, self.model.image_codes)
        rule = f"must equal model.image_tokens, model.image_codes = {wanted}"
        require(sizes == wanted, "image_tokenizer grid**2, codes", sizes, rule)
        rule = f"must be 0 or image_tokenizer.width={self.image_tokenizer.width}"
        holds = self.model.code_features in (0, self.image_tokenizer.width)
        require(holds, "model.code_features", self.model.code_features, rule)


def from_dict(content: Mapping[str, Any]) -> Experiment:
    """The Experiment that `fields.to_dict` wrote; missing keys keep their defaults."""
    require(isinstance(content, Mapping), "config", content, "must be a mapping of fields")
    return build(Experiment(), content)


def replace(experiment: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """A copy with dotted overrides, {'train.steps': 10}; keys and values are checked."""
    content = to_dict(experiment)
    for name, value in overrides.items():
        *parents, last = name.split(".")
        node = content
        for parent in parents:
            node = node.setdefault(parent, {})
            require(isinstance(node, dict), name, value, f"{parent} has no fields")
        node[last] = value
    return from_dict(content)
