"""The worker's half of benches/embed: a loaded model that embeds a file of texts on each request.

One JSON value a line. The worker says {"ready": …} when its model is loaded and warm, then answers each request
{"texts": FILE, "batch": B, "dump": FILE|null} with {"seconds", "texts"}: the time from texts to vectors, tokenising
included.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np


def serve(load: Callable[[], Callable[[list[str], object], np.ndarray]]) -> None:
    # Libraries may print; only answers go to the pipe.
    answers, sys.stdout = sys.stdout, sys.stderr
    start = time.perf_counter()
    embed = load()
    load_seconds = time.perf_counter() - start
    # The first pass pays for page faults and thread pools; every contender is asked after its own first pass.
    embed(["a text to warm up with"] * 64, 32)
    print(json.dumps({"ready": True, "load_seconds": load_seconds}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        with open(request["texts"], encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
        start = time.perf_counter()
        vectors = embed(texts, request["batch"])
        seconds = time.perf_counter() - start
        if request["dump"]:
            vectors.astype("<f4").tofile(request["dump"])
        print(json.dumps({"seconds": seconds, "texts": len(vectors)}), file=answers, flush=True)
