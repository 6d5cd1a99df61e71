"""The race's documents: 5,000 short English texts, one file each, and questions that are none of them.

`write` makes them, `change` is a day's work on them: 1 % edited, 1 % removed. Prose of the Rust books that
rustup installs; one text in fifty repeats another one, as templates and quotes do in real folders.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "embed"))
from texts import prose  # noqa: E402

TEXTS, QUERIES = 5000, 100
SHORTEST, LONGEST = 60, 250  # characters


def write(docs: Path, queries: Path, count: int = TEXTS) -> None:
    shutil.rmtree(docs, ignore_errors=True)
    docs.mkdir(parents=True)
    short = (text for text in prose() if SHORTEST <= len(text) <= LONGEST)
    repeated = count // 50
    texts = [next(short) for _ in range(count - repeated)]
    asked = [next(short) for _ in range(QUERIES)]
    texts += texts[:: len(texts) // repeated][:repeated]
    for number, text in enumerate(texts):
        path(docs, number).write_text(text + "\n", encoding="utf-8")
    queries.write_text(json.dumps(asked), encoding="utf-8")


def change(docs: Path) -> None:
    count = len(list(docs.iterdir()))
    for number in range(0, count * 49 // 50, 98):
        # One in a hundred, spread over the folder and off the repeated texts at its end.
        edited = path(docs, number)
        edited.write_text(edited.read_text(encoding="utf-8").strip() + " This was added a day later.\n", encoding="utf-8")
        path(docs, number + 1).unlink()


def path(docs: Path, number: int) -> Path:
    return docs / f"{number:04}.txt"
