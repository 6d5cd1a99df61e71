#!/usr/bin/env python3
"""benches/race: a folder of 5,000 short texts becomes a local store that can be searched, and stays one.

    PY=$(scripts/bench-env.sh | tail -1)
    "$PY" benches/race/run.py --embank target/release/embank      # all contenders, one round
    "$PY" benches/race/run.py --only script --rounds 2
    "$PY" benches/race/run.py --table                             # what has been measured so far

Each contender makes its store (first), runs again with nothing changed (no-op) and after 1 % was edited and 1 % removed
(delta); then it starts anew, is killed with SIGKILL after half the time that its first run took, and runs again (after the
kill); then its store is deleted and it runs once more. Seconds are those of the whole command, start to exit. Memory is the
peak of the sum of the resident sets of the command's processes, looked at every 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "embed")]
import corpus  # noqa: E402
from model_folder import sentence_transformers_folder  # noqa: E402
from stores import CONTENDERS, Contender  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embank"
MODEL = "all-minilm-l6-v2"
K = 10
WARM_UP_TEXTS = 100
PHASES = ["first", "no-op", "delta", "after the kill", "after its store was deleted"]


def main() -> int:
    options = arguments()
    work, results = options.work, options.work / "results.json"
    record = json.loads(results.read_text()) if results.exists() and not options.fresh else {"contenders": {}}
    if not options.table:
        work.mkdir(parents=True, exist_ok=True)
        folder = sentence_transformers_folder(options.model_dir, work / "sentence-transformers")
        record["machine"] = machine(options.embank)
        for _ in range(options.rounds):
            for name in options.only:
                contender = CONTENDERS[name](work / name, folder, options.embank, options.model_dir.parent)
                rounds = record["contenders"].setdefault(name, [])
                rounds.append(race(contender, work / name, options.texts))
                results.write_text(json.dumps(record, indent=1))
    print(tables(record))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    parser.add_argument("--embank", type=Path, default=target / "release/embank", help="the binary")
    parser.add_argument("--model-dir", type=Path, default=CACHE / "models" / MODEL)
    parser.add_argument("--work", type=Path, default=CACHE / "bench-race", help="documents, stores, results")
    parser.add_argument("--only", type=lambda names: names.split(","), default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--texts", type=int, default=corpus.TEXTS, help="fewer only to try it out")
    parser.add_argument("--fresh", action="store_true", help="forget earlier rounds")
    parser.add_argument("--table", action="store_true", help="measure nothing, print the tables")
    return parser.parse_args()


def machine(embank: Path) -> str:
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    ours = subprocess.run([embank, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    packages = ("sentence-transformers", "torch", "lancedb", "cocoindex")
    return f"{cpu}, {os.cpu_count()} CPUs; {ours}, " + ", ".join(f"{name} {version(name)}" for name in packages) + "."


def race(contender: Contender, home: Path, texts: int) -> dict:
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    asked = home / "queries.json"
    # The first start on a machine reads libraries and model from the disk, which would be measured as well.
    corpus.write(contender.docs, asked, WARM_UP_TEXTS)
    run(contender)
    contender.forget()
    corpus.write(contender.docs, asked, texts)
    kept: dict = {"at": datetime.now(timezone.utc).isoformat(timespec="seconds"), "phases": {}}
    phases = kept["phases"]

    phases["first"] = run(contender)
    kept["embedded"] = {"first": contender.embedded(phases["first"])}
    kept["recall"] = recall(contender, json.loads(asked.read_text(encoding="utf-8")))
    phases["no-op"] = run(contender)
    kept["embedded"]["no-op"] = contender.embedded(phases["no-op"])
    corpus.change(contender.docs)
    phases["delta"] = run(contender)
    kept["embedded"]["delta"] = contender.embedded(phases["delta"])
    kept["rows after delta"] = len(contender.rows()[0])

    contender.forget()
    corpus.write(contender.docs, asked, texts)
    killed = run(contender, kill_after=phases["first"]["seconds"] / 2)
    kept["embedded before the kill"] = contender.embedded(killed)
    kept["computed before the kill"] = contender.computed(killed)
    phases["after the kill"] = run(contender)
    kept["embedded after the kill"] = contender.embedded(phases["after the kill"])
    kept["computed after the kill"] = contender.computed(phases["after the kill"])
    ids = contender.rows()[0]
    kept["rows after the kill"] = [len(ids), len(set(ids))]

    contender.delete_store()
    phases["after its store was deleted"] = run(contender)
    kept["embedded after deletion"] = contender.embedded(phases["after its store was deleted"])
    kept["rows after deletion"] = len(contender.rows()[0])
    return kept


def run(contender: Contender, kill_after: float | None = None) -> dict:
    contender.count.unlink(missing_ok=True)
    out = contender.home / "out.txt"
    with open(out, "w", encoding="utf-8") as file:
        start = time.perf_counter()
        environment = os.environ | contender.environment()
        process = subprocess.Popen(
            contender.command(),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=contender.home,
            start_new_session=True,
        )
        peak = {"peak_mb": 0.0}
        watcher = threading.Thread(target=watch, args=(process.pid, peak), daemon=True)
        watcher.start()
        if kill_after is not None:
            try:
                process.wait(kill_after)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        seconds = time.perf_counter() - start
        watcher.join()
    text = out.read_text(encoding="utf-8", errors="replace")
    print(f"{contender.home.name}: {seconds:.2f} s, {peak['peak_mb']:.0f} MB, exit {code}", file=sys.stderr)
    return {"seconds": seconds, "exit": code, "out": text[-200_000:]} | peak


def watch(pid: int, peak: dict[str, float]) -> None:
    while (resident := field_mb(pid, "VmHWM")) is not None:
        # Of the command's own process the kernel keeps the peak; what it starts is added as it is at the moment.
        children = sum(field_mb(child, "VmRSS") or 0.0 for child in descendants(pid))
        if children:
            resident = (field_mb(pid, "VmRSS") or 0.0) + children
        peak["peak_mb"] = max(peak["peak_mb"], resident)
        time.sleep(0.05)


def field_mb(pid: int, field: str) -> float | None:
    """None when the process has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) / 1024 for line in file if line.startswith(field)), None)
    except OSError:
        return None


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        found += children + [grandchild for child in children for grandchild in descendants(child)]
    return found


