#!/usr/bin/env python3
"""benches/embed: embank against its rivals on the same texts and the same two threads, in one run.

    PY=$(scripts/bench-env.sh | tail -1)
    "$PY" benches/embed/run.py --embank target/release/embank     # all of it
    "$PY" benches/embed/run.py --mix s30 --rounds 2 --only embank-f32,onnxruntime
    "$PY" benches/embed/run.py --table                                   # what has been measured so far

Contenders take turns, round by round (A B C A B C …), each in its own process that sleeps while others work; the tables
show medians. Every time is that from texts to unit vectors, tokenising included, loading excluded. Rounds are added to
RESULTS, so that a long run can be cut in pieces; delete the file, or pass --fresh, to begin anew. Useful GFLOP/s count the
matrix products of the layers over real tokens; padding is a rival's own cost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from contenders import BATCHES, CONTENDERS, MODEL, THREADS, start  # noqa: E402
from tables import MIXES, tables  # noqa: E402

ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embank"
LAYERS, HIDDEN, INNER = 6, 384, 1536


def main() -> int:
    options = arguments()
    results = options.results
    record = {"batches": {}, "mixes": {}}
    if results.exists() and not options.fresh:
        record = json.loads(results.read_text())
    if not options.table:
        work = options.work
        work.mkdir(parents=True, exist_ok=True)
        prepare(work, options.model_dir)
        record["machine"] = machine(options.embank)
        for mix in options.mix:
            measure(mix, options, record)
    print(tables(record))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    parser.add_argument("--embank", type=Path, default=target / "release/embank", help="the binary")
    parser.add_argument("--model-dir", type=Path, default=CACHE / "models" / MODEL)
    parser.add_argument("--work", type=Path, default=CACHE / "bench-embed", help="texts, graph, rivals' build")
    parser.add_argument("--results", type=Path, help="default WORK/results.json")
    parser.add_argument("--mix", type=lambda names: names.split(","), default=MIXES)
    parser.add_argument("--only", type=lambda names: names.split(","), default=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="forget earlier rounds and batch sizes")
    parser.add_argument("--table", action="store_true", help="measure nothing, print the tables")
    options = parser.parse_args()
    options.results = options.results or options.work / "results.json"
    return options


def prepare(work: Path, model: Path) -> None:
    """Texts, the fused graph, the model folder and the Rust rivals, each only if it is missing."""
    from model_folder import sentence_transformers_folder

    if not (work / "texts/mixed.jsonl").exists():
        subprocess.run([sys.executable, HERE / "texts.py", work / "texts", model], check=True)
    if not (work / "fused.onnx").exists():
        subprocess.run([sys.executable, HERE / "export_onnx.py", model, work / "fused.onnx"], check=True)
    sentence_transformers_folder(model, work / "sentence-transformers")
    build = ["cargo", "build", "--release", "--locked", "--manifest-path", ROOT / "benches/rivals/Cargo.toml"]
    subprocess.run([*build, "--quiet", "--target-dir", work / "rivals-target"], check=True)


def machine(embank: Path) -> dict[str, object]:
    lines = (line.split(":", 1) for line in open("/proc/cpuinfo") if ":" in line)
    cpu = {name.strip(): value.strip() for name, value in lines}
    flags = cpu.get("flags", "").split()
    embank_version = subprocess.run([embank, "--version"], capture_output=True, text=True).stdout.split()[-1]
    lock = (ROOT / "benches/rivals/Cargo.lock").read_text()
    crate = lambda name: lock.split(f'name = "{name}"\nversion = "')[1].split('"')[0]
    return {
        "cpu": f"{cpu.get('model name', '?')}, family {cpu.get('cpu family', '?')} model {cpu.get('model', '?')}",
        "cpus": os.cpu_count(),
        "features": [name for name in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if name in flags],
        "kernel": platform.release(),
        "threads": THREADS,
        "versions": {
            "embank": embank_version,
            "onnxruntime": version("onnxruntime"),
            "sentence-transformers": version("sentence-transformers"),
            "torch": version("torch"),
            "candle": crate("candle-core"),
            "fastembed": crate("fastembed"),
        },
    }


def measure(mix: str, options: argparse.Namespace, record: dict) -> None:
    texts = options.work / "texts" / f"{mix}.jsonl"
    lines = [json.loads(line) for line in open(texts, encoding="utf-8")]
    kept = record["mixes"].setdefault(mix, {"texts": len(lines), "contenders": {}})
    kept["sha256"] = hashlib.sha256(texts.read_bytes()).hexdigest()
    kept["tokens"] = sum(line["tokens"] for line in lines)
    kept["gflop"] = sum(flops(line["tokens"]) for line in lines) / 1e9
    workers = {name: start(name, options) for name in options.only}
    try:
        tune(mix, workers, options, record, lines)
        for _ in range(options.rounds):
            for name, worker in workers.items():
                found = kept["contenders"].setdefault(name, {"rounds": []})
                dump = options.work / f"{mix}-{name}.f32"
                round_ = worker.round(texts, record["batches"].get(mix, {}).get(name), dump)
                round_["at"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
                found["rounds"].append(round_)
                rate = kept["gflop"] / round_["seconds"]
                compare(mix, options.work, kept)
                options.results.write_text(json.dumps(record, indent=1))
                print(f"{mix} {name}: {round_['seconds']:.2f} s, {rate:.1f} GFLOP/s", file=sys.stderr)
    finally:
        for worker in workers.values():
            worker.stop()


def flops(tokens: int) -> float:
    """Two per multiply-add of the matrix products: projections and feed-forward per token, attention per pair of tokens."""
    return 2.0 * LAYERS * (tokens * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER) + 2 * tokens * tokens * HIDDEN)


def tune(mix: str, workers: dict, options: argparse.Namespace, record: dict, lines: list[dict]) -> None:
    """Lets each rival that has not yet done so try its batch sizes on an eighth of the texts, twice."""
    part = options.work / f"{mix}-part.jsonl"
    part.write_text("".join(json.dumps(line) + "\n" for line in lines[::8]), encoding="utf-8")
    chosen = record["batches"].setdefault(mix, {})
    for name, worker in workers.items():
        if name in BATCHES and name not in chosen:
            seconds = lambda batch: min(worker.round(part, batch, None)["seconds"] for _ in range(2))
            tried = {batch: seconds(batch) for batch in BATCHES[name]}
            chosen[name] = min(tried, key=tried.get)
            shown = ", ".join(f"{batch}: {seconds:.2f} s" for batch, seconds in tried.items())
            print(f"{mix} {name}: batch {chosen[name]} of {shown}", file=sys.stderr)


def compare(mix: str, work: Path, kept: dict) -> None:
    """The smallest cosine of each contender's vectors to torch's, text by text."""
    import numpy as np

    reference = work / f"{mix}-torch.f32"
    if not reference.exists():
        return
    expected = np.fromfile(reference, "<f4").reshape(-1, HIDDEN).astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for name, found in kept["contenders"].items():
        dump = work / f"{mix}-{name}.f32"
        if dump.exists():
            vectors = np.fromfile(dump, "<f4").reshape(-1, HIDDEN).astype(np.float64)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            found["min_cosine"] = float((vectors * expected).sum(axis=1).min())


if __name__ == "__main__":
    sys.exit(main())
