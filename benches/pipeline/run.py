#!/usr/bin/env python3
"""The pipeline around the embedder: ingest, backfill with the fake embedder, and a backfill that finds nothing to do.

Generates N short records, runs the release binary on them, and prints one table: rows a second, microseconds a row, peak
resident memory of the process, seconds of a run with nothing to do, and bytes on disk. Standard library alone.

    benches/pipeline/run.py                         10,000, 100,000 and 1,000,000 records
    benches/pipeline/run.py 10000 --embank PATH     other sizes, another binary
    benches/pipeline/run.py 10000 --embedder all-minilm-l6-v2      and the share of the bare model's rate that is reached

Exit code 1 if a count does not come out as it must: a figure of a run that lost rows is worth nothing.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

WORDS = (
    "barrel frost rain pump well filter compost worm lime mulch clay hive swarm queen mite honey smoke frame hose pond "
    "tank seed root bed"
).split()


def write_records(path, count, duplicates):
    """One JSON line a record; texts of eleven words. Every `duplicates`-th text repeats an earlier one (0: none does)."""
    with open(path, "w", encoding="utf-8") as out:
        for number in range(count):
            text_number = number // 2 if duplicates and number % duplicates == duplicates - 1 else number
            state = text_number
            words = []
            for _ in range(8):
                # splitmix64: the same records on every machine, without a seed to remember.
                state = (state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
                mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
                mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
                words.append(WORDS[(mixed ^ (mixed >> 31)) % len(WORDS)])
            text = f"note {text_number}: {' '.join(words)}."
            out.write(json.dumps({"id": f"r{number}", "text": text}) + "\n")


def measure(command):
    """Runs a command; returns its JSON answer, seconds of wall clock, seconds of CPU and peak resident bytes."""
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    answer = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {child.returncode}")
    # Linux counts ru_maxrss in KiB.
    return json.loads(answer), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def folder_bytes(folder):
    return sum(entry.stat().st_size for entry in pathlib.Path(folder).rglob("*") if entry.is_file())


def run(embank, embedder, count, duplicates, parent):
    place = pathlib.Path(tempfile.mkdtemp(prefix=f"pipeline-{count}-", dir=parent))
    try:
        records = place / "records.jsonl"
        write_records(records, count, duplicates)
        base = [embank, "--quiet", "--json", "--bank", place / "bank", "--embedder", embedder]
        _, ingest, _, ingest_memory = measure([*base, "ingest", records])
        report, backfill, cpu, memory = measure([*base, "backfill"])
        if report["ready"] != count:
            sys.exit(f"{report['ready']} of {count} rows became ready")
        again, no_op, _, _ = min((measure([*base, "backfill"]) for _ in range(3)), key=lambda result: result[1])
        if again["ready"] != 0:
            sys.exit("a run with nothing to do did something")
        bare = None
        if not embedder.startswith("fake:"):
            # The same texts, in the same process as nothing else; right after, because machines slow down and speed up.
            bench = ["model", "bench", embedder, "--texts", records, "--rounds", "1"]
            bare = measure([embank, "--quiet", "--json", "--bank", place / "none", *bench])[0]
        return {
            "bare": bare and bare["texts_per_second"],
            "load_s": bare and bare["load_seconds"],
            "report_s": report["seconds"],
            "rows": count,
            "ingest_s": ingest,
            "ingest_rss": ingest_memory,
            "backfill_s": backfill,
            "rate": count / backfill,
            "row_us": backfill / count * 1e6,
            "cpu_us": cpu / count * 1e6,
            "rss": memory,
            "no_op_s": no_op,
            "bytes": folder_bytes(place / "bank"),
            "embedded": report["embedded"],
        }
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("counts", nargs="*", type=int, default=[10_000, 100_000, 1_000_000])
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).parents[2] / "target"))
    parser.add_argument("--embank", default=target / "release" / "embank")
    parser.add_argument("--embedder", default="fake:384")
    parser.add_argument("--duplicates", type=int, default=0, help="every so many texts, one repeats an earlier one")
    parser.add_argument("--dir", help="where the banks are made and removed again; default: the system's")
    parser.add_argument("--json", action="store_true", help="one JSON line a size instead of the table")
    options = parser.parse_args()
    if not options.json:
        print("| rows | ingest s | backfill s | rows/s | µs/row | CPU µs/row | peak RSS MB | no-op s | bank MB |")
        print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for count in options.counts:
        row = run(options.embank, options.embedder, count, options.duplicates, options.dir)
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        print(
            f"| {count:,} | {row['ingest_s']:.1f} | {row['backfill_s']:.2f} | {row['rate']:,.0f} | {row['row_us']:.1f} "
            f"| {row['cpu_us']:.1f} | {row['rss'] / 1e6:.0f} | {row['no_op_s']:.3f} | {row['bytes'] / 1e6:,.0f} |",
            flush=True,
        )
        if row["bare"]:
            steady = row["rows"] / (row["report_s"] - row["load_s"])
            print(
                f"\nThe bare model: {row['bare']:,.1f} texts/s after a load of {row['load_s']:.2f} s. The backfill, from its first "
                f"look at the bank to its last commit: {row['rows'] / row['report_s']:,.1f} ({row['rows'] / row['report_s'] / row['bare']:.1%}); "
                f"without the load {steady:,.1f} ({steady / row['bare']:.1%}).\n",
                flush=True,
            )


if __name__ == "__main__":
    main()
