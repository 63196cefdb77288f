"""One process of several that join, for test_join: `join_run.py FOLDER PORT PROCESS OF`."""

import sys
from pathlib import Path

import jax

from cm3leon_jax import config
from cm3leon_jax.mapped import Mapped
from cm3leon_jax.retrieval import join as join_module
from cm3leon_jax.retrieval.join import join
from cm3leon_jax.retrieval.memory import Memory


def main(folder: Path, port: str, process: int, of: int) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", of, process)
    vectors = Mapped(folder / "documents", "train.vectors")
    join_module.BLOCK = 16
    rules = config.Retrieval(most=2, candidates=24, max_score=0.95, max_similarity=0.9)
    join(vectors, Memory(vectors), rules, folder / "neighbours", "train", same=True)
    assert jax.device_count() == 2 * of


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
