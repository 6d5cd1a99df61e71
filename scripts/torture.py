#!/usr/bin/env python3
"""kill -9 at random moments of everything that writes to a bank, and comparison with a bank that was left alone.

    scripts/torture.py EMBANK [--kills 200] [--seed 1] [--rows 3000] [--work DIR]
    scripts/torture.py EMBANK --source DIR [--embedder fake:384] [--kills 10] [--seed 1] [-- MORE SYNC ARGS]

Without --source a seed draws one bank after the other until enough kills have landed: records and files, four rounds of edits,
removals, moved categories and restored texts; in each round `sync`, or `ingest`, `backfill`, `index build` and `index gc` one
by one, each killed several times and then left to end. A moment is drawn either in time or in lines of the log, so that short
lives are covered too; a run after a kill is a recovery, and is killed as well. With --source it is one `sync` of what lies there.

After each step both banks must have equal digests (documents, states and vectors, bit for bit), no generation may be left
half built, and a search has to find what it should, under its present category. Every call of the embedder is counted in the
log: a text may have been given to it again only if the call it was in had not been answered and stored when the kill came.
Exits 1 on any difference and keeps the banks. Linux; standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

LINE = re.compile(r" (TRACE|DEBUG|INFO|WARN|ERROR) embank")
TEXTS = re.compile(r"texts=(\d+)")
DROPPED = re.compile(r"dropped=(\d+)")
WORDS = "barrel frost rain pump well filter compost worm lime mulch clay hive swarm queen mite honey smoke frame".split()
CATEGORIES = ["water", "soil", "bees"]


class Difference(Exception):
    """The killed bank is not what the calm one is."""


@dataclass
class Run:
    """One life of the program."""

    killed: bool
    code: int
    lines: int
    asked: list[int]
    cached: int
    dropped: int
    seconds: float
    stderr: str
    stdout: str

    @property
    def in_flight(self) -> int:
        """Texts that the embedder was given and whose vectors had not come as far as the cache."""
        return sum(self.asked) - self.cached - self.dropped


@dataclass
class Moment:
    """When to kill: after so many seconds, or when the log has shown so many lines."""

    seconds: float | None = None
    lines: int | None = None


@dataclass
class Bank:
    embank: str
    folder: Path
    flags: list[str]
    asked: int = 0
    lost: int = 0
    worst: int = 0

    def run(self, *command: str, moment: Moment | None = None) -> Run:
        line = [self.embank, "--quiet", "--json", *self.flags, "--bank", str(self.folder), *command]
        env = {**os.environ, "EMBANK_LOG": "warn,embank=trace"}
        began = time.monotonic()
        child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True)
        assert child.stdout is not None and child.stderr is not None
        moment = moment or Moment()
        timer = threading.Timer(moment.seconds, child.kill) if moment.seconds is not None else None
        if timer:
            timer.start()
        out: list[str] = []
        reader = threading.Thread(target=lambda: out.append(child.stdout.read()))
        reader.start()
        lines, asked, cached, dropped, tail = 0, [], 0, 0, []
        for text in child.stderr:
            tail.append(text)
            if LINE.search(text):
                lines += 1
                texts = TEXTS.search(text)
                if texts and "asking the embedder" in text:
                    asked.append(int(texts[1]))
                elif texts and " cached" in text:
                    cached += int(texts[1])
                    dropped += int(DROPPED.findall(text)[0])
            if moment.lines is not None and lines >= moment.lines:
                child.kill()
        code = child.wait()
        reader.join()
        if timer:
            timer.cancel()
        seconds = time.monotonic() - began
        run = Run(code == -9, code, lines, asked, cached, dropped, seconds, "".join(tail[-30:]), "".join(out))
        self.asked += sum(asked)
        if run.killed:
            self.lost += run.in_flight
            self.worst = max(self.worst, run.in_flight)
        elif run.in_flight:
            raise Difference(f"{command}: {run.in_flight} texts were embedded and not stored, and nobody killed it")
        return run

    def must(self, *command: str) -> Run:
        run = self.run(*command)
        if run.code != 0:
            raise Difference(f"{' '.join(command)} ended with {run.code}:\n{run.stderr}")
        return run

    def ask(self, *command: str) -> dict:
        return json.loads(self.must(*command).stdout)

    def has_active(self) -> bool:
        return self.folder.exists() and self.ask("status")["active"] is not None

    def texts(self) -> set[str]:
        """Content hashes of the chunks there are."""
        return {json.loads(line)["content_hash"] for line in self.must("documents").stdout.splitlines()}


@dataclass
class Corpus:
    """Documents that change."""

    folder: Path
    rng: random.Random
    rows: int
    records: dict[str, tuple[str, str]] = field(default_factory=dict)
    gone: dict[str, tuple[str, str]] = field(default_factory=dict)
    next: int = 0

    def text(self) -> str:
        words = " ".join(self.rng.choice(WORDS) for _ in range(self.rng.randint(6, 14)))
        # One in twenty is equal to another one's.
        return f"note {self.next if self.rng.random() > 0.05 else self.next // 2}: {words}"

    def add(self, count: int) -> None:
        for _ in range(count):
            self.next += 1
            self.records[f"r{self.next}"] = (self.text(), self.rng.choice(CATEGORIES))

    def edit(self) -> None:
        """The first one fills it; each further one changes about a third."""
        if not self.records:
            self.add(self.rows)
        else:
            for name in self.rng.sample(sorted(self.records), len(self.records) // 3):
                text, category = self.records[name]
                what = self.rng.random()
                if what < 0.3:
                    self.gone[name] = self.records.pop(name)
                elif what < 0.6:
                    self.records[name] = (text, CATEGORIES[(CATEGORIES.index(category) + 1) % 3])
                else:
                    self.next += 1
                    self.records[name] = (self.text(), category)
            for name in self.rng.sample(sorted(self.gone), len(self.gone) // 3):
                self.records[name] = self.gone.pop(name)
            self.add(self.rows // 10)
        self.write()

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"id": i, "text": t, "category": c}) for i, (t, c) in self.records.items()]
        (self.folder / "records.jsonl").write_text("\n".join(lines))
        for folder in CATEGORIES:
            shutil.rmtree(self.folder / folder, ignore_errors=True)
        for number in range(self.rng.randint(3, 12)):
            path = self.folder / self.rng.choice(CATEGORIES) / f"{number}.md"
            path.parent.mkdir(exist_ok=True)
            body = "\n\n".join(f"{number}.{n} " + " ".join(self.rng.choices(WORDS, k=60)) for n in range(20))
            path.write_text(f"# Notes {number}\n\n{body}\n")


class Torture:
    """Banks in pairs, one of them killed again and again."""

    def __init__(self, args: argparse.Namespace, more: list[str], work: Path):
        self.args, self.more, self.work = args, more, work
        self.rng = random.Random(args.seed)
        self.kills, self.runs, self.unkilled = 0, 0, 0
        self.by_step: Counter[str] = Counter()
        self.asked = self.lost = self.worst = self.texts = self.banks = 0

    def go(self) -> None:
        while self.kills < self.args.kills:
            self.banks += 1
            pair = self.work / f"bank-{self.banks}"
            shutil.rmtree(pair, ignore_errors=True)
            if self.args.source:
                self.one_source(pair)
                break
            self.one_bank(pair)
            shutil.rmtree(pair)

    def one_source(self, pair: Path) -> None:
        calm, killed = self.pair(pair, ["--embedder", self.args.embedder])
        sync = ["sync", self.args.source, *self.more]
        run = calm.must(*sync)
        again = calm.must(*sync)
        print(f"calm run: {run.seconds:.1f} s; again, nothing changed: {again.seconds:.2f} s", flush=True)
        self.step(calm, killed, run, sync, self.args.kills, [])
        self.finish(calm, killed, len(calm.texts()), len(calm.texts()))

    def one_bank(self, pair: Path) -> None:
        rng = self.rng
        rows = int(self.args.rows * rng.choice([0.2, 1, 1, 1, 2]))
        durability = rng.choice(["process-crash", "process-crash", "power-loss"])
        kind = rng.choice(["auto", "hnsw", "ivf-pq"])
        flags = ["--embedder", f"fake:{rng.choice([32, 64])}", "--durability", durability]
        calm, killed = self.pair(pair, flags)
        corpus = Corpus(pair / "docs", rng, rows)
        began, kills = time.monotonic(), self.kills
        stored: set[str] = set()
        possible: set[str] = set()
        for round_ in range(4):
            corpus.edit()
            docs = str(corpus.folder)
            if round_ and rng.random() < 0.3:
                # Edited again before the first edit was through.
                calm.must("ingest", docs)
                possible |= calm.texts()
                self.kill_some(killed, ["sync", docs, "--kind", kind], 1.0, 20, 2)
                corpus.edit()
            if rng.random() < 0.5:
                steps = [["sync", docs, "--kind", kind]]
            else:
                steps = [["ingest", docs], ["backfill"], ["index", "build", "--kind", kind], ["index", "gc"]]
            for step in steps:
                # Inverted lists of a few hundred rows may be refused, and then are in both banks or in neither.
                run = calm.run(*step)
                if run.code not in (0, 2):
                    raise Difference(f"the calm run ended with {run.code}:\n{run.stderr}")
                count = rng.randint(2, 4) if step[-1] == "gc" else rng.randint(4, 9)
                self.step(calm, killed, run, step, count, rng.sample(sorted(corpus.records), 3), corpus)
            stored |= calm.texts()
            possible |= stored
        self.finish(calm, killed, len(stored), len(possible))
        shape = f"{rows} rows, {kind}, {durability}"
        print(f"bank {self.banks} ({shape}): {self.kills - kills} kills, {time.monotonic() - began:.0f} s", flush=True)

    def pair(self, pair: Path, flags: list[str]) -> tuple[Bank, Bank]:
        pair.mkdir(parents=True)
        return (Bank(self.args.embank, pair / "calm", flags), Bank(self.args.embank, pair / "killed", flags))

    def step(
        self,
        calm: Bank,
        killed: Bank,
        run: Run,
        command: list[str],
        count: int,
        samples: list[str],
        corpus: Corpus | None = None,
    ) -> None:
        self.kill_some(killed, command, run.seconds, run.lines, count)
        self.settle(killed, command, run.code)
        self.compare(calm, killed, command, samples, corpus)

    def kill_some(self, bank: Bank, command: list[str], seconds: float, lines: int, count: int) -> None:
        for _ in range(count):
            # Each run gets further than the last only by what that had acknowledged, so short lives are the hard ones.
            if self.rng.random() < 0.5:
                moment = Moment(lines=self.rng.randint(1, max(2, lines // 2)))
            else:
                moment = Moment(seconds=self.rng.uniform(0.01, max(0.05, seconds * 0.8)))
            was_active = self.rng.random() < 0.2 and bank.has_active()
            run = bank.run(*command, moment=moment)
            self.runs += 1
            if not run.killed:
                self.unkilled += 1
                if run.code not in (0, 2) and not self.is_nothing_yet(run):
                    raise Difference(f"{' '.join(command)} ended with {run.code} by itself:\n{run.stderr}")
                # It is done: what else would be killed has nothing left to do, but has to find that out.
                if self.rng.random() < 0.5:
                    break
                continue
            self.kills += 1
            self.by_step[" ".join(command[:2]) if command[0] == "index" else command[0]] += 1
            if was_active and not bank.ask("search", "rain in the barrel", "-k", "3")["hits"]:
                raise Difference("a search found nothing after a kill")

    @staticmethod
    def is_nothing_yet(run: Run) -> bool:
        return "there is no bank" in run.stderr or "no bank" in run.stderr

    def settle(self, bank: Bank, command: list[str], code: int) -> None:
        """Lets the step end. The gate may decide otherwise about another build: its code books have no seed."""
        for _ in range(5):
            run = bank.run(*command)
            if run.code == 0 or run.code == code:
                return
            if run.code != 2:
                break
        raise Difference(f"{' '.join(command)} ended with {run.code}:\n{run.stderr}")

    def compare(self, calm: Bank, killed: Bank, command: list[str], samples: list[str], corpus: Corpus | None) -> None:
        want, got = calm.ask("digest"), killed.ask("digest")
        # After an ingest alone, states may be missing that the next backfill adds.
        tables = ["documents"] if command[0] == "ingest" else list(want)
        for table in tables:
            if want[table] != got[table]:
                raise Difference(f"{command}: {table} differ: {want[table]} calm, {got[table]} killed")
        if command[0] not in ("sync", "index"):
            return
        generations = killed.ask("index", "list")["generations"]
        if command[:2] != ["index", "gc"] and any(g["state"] in ("building", "validating") for g in generations[-1:]):
            raise Difference(f"{command}: the newest generation is {generations[-1]['state']}")
        status = killed.ask("status")
        active = status["active"]
        if active and active["kind"] != "flat" and active["rows"] + status["newer_than_index"] < status["chunks"]:
            covered = f"{active['rows']} rows indexed, {status['newer_than_index']} newer"
            raise Difference(f"{command}: {covered}, {status['chunks']} there")
        for name in samples if active and corpus else []:
            text, category = corpus.records[name]
            equal = {f"records.jsonl#{n}" for n, record in corpus.records.items() if record == (text, category)}
            hits = killed.ask("search", text, "-k", "10", "--filter", f"category={category}")["hits"]
            if not equal & {hit["doc_path"] for hit in hits}:
                raise Difference(f"{command}: a search for {name} in {category} finds {[h['doc_path'] for h in hits]}")

    def finish(self, calm: Bank, killed: Bank, stored: int, possible: int) -> None:
        cached = killed.ask("status")["cached"]
        if not stored <= cached <= possible:
            raise Difference(f"{cached} texts in the cache, {stored} to {possible} there can be: one stands there twice")
        if killed.asked > cached + killed.lost:
            raise Difference(f"the embedder was given {killed.asked} texts: {cached} stored, {killed.lost} lost in kills")
        self.asked += killed.asked
        self.lost += killed.lost
        self.texts += cached
        self.worst = max(self.worst, killed.worst)

    def summary(self) -> dict:
        return {
            "seed": self.args.seed,
            "banks": self.banks,
            "runs": self.runs,
            "kills": self.kills,
            "ended_before_the_kill": self.unkilled,
            "kills_by_step": dict(self.by_step),
            "texts_stored": self.texts,
            "texts_given_to_the_embedder": self.asked,
            "in_flight_at_kills": self.lost,
            "most_in_flight_at_one_kill": self.worst,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embank")
    parser.add_argument("--source", help="a folder or file of one's own, for one `sync`")
    parser.add_argument("--embedder", default="fake:384", help="for --source")
    parser.add_argument("--kills", type=int, default=None, help="default 200, or 10 with --source")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=3000, help="records of a bank, more or less")
    parser.add_argument("--work", default=None, help="folder for the banks (default: a temporary one, removed)")
    own, more = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, more = own[:at], own[at + 1 :]
    args = parser.parse_args(own)
    args.kills = args.kills or (10 if args.source else 200)
    args.embank = str(Path(args.embank).resolve())
    work = Path(args.work or tempfile.mkdtemp(prefix="embank-torture-"))
    torture = Torture(args, more, work)
    print(f"seed {args.seed}, {args.kills} kills, in {work}", flush=True)
    began = time.monotonic()
    try:
        torture.go()
    except Difference as difference:
        print(json.dumps(torture.summary()))
        print(f"FAILED in bank {torture.banks}, kept in {work}: {difference}")
        return 1
    shutil.rmtree(work, ignore_errors=not args.work)
    print(json.dumps(torture.summary()))
    print(f"{torture.kills} kills in {time.monotonic() - began:.0f} s: nothing lost, nothing twice")
    return 0


if __name__ == "__main__":
    sys.exit(main())
