"""Our documents in SeqIO's terms: where they are, what is done to them, and batches of ours.

    {split, index}  --join-->  {tokens, main_start, answers}  --cache, if any-->  --mask-->
    {tokens, targets, weight_codes, places}  --converter-->  the keys of `packing.fill_row`

Texts are spelt by our own TextTokenizer before SeqIO sees them: its SentencePiece vocabulary would
read `<unk>` from the same file where ours spells the character in bytes. So the features carry
joint ids and a vocabulary that passes them through and only says which language they are in.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.checkpoint import read_experiment
from cm3leon_jax.config import Experiment
from cm3leon_jax.data.examples import Examples, Source
from cm3leon_jax.data.shards import Shards
from cm3leon_jax.tokens.objective import code_places, rng_for, rotate, token_weights
from cm3leon_jax.tokens.packing import INTEGERS
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import Vocabulary

FEATURES = ("tokens", "targets", "weight_codes", "places")
SHUFFLED = 1 << 20  # places among which the next one is drawn

Integers = NDArray[np.integer]


def import_seqio() -> Any:
    """SeqIO and with it TensorFlow (6-10 s), with less of its log and no look at the network."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("NO_GCE_CHECK", "true")
    try:
        import seqio
    except ModuleNotFoundError as error:
        rule = "pip install 'cm3leon_jax[data]'"
        raise ValueError(f"tasks and mixtures need SeqIO ({error}): {rule}") from None
    return seqio


@cache
def prepared_source() -> Any:
    """The class of `seqio.DataSource` that says where the documents of prepared sets are."""
    seqio = import_seqio()
    import tensorflow as tf

    class PreparedSource(seqio.DataSource):  # type: ignore[misc, name-defined]
        """Elements {split, index} of a work directory; `sources` by SeqIO's name of the split.

        `told_by` is all else that a task depends on: two with an equal `meaning` are the same.
        """

        supports_arbitrary_sharding = True

        def __init__(self, sources: Mapping[str, Source], *told_by: object) -> None:
            sets = {split: _open_set(source) for split, source in sources.items()}
            counts = {split: len(shards) for split, shards in sets.items()}
            self.sources, self.meaning = dict(sources), (dict(sources), counts, told_by)
            self._shards = {split: [part.name for part in s.parts] for split, s in sets.items()}
            super().__init__(tuple(sets), counts)

        def list_shards(self, split: str) -> Sequence[str]:
            return self._shards[split]

        def get_dataset(
            self,
            split: str = "train",
            shuffle: bool = True,
            seed: int | None = None,
            shard_info: Any = None,
            **unused: Any,
        ) -> Any:
            places = tf.data.Dataset.range(self.num_input_examples(split))
            if shard_info:
                places = places.shard(shard_info.num_shards, shard_info.index)
            if shuffle:
                places = places.shuffle(SHUFFLED, seed=seed)
            return places.map(lambda index: {"split": split, "index": index})

    return PreparedSource


@cache
def joint_vocabulary() -> Any:
    """The class of `seqio.Vocabulary` that our features carry."""
    seqio = import_seqio()

    class JointVocabulary(seqio.PassThroughVocabulary):  # type: ignore[misc, name-defined]
        """Joint ids as they are. Languages differ where their text pieces or image codes do."""

        def __init__(self, vocabulary: Vocabulary, text: str, images: str) -> None:
            super().__init__(vocabulary.size)
            self.language = (vocabulary, text, images)

        def __eq__(self, other: object) -> bool:
            return getattr(other, "language", None) == self.language

        def __hash__(self) -> int:
            return hash(self.language)

        def __str__(self) -> str:
            vocabulary, text, images = self.language
            return f"{vocabulary} of text model {text} and image tokenizer {images}"

    return JointVocabulary


def task_parts(sources: Mapping[str, Source], home: Path) -> dict[str, Any]:
    """What `seqio.TaskRegistry.add` takes beside a name.

    `home` holds the config.json and the text.model by which the documents are told. Template and
    neighbours of a document are drawn from `train.seed` and its number, before the cache, and stay;
    its spans are drawn from SeqIO's seed, behind the cache, and are others in every epoch.
    """
    seqio = import_seqio()
    import tensorflow as tf

    c = read_experiment(home)
    objective, vocabulary = c.objective, Vocabulary.of(c.model)
    as_it_is = tf.autograph.experimental.do_not_convert

    def join(place: dict[str, Any]) -> dict[str, Any]:
        @as_it_is
        def read(split: bytes, index: np.int64) -> tuple[Integers, np.int32, Integers]:
            examples = _open_examples(sources[split.decode()], home, c)
            document, answers = examples.tell(int(index), rng_for(c.train.seed, 0, int(index)))
            ids = document.to_ids(vocabulary, c.model.image_tokens).astype(np.int32)
            return ids, np.int32(document.main_start), np.array(answers, np.int32).reshape(-1)

        inputs, kinds = (place["split"], place["index"]), (tf.int32, tf.int32, tf.int32)
        ids, start, answers = tf.numpy_function(read, inputs, kinds, stateful=False)
        return {
            "tokens": tf.ensure_shape(ids, [None]),
            "main_start": tf.ensure_shape(start, []),
            "answers": tf.ensure_shape(answers, [None]),  # start, stop, start, stop, ...
        }

    def mask(
        document: dict[str, Any], sequence_length: Mapping[str, int] | None, seed: Any
    ) -> dict[str, Any]:
        longest = min(sequence_length.values()) + 1 if sequence_length else None

        @as_it_is
        def draw(
            ids: Integers, start: np.int32, answers: Integers, *seed: np.int64
        ) -> tuple[Integers, ...]:
            rng = np.random.default_rng(seed)
            asked = [(low, high) for low, high in answers.reshape(-1, 2).tolist()]
            rotated = rotate(ids, vocabulary, rng, objective, longest, asked)
            weights = token_weights(rotated, vocabulary, objective, int(start), asked)
            places = code_places(rotated, vocabulary)[:-1] + 2  # so that none is 0, padding
            parts = rotated[:-1], rotated[1:], encode_weights(weights[1:]), places
            return tuple(part.astype(np.int32) for part in parts)

        inputs = (document["tokens"], document["main_start"], document["answers"], *seed)
        drawn = tf.numpy_function(draw, inputs, [tf.int32] * len(FEATURES), stateful=False)
        return {name: tf.ensure_shape(part, [None]) for name, part in zip(FEATURES, drawn)}

    text = hashlib.sha256(_open_text(home).model).hexdigest()[:16]
    images = image_tokenizer_of(sources["train"])
    language = joint_vocabulary()(vocabulary, text, images)
    return {
        "source": prepared_source()(sources, home, c, language.language),
        "preprocessors": [
            seqio.map_over_dataset(join),
            seqio.CacheDatasetPlaceholder(),
            seqio.map_over_dataset(mask, num_seeds=1),
        ],
        "output_features": {
            name: seqio.Feature(language, add_eos=False, dtype=tf.int32) for name in FEATURES
        },
        "metric_fns": task_metrics(vocabulary, c.model.image_tokens),
    }


