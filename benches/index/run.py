#!/usr/bin/env python3
"""Every kind of index over 110,000 real sentences: time and memory of building, size, tuned settings, recall, latency.

Makes the corpus and a bank with its vectors once (some minutes), then for each kind copies that bank, builds, tunes and
validates with the release binary at each gate, and prints the tables of docs/benchmarks/index.md. Standard library alone.

    benches/index/run.py                                all kinds, gates 0.95 and 0.99
    benches/index/run.py --kinds ivf-rq --gates 0.95    some of them; the others' results of earlier runs are kept
    benches/index/run.py --kinds ivf-rq:bits=1,partitions=64     with parameters set by hand
    benches/index/run.py --rows 27500                   of a quarter of the sentences
    benches/index/run.py --table                        the table again

A machine that does other work at the same time measures that work.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import corpus

KINDS = ["flat", "ivf-flat", "ivf-pq", "ivf-rq", "hnsw", "hnsw-pq", "hnsw-flat"]
GATES = [0.95, 0.99]
MODEL = "all-minilm-l6-v2"
SEED = "7"


def place() -> pathlib.Path:
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    return cache / "embank" / "bench-index"


def command(embank, bank, *words):
    """Runs embank; returns its JSON answer (None without one), exit code, wall seconds and peak resident bytes."""
    line = [embank, "--quiet", "--json", "--embedder", MODEL, "--bank", bank, *words]
    began = time.perf_counter()
    child = subprocess.Popen(line, stdout=subprocess.PIPE)
    answer = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    # Linux counts ru_maxrss in KiB.
    return json.loads(answer) if answer else None, child.returncode, seconds, usage.ru_maxrss * 1024


def filled(embank, home, rows):
    """A bank with the vectors of the first `rows` sentences and no index."""
    texts = home / "corpus" / "records.jsonl"
    if not texts.is_file():
        print(f"{corpus.write(home / 'corpus'):,} sentences to draw from", file=sys.stderr)
    bank = home / ("bank" if rows == corpus.TEXTS else f"bank-{rows}")
    if not bank.is_dir():
        part = home / f"records-{rows}.jsonl"
        with open(texts, encoding="utf-8") as lines:
            part.write_text("".join(line for number, line in enumerate(lines) if number < rows), encoding="utf-8")
        for step in (["ingest", part], ["backfill"]):
            _, code, seconds, _ = command(embank, bank, *step)
            if code != 0:
                sys.exit(f"{step[0]} ended with {code}")
            print(f"{step[0]} of {rows:,}: {seconds:.0f} s", file=sys.stderr)
        part.unlink()
    return bank


def measure(embank, home, rows, kind, gates):
    """Builds one kind on a copy of the bank at the first gate and tunes it again for the others; yields a result for each."""
    name, _, parameters = kind.partition(":")
    flags = [word for part in parameters.split(",") if part for word in (f"--{part.split('=')[0]}", part.split("=")[1])]
    bank = home / "work"
    shutil.rmtree(bank, ignore_errors=True)
    shutil.copytree(filled(embank, home, rows), bank)
    try:
        for gate in gates:
            if gate == gates[0]:
                step = ["build", "--kind", name, "--min-recall", str(gate), "--seed", SEED, *flags]
            else:
                # The same index: what another target costs is other settings.
                step = ["tune", "--target-recall", str(gate)]
            answer, code, wall, peak = command(embank, bank, "index", *step)
            if code not in (0, 2):
                sys.exit(f"{kind} at {gate} ended with {code}")
            result = {"kind": kind, "gate": gate, "rows": rows, "step": step[0], "passed": code == 0, "wall": wall, "peak": peak}
            yield result | {"generation": (answer or {}).get("generation")}
            if step[0] == "build" and code == 2:
                break
    finally:
        shutil.rmtree(bank, ignore_errors=True)


def settings(generation):
    known = {"nprobes": "nprobes", "ef": "ef", "refine_factor": "refine"}
    found = [f"{label} {generation['settings'][key]}" for key, label in known.items() if generation["settings"].get(key)]
    return ", ".join(found) or "–"


def spec(generation):
    hidden = ("kind", "sample_rate", "max_iterations")
    return ", ".join(f"{key} {value}" for key, value in (generation["spec"] or {}).items() if key not in hidden) or "–"


def line(result):
    generation = result["generation"]
    first = [result["kind"].partition(":")[0]]
    if generation is None:
        return first + ["–"] * (len(HEAD) - 2) + ["**no**"]
    recall = generation["recall"] or {}
    built = generation["build_seconds"]
    is_build = result["step"] == "build" and built > 0.2
    size = generation["index_bytes"]
    return first + [
        spec(generation),
        f"{built:.1f}" if is_build else "–",
        f"{result['wall']:.1f}",
        f"{result['wall'] / built:.2f}" if is_build else "–",
        f"{result['peak'] / 2**20:,.0f}",
        f"{size / 2**20:,.1f}" if size else "–",
        settings(generation),
        f"{recall.get('recall', 0):.4f} (≥ {recall.get('bound', 0):.4f})",
        f"{recall.get('p50_ms', 0):.2f}",
        f"{recall.get('p95_ms', 0):.2f}",
        "yes" if result["passed"] else "**no**",
    ]


HEAD = "kind;parameters;build s;all s;all ÷ build;peak MiB;index MiB;tuned;recall@10 (proven);p50 ms;p95 ms;passed".split(";")


def print_table(results):
    for rows in sorted({result["rows"] for result in results.values()}, reverse=True):
        for gate in sorted({result["gate"] for result in results.values() if result["rows"] == rows}):
            print(f"\n{rows:,} rows × 384, gate {gate}\n\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
            chosen = [result for result in results.values() if (result["rows"], result["gate"]) == (rows, gate)]
            order = lambda result: (KINDS.index(result["kind"].partition(":")[0]), result["kind"])  # noqa: E731
            for result in sorted(chosen, key=order):
                print(f"| {' | '.join(line(result))} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).parents[2] / "target"))
    parser.add_argument("--embank", default=target / "release" / "embank")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--gates", nargs="+", type=float, default=GATES)
    parser.add_argument("--rows", type=int, default=corpus.TEXTS)
    parser.add_argument("--fresh", action="store_true", help="forget the results of earlier runs")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    home = place()
    home.mkdir(parents=True, exist_ok=True)
    kept = home / "results.json"
    results = {} if options.fresh or not kept.is_file() else json.loads(kept.read_text(encoding="utf-8"))
    if not options.table:
        for kind in options.kinds:
            for result in measure(options.embank, home, options.rows, kind, options.gates):
                results[f"{kind} {result['gate']} {options.rows}"] = result
                kept.write_text(json.dumps(results), encoding="utf-8")
                print(" | ".join(line(result)), file=sys.stderr, flush=True)
    print_table(results)


if __name__ == "__main__":
    main()
