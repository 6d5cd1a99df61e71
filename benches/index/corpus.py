"""The texts of the index benchmark: different English sentences out of the sources of the crates that Cargo.lock pins.

`write` makes records.jsonl, one {"id", "text", "category"} a line, and questions.jsonl, sentences that are in none of them.
Whoever has built embank has the sources already: doc comments, comments of whole lines, and Markdown files. Sentences are
drawn by a seed out of all that qualify, so the same Cargo.lock gives the same texts.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TEXTS, QUESTIONS = 110_000, 500
SHORTEST, LONGEST = 40, 400  # characters
FEWEST_WORDS, LETTERS = 6, 0.8
COMMENT = re.compile(r"^\s*//[/!]?\s?(.*)$")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def write(folder: Path) -> int:
    """Makes the two files; returns how many sentences there were to draw from."""
    found = sorted(sentences().items())
    if len(found) < TEXTS + QUESTIONS:
        raise SystemExit(f"{len(found)} sentences are not enough")
    random.Random("embank index").shuffle(found)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("records", found[:TEXTS]), ("questions", found[TEXTS : TEXTS + QUESTIONS])):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as out:
            for number, (text, crate) in enumerate(part):
                line = {"id": f"{name[0]}{number}", "text": text, "category": crate}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
    return len(found)


def sentences() -> dict[str, str]:
    """Every sentence once, with the crate in which it stands first."""
    found: dict[str, str] = {}
    for crate, text in paragraphs():
        for sentence in SENTENCE_END.split(text):
            if SHORTEST <= len(sentence) <= LONGEST and len(sentence.split()) >= FEWEST_WORDS:
                letters = sum(character.isalpha() or character == " " for character in sentence)
                if sentence[0].isupper() and sentence[-1] in ".!?:" and letters >= LETTERS * len(sentence):
                    found.setdefault(sentence, crate)
    return found


def paragraphs() -> Iterator[tuple[str, str]]:
    """Paragraphs of prose with the name of their crate, in the order of crates and files."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    metadata = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    packages = [package for package in json.loads(metadata)["packages"] if package["source"]]
    for package in sorted(packages, key=lambda package: (package["name"], package["version"])):
        for path in sorted(Path(package["manifest_path"]).parent.rglob("*")):
            if path.suffix in (".rs", ".md") and path.is_file():
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                for text in joined(lines if path.suffix == ".md" else comments(lines)):
                    yield package["name"], text


def comments(lines: list[str]) -> Iterator[str]:
    """The text of comment lines; an empty line where code stands between them."""
    for line in lines:
        comment = COMMENT.match(line)
        yield comment.group(1) if comment else ""


def joined(lines: Iterator[str] | list[str]) -> Iterator[str]:
    """Lines joined to paragraphs; listings between fences are left out."""
    buffer: list[str] = []
    fenced = False
    for line in [*lines, ""]:
        line = line.strip()
        if line.startswith("```"):
            fenced = not fenced
            line = ""
        if not fenced and line and line[0] not in "#|<":
            # A new item of a list is a new paragraph.
            if line[:2] in ("- ", "* ") and buffer:
                yield " ".join(buffer)
                buffer = []
            buffer.append(line.removeprefix("- ").removeprefix("* "))
        elif buffer:
            yield " ".join(buffer)
            buffer = []


if __name__ == "__main__":
    print(write(Path(sys.argv[1])), "sentences")
