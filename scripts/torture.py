#!/usr/bin/env python3
"""kill -9 at random moments of `embank sync`, then compare with a run that was left alone.

    scripts/torture.py EMBANK SOURCE [--embedder fake:384] [--kills 10] [--seed 1] [--work DIR] [-- MORE SYNC ARGS]

Prints the duration and peak memory of the calm run and of a second run with nothing changed, kills a second bank's runs at
moments drawn from the seed, and compares the two banks with `embank digest`. The cache must hold every distinct text
exactly once: it is append only, so a text that was embedded again although its vector was there would stand in it twice.
Exits 1 on any difference. Linux; standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(command: list[str]) -> tuple[float, int]:
    """Seconds and peak resident MiB; the command must succeed."""
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    stderr = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(command)} failed: {stderr.decode(errors='replace')[-2000:]}")
    return time.monotonic() - began, usage.ru_maxrss // 1024


def run_and_kill(command: list[str], after: float) -> bool:
    """Kills after that many seconds; whether it was still running."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        child.wait(timeout=after)
        return False
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.wait()
        return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embank")
    parser.add_argument("source")
    parser.add_argument("--embedder", default="fake:384")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", default=None, help="folder for the two banks (default: a temporary one, removed)")
    own, more = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, more = own[:at], own[at + 1 :]
    args = parser.parse_args(own)
    rng = random.Random(args.seed)
    work = Path(args.work or tempfile.mkdtemp(prefix="embank-torture-"))

    def embank(bank: str, *command: str) -> list[str]:
        return [args.embank, "--quiet", "--embedder", args.embedder, "--bank", str(work / bank), *command]

    def ask(bank: str, command: str) -> dict:
        return json.loads(subprocess.run(embank(bank, "--json", command), check=True, capture_output=True).stdout)

    sync = ["sync", args.source, *more]
    for bank in ("calm", "killed"):
        shutil.rmtree(work / bank, ignore_errors=True)
    seconds, peak = run(embank("calm", *sync))
    print(f"calm run: {seconds:.1f} s, peak {peak} MiB", flush=True)
    again, again_peak = run(embank("calm", *sync))
    print(f"second run, nothing changed: {again:.2f} s, peak {again_peak} MiB", flush=True)

    kills = 0
    while kills < args.kills:
        # Each run gets further than the last only by what it had acknowledged, so short lives are the hard ones.
        after = rng.uniform(0.05, seconds / args.kills * 1.6)
        if not run_and_kill(embank("killed", *sync), after):
            print(f"the job was done after {kills} kills", flush=True)
            break
        kills += 1
        print(f"kill {kills} after {after:.2f} s", flush=True)
    rest, _ = run(embank("killed", *sync))
    print(f"{kills} kills (seed {args.seed}), the last run took {rest:.1f} s", flush=True)

    want, got = ask("calm", "digest"), ask("killed", "digest")
    cached = [ask(bank, "status")["cached"] for bank in ("calm", "killed")]
    for table in want:
        print(f"{table}: {want[table]['rows']} rows, {'equal' if want[table] == got[table] else 'DIFFERENT ' + str(got[table])}")
    print(f"texts in the cache: {cached[0]} calm, {cached[1]} killed")
    failed = want != got or cached[0] != cached[1]
    if not args.work:
        shutil.rmtree(work, ignore_errors=True)
    print("FAILED" if failed else "nothing lost, nothing twice")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
