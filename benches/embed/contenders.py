"""The contenders of benches/embed: each a process that embeds a file of texts on request, with what it took.

A rival stays loaded between rounds (`serve.py` and `benches/rivals` are its other half); embank is started for each round and
measures itself with `embank model bench`. Who they are compared with is not known here.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = "all-minilm-l6-v2"
THREADS = 2
CONTENDERS = ["embank-f32", "onnxruntime", "embank-bf16", "torch", "candle", "fastembed"]
# What each rival may choose its best batch from, per mix. "tN": N tokens a batch, padding included.
BATCHES = {
    "onnxruntime": [8, 16, 32, 64, "t1024", "t2048"],
    "torch": [32, 64],
    "candle": [8, 16, 32],
    "fastembed": [16, 32, 64],
}


def start(name: str, options: argparse.Namespace) -> Worker | Embank:
    work = options.work
    rivals = work / "rivals-target/release/rivals"
    if name.startswith("embank-"):
        return Embank(options.embank, name.removeprefix("embank-"), options)
    if name == "onnxruntime":
        tokenizer = options.model_dir / "tokenizer.json"
        return Worker([sys.executable, HERE / "worker_onnx.py", tokenizer, work / "fused.onnx"])
    if name == "torch":
        return Worker([sys.executable, HERE / "worker_torch.py", work / "sentence-transformers"])
    if name == "candle":
        return Worker([rivals, "candle", options.model_dir])
    if name == "fastembed":
        return Worker([rivals, "fastembed", options.model_dir, work / "fused.onnx"])
    raise SystemExit(f"unknown contender {name}: one of {', '.join(CONTENDERS)}")


class Worker:
    """A rival, stopped (SIGSTOP) while it has no work, so that no thread of its spins meanwhile."""

    def __init__(self, command: list) -> None:
        import onnxruntime

        library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
        environment = os.environ | {
            "OMP_NUM_THREADS": str(THREADS),
            "RAYON_NUM_THREADS": str(THREADS),
            "TOKENIZERS_PARALLELISM": "true",
            "HF_HUB_OFFLINE": "1",
            "ORT_DYLIB_PATH": str(library),
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([str(part) for part in command], env=environment, **pipes)
        self.load_seconds = self.answer()["load_seconds"]
        self.process.send_signal(signal.SIGSTOP)

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        return json.loads(line)

    def round(self, texts: Path, batch: int | str, dump: Path | None) -> dict:
        self.process.send_signal(signal.SIGCONT)
        request = {"texts": str(texts), "batch": batch, "dump": str(dump) if dump else None}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        seconds = self.answer()["seconds"]
        memory = memory_mb(self.process.pid)
        self.process.send_signal(signal.SIGSTOP)
        return {"seconds": seconds, "load_seconds": self.load_seconds, "batch": batch} | memory

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Embank:
    """`embank model bench`, one process a round: it loads, warms up, embeds all texts and reports."""

    def __init__(self, binary: Path, precision: str, options: argparse.Namespace) -> None:
        # A bank that does not exist: there is no backlog to count.
        self.command = [binary, "--json", "--quiet", "--bank", options.work / "no-bank", "--precision", precision]
        self.command += ["--model-dir", options.model_dir.parent, "model", "bench", MODEL]

    def round(self, texts: Path, _batch: None, dump: Path | None) -> dict:
        command = [*self.command, "--texts", texts, "--rounds", "1", "--threads", str(THREADS)]
        command += ["--dump", dump] if dump else []
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
        peak = {"peak_mb": 0.0}
        watcher = threading.Thread(target=watch, args=(process.pid, peak), daemon=True)
        watcher.start()
        out, _ = process.communicate()
        watcher.join()
        if process.returncode:
            raise SystemExit(f"embank model bench ended with {process.returncode}")
        found = json.loads(out)
        return {"seconds": found["seconds"], "load_seconds": found["load_seconds"], "rss_mb": found["rss_mb"]} | peak

    def stop(self) -> None:
        pass


def watch(pid: int, peak: dict[str, float]) -> None:
    """The kernel's own high-water mark, read until the process is gone."""
    while (found := memory_mb(pid)) is not None:
        peak["peak_mb"] = found["peak_mb"]
        time.sleep(0.02)


def memory_mb(pid: int) -> dict[str, float] | None:
    try:
        fields = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
        return {"rss_mb": int(fields["VmRSS"].split()[0]) / 1024, "peak_mb": int(fields["VmHWM"].split()[0]) / 1024}
    except (OSError, KeyError):
        return None
