#!/usr/bin/env python3
"""How much is embedded again after a kill: `embank backfill` over the race's texts, killed with SIGKILL at random moments.

    PY=$(scripts/bench-env.sh | tail -1)
    "$PY" benches/race/kills.py --embank target/release/embank --kills 20

Each run is let go until the model begins its first batch, and killed at a random moment of the seconds after that; the next
run continues on the same bank, until all is embedded; then a new bank is begun. Counted in the run's own trace lines: texts
that the embedder was asked for, and texts of batches that the model began. What the run's cache has not gained of them is
embedded again. That is checked from the other end: over a whole bank, texts computed = different texts + those lost.

Exit code 1 if that does not come out, or if a row is missing or there twice at the end.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "embed")]
import corpus  # noqa: E402
from run import CACHE, MODEL, ROOT  # noqa: E402
from stores import Embank, texts_in  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    parser.add_argument("--embank", type=Path, default=target / "release/embank", help="the binary")
    parser.add_argument("--model-dir", type=Path, default=CACHE / "models" / MODEL)
    parser.add_argument("--work", type=Path, default=CACHE / "bench-race" / "kills")
    parser.add_argument("--texts", type=int, default=corpus.TEXTS)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds of work before a kill, at most")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    chance = random.Random(options.seed)
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    bank = Embank(options.work, options.model_dir, options.embank, options.model_dir.parent)
    corpus.write(bank.docs, options.work / "queries.json", options.texts)
    kills: list[dict] = []
    while len(kills) < options.kills:
        bank.forget()
        subprocess.run([*bank.base(), "ingest", str(bank.docs)], check=True, stdout=subprocess.DEVNULL)
        began, of_bank, cached = len(kills), 0, 0
        while True:
            seconds = chance.uniform(0, options.longest) if len(kills) < options.kills else None
            out, was_killed = backfill(bank, seconds)
            asked, computed = texts_in(out, "asking the embedder"), texts_in(out, "the model begins a batch")
            gained, cached = bank.cached() - cached, bank.cached()
            of_bank += sum(computed)
            if not was_killed:
                break
            kill = {
                "after": seconds,
                "asked": sum(asked),
                "computed": sum(computed),
                "cached": gained,
                "again": sum(computed) - gained,
                "asked again": sum(asked) - gained,
                "call": max(asked, default=0),
            }
            kills.append(kill)
            print(", ".join(f"{key} {value:.2f}" if key == "after" else f"{key} {value}" for key, value in kill.items()), flush=True)
        lost = sum(kill["again"] for kill in kills[began:])
        ids = bank.rows()[0]
        if of_bank != cached + lost or len(ids) != options.texts or len(set(ids)) != options.texts:
            sys.exit(f"{of_bank} texts computed, {cached} cached, {lost} lost; {len(ids)} rows ({len(set(ids))} different)")
    for title, key in (("embedded again", "again"), ("asked for again", "asked again"), ("texts of the largest call", "call")):
        values = sorted(kill[key] for kill in kills)
        print(f"{title}: median {statistics.median(values):.0f}, mean {statistics.mean(values):.1f}, most {values[-1]}; {values}")
    within = sum(kill["again"] <= kill["call"] for kill in kills)
    print(f"{within} of {len(kills)} kills cost one call's texts or fewer")
    return 0


def backfill(bank: Embank, seconds: float | None) -> tuple[str, bool]:
    """Its trace lines, and whether it was killed: so many seconds after the model began its first batch."""
    process = subprocess.Popen(
        [*bank.base(), "backfill"],
        env=os.environ | bank.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    has_begun = threading.Event()

    def read() -> None:
        for line in process.stderr:
            lines.append(line)
            if "the model begins a batch" in line:
                has_begun.set()
        has_begun.set()

    reading = threading.Thread(target=read)
    reading.start()
    if seconds is not None:
        has_begun.wait()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    code = process.wait()
    reading.join()
    if code not in (0, -signal.SIGKILL):
        sys.exit("".join(lines))
    return "".join(lines), code != 0


if __name__ == "__main__":
    sys.exit(main())
