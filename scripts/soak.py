#!/usr/bin/env python3
"""Thousands of small changes to one bank: how versions, pieces, bytes and time go.

    scripts/soak.py EMBANK [--rounds 2000] [--keep-versions 60s] [--embedder fake:384] [--kind KIND] [--seed 1] [--every 100]

Each round writes one to five short texts, edits one and sometimes removes one, and runs `embank sync`. Every so many rounds
it prints a line: the median seconds of a sync since the last line, and over all tables versions, fragments and bytes. At the
end a second bank takes in the same files at once, and the two must have equal contents. Exits 1 on any difference. Standard
library only.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = "barrel frost rain pump well filter compost worm lime mulch clay hive swarm queen mite honey smoke frame hose pond tank seed root bed".split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embank")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--keep-versions", default="60s")
    parser.add_argument("--embedder", default="fake:384")
    parser.add_argument("--kind", default="auto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=100)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    work = Path(tempfile.mkdtemp(prefix="embank-soak-"))
    docs = work / "docs"
    docs.mkdir()
    for bank in ("bank", "calm"):
        (work / bank).mkdir()
        (work / bank / "embank.toml").write_text(f'[housekeeping]\nkeep-versions = "{args.keep_versions}"\n')

    def embank(bank: str, *command: str) -> str:
        line = [args.embank, "--quiet", "--embedder", args.embedder, "--bank", str(work / bank), *command]
        done = subprocess.run(line, capture_output=True, text=True, cwd=work)
        if done.returncode not in (0, 2):
            sys.exit(f"{' '.join(line)}: {done.returncode}\n{done.stderr}")
        return done.stdout

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(8, 60)))

    files: list[Path] = []
    seconds: list[float] = []
    print(f"{'round':>6} {'rows':>7} {'median s':>9} {'versions':>9} {'fragments':>10} {'MiB':>8}", flush=True)
    for round_number in range(1, args.rounds + 1):
        for _ in range(rng.randint(1, 5)):
            path = docs / f"{len(files):06}.txt"
            path.write_text(f"{len(files)} {text()}")
            files.append(path)
        rng.choice(files).write_text(text())
        if rng.random() < 0.3:
            files.pop(rng.randrange(len(files))).unlink(missing_ok=True)
            # Names are never used twice.
            files.append(docs / f"again-{round_number:06}.txt")
            files[-1].write_text(text())
        began = time.monotonic()
        embank("bank", "sync", str(docs), "--kind", args.kind)
        seconds.append(time.monotonic() - began)
        if round_number % args.every == 0:
            status = json.loads(embank("bank", "--json", "status"))
            total = {key: sum(table[key] for table in status["tables"]) for key in ("versions", "fragments", "bytes")}
            print(
                f"{round_number:>6} {status['chunks']:>7} {statistics.median(seconds):>9.3f} {total['versions']:>9}"
                f" {total['fragments']:>10} {total['bytes'] / 2**20:>8.1f}",
                flush=True,
            )
            seconds.clear()
    embank("calm", "sync", str(docs), "--kind", "flat")
    same = embank("bank", "--json", "digest") == embank("calm", "--json", "digest")
    print("equal to a bank filled at once" if same else "DIFFERENT from a bank filled at once")
    shutil.rmtree(work, ignore_errors=True)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
