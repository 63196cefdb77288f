"""The memory: documents' vectors, a search among them, and the neighbours that the rules allow."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.retrieval.index import Rows, Search
from cm3leon_jax.retrieval.mesh_search import MeshSearch
from cm3leon_jax.retrieval.strategy import Candidates, choose
from cm3leon_jax.sharding import make_mesh

Vectors = NDArray[np.floating]


class Documents:
    """The document vectors [N E] of `vectors` [N 3 E], for a search.

    They are zero where text or image is missing: else captions without a picture, which are
    nearest to captions, would fill the candidates, and the rule of modality would leave none.
    """

    def __init__(self, vectors: Rows) -> None:
        self._vectors = vectors
        self.shape = (vectors.shape[0], vectors.shape[2])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        some = self._vectors[rows]
        return some[:, 0] * _is_complete(some)[:, None]


@dataclass(frozen=True)
class Memory:
    """Documents that may stand in front of others.

    vectors:  [N 3 E] unit rows: the document, its text query, its image query (zero: it has none).
    index:    a search over `Documents(vectors)`; None: exact, on the devices of this program.
    """

    vectors: Rows
    index: Search | None = None

    def __post_init__(self) -> None:
        if len(self.vectors.shape) != 3 or self.vectors.shape[1] != 3 or not len(self.vectors):
            shape = list(self.vectors.shape)
            raise ValueError(f"memory: vectors are {shape}; give [N 3 E] of at least one document")
        if self.index is None:
            mesh = make_mesh(config.Mesh(data=-1, fsdp=1))  # the axis that joins TPU slices
            object.__setattr__(self, "index", MeshSearch(Documents(self.vectors), mesh))

    @property
    def retriever(self) -> str:
        """Fingerprint of the network that made the vectors; "none" of those in memory."""
        return getattr(self.vectors, "meta", {}).get("retriever", "none")

    def neighbours(
        self,
        texts: Vectors | None,
        images: Vectors | None,
        own: NDArray[np.int64] | None = None,
        document: Vectors | None = None,
        *,
        rules: config.Retrieval,
    ) -> NDArray[np.void]:
        """NEIGHBOUR [Q by_text + by_image] for text and image queries [Q E], either may be None.

        A query of zeros finds nothing. `own` [Q] are the queries' rows in this memory and
        `document` [Q E] their document vectors, where they have them.
        """
        candidates = self.find(texts, images, rules)
        return choose(candidates, rules, own, None if document is None else _to_float(document))

    def find(
        self, texts: Vectors | None, images: Vectors | None, rules: config.Retrieval
    ) -> Candidates:
        """The nearest documents to each query, scored anew, equal scores by lower row.

        Scored anew, because a quantized index only estimates, and so that a score does not depend
        on which other queries stood beside it in a product of matrices.
        """
        assert self.index is not None
        given = {way: some for way, some in enumerate((texts, images)) if some is not None}
        if not given:
            raise ValueError("no query: give texts, images or both")
        size, width = next(iter(given.values())).shape
        queries = np.zeros((size, 2, width), np.float32)
        rows = np.full((size, 2, rules.candidates), -1, np.int64)
        ways = [way for way in given if (rules.by_text, rules.by_image)[way]]
        for way in ways:
            queries[:, way] = given[way]
        if ways:  # all of them at once, the empty ones too: a pod's processes ask equally often
            found = self.index.search(queries[:, ways].reshape(-1, width), rules.candidates)[1]
            rows[:, ways] = found.reshape(size, len(ways), -1)
        rows[~queries.any(axis=2)] = -1
        known, place = np.unique(rows, return_inverse=True)
        some = self.vectors[np.maximum(known, 0)]  # -1 reads row 0, and the rules refuse it
        documents, complete = _to_float(some[:, 0]), _is_complete(some)
        place = place.reshape(rows.shape)
        scores = np.einsum("qwce,qwe->qwc", documents[place], queries)
        scores[rows < 0] = -np.inf
        order = np.lexsort((rows, -scores))
        rows, scores, place = (np.take_along_axis(x, order, axis=2) for x in (rows, scores, place))
        return Candidates(rows, scores, documents[place], complete[place])


def _is_complete(vectors: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of vectors [N 3 E] have both a text and an image query."""
    has_text, has_image = (np.any(vectors[:, way], axis=1) for way in (1, 2))
    return has_text & has_image


def _to_float(vectors: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(vectors, np.float32)
