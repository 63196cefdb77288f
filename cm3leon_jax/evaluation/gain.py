"""What retrieved documents are worth to the main one: its loss without them, minus with them."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.models.losses import row_losses
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.tokens.document import Document
from cm3leon_jax.tokens.objective import code_places
from cm3leon_jax.tokens.packing import Example, fill_row, stack
from cm3leon_jax.tokens.vocabulary import Vocabulary

ROWS = 32  # documents in one call, or as many more as divide over this host's devices


class Gain(NamedTuple):
    """Means over documents, in nats per token of the main document; low and high bound 95 %."""

    gain: float  # without - with: above 0 the retrieved documents help
    low: float
    high: float
    with_documents: float
    without_documents: float
    documents: int


def retrieval_gain(c: config.Experiment, model: Transformer, documents: Sequence[Document]) -> Gain:
    """Compares documents that have retrieved ones with the same documents alone, unmasked.

    Documents without retrieved ones are left out; raises ValueError if none is left.
    """
    joined = [document for document in documents if document.retrieved]
    if not joined:
        raise ValueError("retrieval_gain: no document has a retrieved one; see retrieval's rules")
    alone = [Document(document.segments) for document in joined]
    together, apart = (main_losses(c, model, some) for some in (joined, alone))
    difference = apart - together
    reach = 1.96 * float(difference.std(ddof=1)) / math.sqrt(len(joined)) if len(joined) > 1 else 0
    mean = float(difference.mean())
    return Gain(
        mean, mean - reach, mean + reach, float(together.mean()), float(apart.mean()), len(joined)
    )


def main_losses(
    c: config.Experiment, model: Transformer, documents: Sequence[Document]
) -> NDArray[np.float32]:
    """Mean loss of each document's own tokens [N], whatever stands in front of them."""
    vocabulary, length = Vocabulary.of(c.model), c.data.row_length
    rows = []
    for document in documents:
        ids = document.to_ids(vocabulary)
        weights = (np.arange(len(ids)) >= document.main_start).astype(np.float32)
        rows.append(fill_row([Example(ids, weights, code_places(ids, vocabulary))], length))
    losses = []
    many = -(-ROWS // jax.local_device_count()) * jax.local_device_count()
    for first in range(0, len(rows), many):
        chunk = rows[first : first + many]
        batch = stack(chunk + [fill_row([], length)] * (many - len(chunk)))
        losses.append(np.asarray(_row_losses(model, batch, c.model.loss_chunk))[: len(chunk)])
    return np.concatenate(losses)


@partial(jax.jit, static_argnames="chunk")
def _row_losses(model: Transformer, batch: dict[str, jax.Array], chunk: int) -> jax.Array:
    """Mean loss of each row [B]."""
    hidden = model(batch["tokens"], batch["segments"], batch["positions"], batch["codes_at"])
    arrays = (hidden, model.head_table(), batch["targets"], batch["weights"])
    return row_losses(*arrays, model.image_start, chunk).means()["loss"]
