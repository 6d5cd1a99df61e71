"""The contenders of benches/race: how each is started, where its store lies, and how to read and ask it afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import lancedb
import numpy as np

HERE = Path(__file__).resolve().parent


class Contender:
    def __init__(self, home: Path, model_folder: Path, embank: Path, models: Path) -> None:
        self.home, self.docs, self.store = home, home / "docs", home / "store"
        self.model_folder, self.embank, self.models = model_folder, embank.absolute(), models
        self.count = home / "count.txt"

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(HERE / "counted"),
            "RACE_COUNT": str(self.count),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "true",
        }

    def delete_store(self) -> None:
        """What a user deletes: the folder that the vectors are in."""
        shutil.rmtree(self.store)

    def forget(self) -> None:
        """The store, and whatever the contender remembers elsewhere."""
        shutil.rmtree(self.store, ignore_errors=True)

    def embedded(self, _run: dict) -> int | None:
        """Texts that passed through the model in the last run."""
        return sum(map(int, self.count.read_text().split())) if self.count.exists() else 0

    def computed(self, _run: dict) -> int | None:
        """Texts that the model began to compute in the last run, as its own log says."""
        return None

    def rows(self) -> tuple[list[str], np.ndarray]:
        try:
            found = lancedb.connect(self.store).open_table("texts").to_arrow()
        except ValueError:
            return [], np.empty((0, 0))
        return found["id"].to_pylist(), np.stack(found["vector"].to_numpy(zero_copy_only=False)).astype(np.float64)

    def vectors_of(self, texts: list[str]) -> np.ndarray:
        return encoder(self.model_folder).encode(texts, normalize_embeddings=True)

    def serve(self, _text: str, vector: np.ndarray, k: int) -> list[str]:
        table = lancedb.connect(self.store).open_table("texts")
        return [row["id"] for row in table.search(vector).distance_type("cosine").limit(k).to_list()]


class Script(Contender):
    def command(self) -> list[str]:
        return [sys.executable, str(HERE / "script.py"), str(self.docs), str(self.store), str(self.model_folder)]


class CocoIndex(Contender):
    def command(self) -> list[str]:
        return [str(Path(sys.executable).parent / "cocoindex"), "update", str(HERE / "cocoindex_app.py")]

    def environment(self) -> dict[str, str]:
        return super().environment() | {
            "RACE_DOCS": str(self.docs),
            "RACE_STORE": str(self.store),
            "RACE_MODEL": str(self.model_folder),
            "COCOINDEX_DB": str(self.home / "cocoindex.db"),
            # On by default, it reports usage to its makers.
            "COCOINDEX_DISABLE_USAGE_TRACKING": "1",
        }

    def forget(self) -> None:
        super().forget()
        shutil.rmtree(self.home / "cocoindex.db", ignore_errors=True)


class Embank(Contender):
    def command(self) -> list[str]:
        return [*self.base(), "--json", "sync", str(self.docs)]

    def base(self) -> list[str]:
        return [str(self.embank), "--quiet", "--bank", str(self.store), "--model-dir", str(self.models)]

    def environment(self) -> dict[str, str]:
        return {"EMBANK_LOG": "warn,embank::backfill=trace,embank::embed::local::model_thread=trace"}

    def embedded(self, run: dict) -> int:
        """As its report says; of a run that was killed, what it had put into its cache."""
        if run["exit"] == 0:
            report = next(line for line in reversed(run["out"].splitlines()) if line.startswith("{"))
            return json.loads(report)["backfill"]["embedded"]
        return self.cached()

    def cached(self) -> int:
        return sum(self.table(name).count_rows() for name in self.tables() if name.startswith("emb_cache__"))

    def computed(self, run: dict) -> int:
        return sum(texts_in(run["out"], "the model begins a batch"))

    def tables(self) -> list[str]:
        return sorted(path.stem for path in self.store.glob("*.lance"))

    def table(self, name: str) -> lancedb.table.Table:
        return lancedb.connect(self.store).open_table(name)

    def rows(self) -> tuple[list[str], np.ndarray]:
        found = self.table(next(name for name in self.tables() if name.startswith("embeddings__"))).to_arrow()
        return found["doc_path"].to_pylist(), np.stack(found["vector"].to_numpy(zero_copy_only=False)).astype(np.float64)

    def vectors_of(self, texts: list[str]) -> np.ndarray:
        command = [str(self.embank), "--model-dir", str(self.models), "embed", "--query", "-"]
        out = subprocess.run(command, input="\n".join(texts), capture_output=True, text=True, check=True).stdout
        return np.array([json.loads(line)["vector"] for line in out.splitlines()])

    def serve(self, text: str, _vector: np.ndarray, k: int) -> list[str]:
        command = [*self.base(), "--json", "search", text, "-k", str(k), "--chunks"]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [hit["doc_path"] for hit in json.loads(out)["hits"]]


def texts_in(log: str, event: str) -> list[int]:
    """The texts that each line about the event names."""
    return [int(count) for count in re.findall(rf"{event} texts=(\d+)", log)]


@cache
def encoder(folder: Path):
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


CONTENDERS = {"embank": Embank, "script": Script, "cocoindex": CocoIndex}