def task_metrics(vocabulary: Vocabulary, image_tokens: int) -> list[Any]:
    """What SeqIO's evaluation makes of a model's log-likelihoods and of the images that it drew."""

    def log_likelihood(targets: Sequence[Any], scores: Sequence[float]) -> dict[str, float]:
        return {"log_likelihood": float(np.mean(np.concatenate([*map(np.atleast_1d, scores)])))}

    def code_accuracy(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """Share of the codes of each row's first image that were drawn."""
        rights = []
        for row, drawn in zip(targets, predictions):
            ids = np.asarray(row)
            codes = ids[ids >= vocabulary.image_start][:image_tokens]
            rights.append(np.mean(codes == np.asarray(drawn)[: len(codes)]) if len(codes) else 0.0)
        return {"code_accuracy": float(np.mean(rights))}

    return [log_likelihood, code_accuracy]


@cache
def feature_converter() -> Any:
    """The class of `seqio.FeatureConverter` that makes our rows, all [T]; batch them as you like.

    tokens targets segments positions codes_at int32, weights float32, as `packing.fill_row` gives
    them. One length serves all task features: T. SeqIO packs T examples at a time and closes a row
    behind them; until then its rows are those of `packing.take_fitting`. Without packing each
    example has a row of its own.
    """
    seqio = import_seqio()
    import tensorflow as tf

    spec = seqio.FeatureConverter.FeatureSpec

    class CM3FeatureConverter(seqio.FeatureConverter):  # type: ignore[misc, name-defined]
        TASK_FEATURES = {name: spec(tf.int32) for name in FEATURES}  # noqa: RUF012
        MODEL_FEATURES = {  # noqa: RUF012
            **{name: spec(tf.int32) for name in INTEGERS},
            "weights": spec(tf.float32),
        }
        PACKING_FEATURE_DTYPES: Mapping[str, Any] = {}  # segments and positions are always there

        def _convert_features(self, ds: Any, task_feature_lengths: Mapping[str, int]) -> Any:
            ds = self._pack_or_pad(ds, task_feature_lengths)
            return ds.map(self._convert_example, num_parallel_calls=tf.data.AUTOTUNE)

        def _convert_example(self, row: Mapping[str, Any]) -> dict[str, Any]:
            alone = tf.cast(row["tokens"] > 0, tf.int32)
            codes = tf.maximum(row["weight_codes"] - 1, 0)
            return {
                "tokens": row["tokens"],
                "targets": row["targets"],
                "segments": row.get("tokens_segment_ids", alone),
                "positions": row.get("tokens_positions", tf.range(tf.size(alone)) * alone),
                "weights": tf.bitcast(codes, tf.float32),
                "codes_at": tf.maximum(row["places"], 1) - 2,
            }

        def get_model_feature_lengths(
            self, task_feature_lengths: Mapping[str, int]
        ) -> Mapping[str, int]:
            lengths = set(task_feature_lengths.values())
            if len(lengths) != 1:
                raise ValueError(
                    f"task_feature_lengths={dict(task_feature_lengths)}: use one length for all"
                )
            return dict.fromkeys(self.MODEL_FEATURES, lengths.pop())

    return CM3FeatureConverter


def encode_weights(weights: NDArray[np.float32]) -> NDArray[np.int32]:
    """Weights >= 0 as whole numbers >= 1, exactly: the bits of the float, plus one.

    SeqIO packs int32 only and takes 0 for padding, which would drop a weight of 0 from the middle
    of an example and move the rest out of line.
    """
    return np.asarray(weights, np.float32).view(np.int32) + 1


def image_tokenizer_of(source: Source) -> str:
    """The fingerprint of the network that made the image codes."""
    return _open_set(source).made_by.get("image_tokenizer", "unknown")


def _open_set(source: Source) -> Shards:
    """Raises ValueError where the work directory is not prepared."""
    try:
        return Shards(Path(source.workdir) / "documents", source.split)
    except FileNotFoundError as error:
        rule = f"run: cm3leon prepare --workdir {source.workdir}"
        raise ValueError(f"task {source.name!r}: {error}; {rule}") from None


def _open_text(home: Path) -> TextTokenizer:
    return TextTokenizer.load(home / "text.model")


@lru_cache(maxsize=64)
def _open_examples(source: Source, home: Path, c: Experiment) -> Examples:
    return Examples.open(source, _open_text(home), c)
