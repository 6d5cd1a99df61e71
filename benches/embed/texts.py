#!/usr/bin/env python3
"""Cut real English prose to four mixes of lengths, for benches/embed.

    texts.py OUT MODEL_DIR

Writes OUT/{s30,s128,s226,mixed}.jsonl, one {"id", "text", "tokens"} a line; tokens counts [CLS] and [SEP]. The prose
is that of the Rust books which rustup installs (`rustup component add rust-docs`). The same documentation gives the same texts:
lengths are spread evenly over the range of their mix and shuffled by a seed. Needs the `tokenizers` package.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from large_corpus import Paragraphs  # noqa: E402

# Mix → (texts, shortest, longest in tokens, how lengths are spread). Means: 30, 128, 226; mixed is log-uniform, mean
# about 72: many short texts and few long ones, as in chunked documents.
MIXES = {
    "s30": (2000, 12, 48, "uniform"),
    "s128": (600, 96, 160, "uniform"),
    "s226": (400, 196, 256, "uniform"),
    "mixed": (800, 8, 256, "log-uniform"),
}
BOOKS = ["book", "reference", "cargo", "rustc", "nomicon", "edition-guide", "embedded-book", "rustdoc", "std", "core"]
SPECIAL_TOKENS = 2  # [CLS] and [SEP]


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 64
    out, model = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for mix, (count, shortest, longest, drawn) in MIXES.items():
        # Evenly over the range, then shuffled: the same mean for every seed and count.
        draws = [(number + 0.5) / count for number in range(count)]
        random.Random(f"embank {mix}").shuffle(draws)
        pages = prose()
        with open(out / f"{mix}.jsonl", "w", encoding="utf-8") as file:
            total = 0
            for number, draw in enumerate(draws):
                if drawn == "uniform":
                    want = round(shortest + (longest - shortest) * draw)
                else:
                    want = round(shortest * (longest / shortest) ** draw)
                text, tokens = cut(pages, tokenizer, want)
                total += tokens
                line = {"id": f"{mix}-{number}", "text": text, "tokens": tokens}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(f"{mix}: {count} texts, mean {total / count:.1f} tokens")
    return 0


def prose() -> Iterator[str]:
    """Paragraphs of the books, each once, in the order of the files."""
    command = ["rustc", "--print", "sysroot"]
    sysroot = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    docs = Path(sysroot, "share/doc/rust/html")
    seen: set[str] = set()
    for page in (page for book in BOOKS for page in sorted((docs / book).rglob("*.html"))):
        parser = Paragraphs()
        parser.feed(page.read_text(encoding="utf-8", errors="replace"))
        parser.flush()
        for text in parser.found:
            letters = sum(character.isalpha() or character == " " for character in text)
            # Sentences only: listings and tables have other lengths of tokens than what people embed.
            if len(text.split()) >= 8 and text[-1] in ".:!?" and letters >= 0.85 * len(text) and text not in seen:
                seen.add(text)
                yield text
    raise SystemExit(f"not enough prose in {docs}; rustup component add rust-docs")


def cut(pages: Iterator[str], tokenizer: Tokenizer, want: int) -> tuple[str, int]:
    """Paragraphs joined until they have `want` tokens, cut back to the end of a word; with the count of tokens."""
    text = next(pages)
    encoding = tokenizer.encode(text)
    while len(encoding.ids) < want:
        text = f"{text} {next(pages)}"
        encoding = tokenizer.encode(text)
    last = want - SPECIAL_TOKENS
    if len(encoding.ids) > want:
        # Not within a word: the pieces of half a word are others than those of the whole.
        while last > 1 and encoding.word_ids[last] == encoding.word_ids[last + 1]:
            last -= 1
        text = text[: encoding.offsets[last][1]]
    return text, len(tokenizer.encode(text).ids)


if __name__ == "__main__":
    sys.exit(main())
