"""The package as people get it: archive, wheel, and the notebook that the wheel runs."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from conftest import QUICK_FLAGS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "cm3leon_colab.ipynb"


def tracked() -> set[str]:
    """The files of the checkout, as git lists them."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True)
    return set(listed.stdout.decode().split())


def build(folder: Path) -> tuple[Path, Path]:
    """The source archive, and the wheel built from what lies in it alone."""
    for name in tracked():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    archive = _build("sdist", folder / "source", folder)
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return archive, _build("wheel", unpacked, folder)


def _build(kind: str, source: Path, folder: Path) -> Path:
    hook = f"from setuptools.build_meta import build_{kind} as build; build({str(folder)!r})"
    subprocess.run([sys.executable, "-c", hook], cwd=source, check=True, capture_output=True)
    (made,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


def environment(folder: Path) -> dict[str, str]:
    """Of programs that find the package in `folder`/site, where pip puts it, and nowhere else."""
    site = folder / "site"
    pip = {"PIP_TARGET": str(site), "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}
    pip |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    jax = {"XLA_FLAGS": QUICK_FLAGS, "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
    paths = {"PYTHONPATH": str(site), "PATH": f"{site}/bin{os.pathsep}{os.environ['PATH']}"}
    return os.environ | pip | jax | paths | {"IPYTHONDIR": f"{folder}/ipython"}


def run_notebook(folder: Path, **settings: str) -> Any:
    """Executes the notebook in a folder; returns it with its outputs. A failing cell raises."""
    import nbformat
    from nbclient import NotebookClient

    (folder / "site").mkdir()
    book = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(book, timeout=None, resources={"metadata": {"path": str(folder)}})
    return client.execute(env=environment(folder) | settings)
