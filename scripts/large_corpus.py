#!/usr/bin/env python3
"""Make large corpora of real text out of the Rust documentation that rustup installs, for the torture and scale runs.

    scripts/large_corpus.py OUT [MORE…]

OUT/pages/   one text file a page, and the .md, .rst and .txt files below MORE (manuals, the sources of other crates)
OUT/short.jsonl   10,000 different short paragraphs, {"id", "text"}

Needs nothing but Python; the documentation is `$(rustc --print sysroot)/share/doc/rust/html`
(`rustup component add rust-docs`). The same documentation gives the same corpora.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

PAGES_WORDS = 7_000_000
SHORT_TEXTS = 10_000
SKIPPED = {"script", "style", "nav", "noscript", "svg", "rustdoc-toolbar"}
BLOCKS = {"p", "li", "h1", "h2", "h3", "h4", "pre", "dd", "td"}


class Paragraphs(HTMLParser):
    """Collects the text of block elements, with white space folded."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.buffer: list[str] = []
        self.skipping = 0

    def flush(self) -> None:
        text = " ".join("".join(self.buffer).split())
        self.buffer.clear()
        if text:
            self.found.append(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SKIPPED:
            self.skipping += 1
        elif tag in BLOCKS:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        if tag in SKIPPED:
            self.skipping = max(0, self.skipping - 1)
        elif tag in BLOCKS:
            self.flush()

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.buffer.append(data)


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 64
    out = Path(sys.argv[1])
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True).stdout.strip()
    docs = Path(sysroot, "share/doc/rust/html")
    # Books before generated pages: prose first.
    books = ["book", "reference", "nomicon", "cargo", "rustc", "rustdoc", "rust-by-example", "edition-guide", "std", "core", "alloc"]
    pages = [page for book in books for page in sorted((docs / book).rglob("*.html"))]
    if not pages:
        print(f"no documentation in {docs}; rustup component add rust-docs", file=sys.stderr)
        return 1
    seen: set[str] = set()
    short: list[str] = []
    words = written = 0
    for page in pages:
        parser = Paragraphs()
        parser.feed(page.read_text(encoding="utf-8", errors="replace"))
        parser.close()
        # Every page repeats its neighbours' boilerplate; keep what is new.
        fresh = [text for text in parser.found if text not in seen and len(text.split()) >= 4]
        seen.update(fresh)
        if not fresh:
            continue
        short.extend(text for text in fresh if 60 <= len(text) <= 250)
        if words < PAGES_WORDS:
            name = "-".join(page.relative_to(docs).with_suffix(".txt").parts[1:])
            target = out / "pages" / page.relative_to(docs).parts[0] / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("\n\n".join(fresh) + "\n", encoding="utf-8")
            words += sum(len(text.split()) for text in fresh)
            written += 1
        if words >= PAGES_WORDS and len(short) >= SHORT_TEXTS:
            break
    for more in map(Path, sys.argv[2:]):
        for number, page in enumerate(sorted(p for p in more.rglob("*") if p.suffix in {".md", ".rst", ".txt"})):
            if page.is_file() and not page.is_symlink() and page.stat().st_size <= 2_000_000:
                target = out / "pages" / "more" / f"{more.name}-{number:05}-{page.name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(page, target)
    with open(out / "short.jsonl", "w", encoding="utf-8") as file:
        for number, text in enumerate(short[:SHORT_TEXTS]):
            file.write(json.dumps({"id": f"s{number}", "text": text}, ensure_ascii=False) + "\n")
    print(f"{written} pages, {words} words; {min(len(short), SHORT_TEXTS)} short texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
