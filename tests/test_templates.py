"""Templates tell a record's own texts and images, in an order of their own."""

import numpy as np
import pytest

from cm3leon_jax.data.shards import CodedRecord
from cm3leon_jax.data.templates import TEMPLATES

FIRST, SECOND = np.arange(4, dtype=np.int32), np.arange(4, 8, dtype=np.int32)
RECORD = CodedRecord("two", ("a red cat", FIRST, "and its hat", SECOND), license="CC0")


def test_the_orders_of_the_templates():
    rng = np.random.default_rng(0)
    assert TEMPLATES["plain"](RECORD, rng) == ("a red cat", FIRST, "and its hat", SECOND)
    assert TEMPLATES["image_first"](RECORD, rng) == (FIRST, SECOND, "a red cat", "and its hat")


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_repeat_and_add_nothing(name):
    parts, again = (TEMPLATES[name](RECORD, np.random.default_rng(3)) for _ in range(2))
    assert list(map(id, parts)) == list(map(id, again))
    assert {id(part) for part in parts} <= {id(part) for part in RECORD.segments}