def recall(contender: Contender, asked: list[str]) -> dict:
    """Of the K documents served for each question: the share that exact search over the same stored vectors finds too.

    A document as near as the K-th counts: among equal texts it is chance which one is served.
    """
    ids, vectors = contender.rows()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    place = {id_: row for row, id_ in enumerate(ids)}
    shares = []
    questions = contender.vectors_of(asked)
    for text, question in zip(asked, questions):
        exact = vectors @ (question / np.linalg.norm(question))
        bar = np.sort(exact)[-K] - 1e-6
        served = contender.serve(text, question, K)
        shares.append(sum(exact[place[id_]] >= bar for id_ in set(served)) / K)
    return {"mean": statistics.mean(shares), "worst": min(shares), "questions": len(shares)}


def tables(record: dict) -> str:
    out = []
    if "machine" in record:
        out += [record["machine"], ""]
    names = [name for name in CONTENDERS if record["contenders"].get(name)]
    out.append("| | " + " | ".join(names) + " |")
    out.append("|---|" + "---|" * len(names))
    rounds = [record["contenders"][name] for name in names]
    for title, key, digits in (("s", "seconds", 2), ("peak MB", "peak_mb", 0)):
        for phase in PHASES:
            cells = [spread(found, phase, key, digits) for found in rounds]
            out.append(f"| {phase}, {title} | " + " | ".join(cells) + " |")
    for title, cell in {
        "texts embedded: first, no-op, delta": lambda r: ", ".join(str(count) for count in r["embedded"].values()),
        "rows after delta": lambda r: r["rows after delta"],
        "embedded before the kill + by the next run": lambda r: "{} + {}".format(
            r["embedded before the kill"], r["embedded after the kill"]
        ),
        "of these the model computed twice": twice,
        "rows (distinct) after the kill": lambda r: "{} ({})".format(*r["rows after the kill"]),
        "recall@10, mean (worst)": lambda r: f"{r['recall']['mean']:.3f} ({r['recall']['worst']:.1f})",
        "after its store was deleted: exit, embedded, rows": lambda r: "{}, {}, {}".format(
            r["phases"][PHASES[-1]]["exit"], r["embedded after deletion"], r["rows after deletion"]
        ),
    }.items():
        cells = ["; ".join(str(cell(round_)) for round_ in found) for found in rounds]
        out.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def twice(round_: dict) -> str:
    """Texts that the model began to compute in both runs around the kill; the rivals embed each of theirs as it is counted."""
    if (before := round_.get("computed before the kill")) is None:
        return "–"
    cached = round_["embedded before the kill"] + round_["embedded after the kill"]
    return str(before + round_["computed after the kill"] - cached)


def spread(rounds: list[dict], phase: str, key: str, digits: int) -> str:
    values = [round_["phases"][phase][key] for round_ in rounds]
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
