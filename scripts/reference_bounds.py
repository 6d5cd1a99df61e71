#!/usr/bin/env python3
"""Lower confidence bounds of a share by Clopper and Pearson, as scipy computes them.

What: lines of `successes <TAB> trials <TAB> confidence <TAB> bound` for tests/data/bounds.tsv: whole numbers as counts
are, and broken ones as effective trials are.

Why: the gate of an index build compares such a bound with the recall that is required; src/index/confidence.rs
computes it by another road (a continued fraction and bisection), and is held against these values.

How, from the root of the repository:

    PY=$(scripts/python-env.sh)
    "$PY" scripts/reference_bounds.py > tests/data/bounds.tsv
"""

import random

import scipy
from scipy.stats import beta


def main() -> None:
    print(f"# scripts/reference_bounds.py, scipy {scipy.__version__}: successes, trials, confidence, lower bound")
    draw = random.Random(5)
    cases = [(1, 1), (29, 30), (30, 30), (59, 59), (950, 1000), (2432, 2560), (2451, 2560), (2560, 2560), (99_000, 100_000)]
    for _ in range(60):
        trials = round(10 ** draw.uniform(0.3, 5))
        cases.append((draw.randint(1, trials), trials))
    for _ in range(60):
        trials = 10 ** draw.uniform(0.5, 4)
        cases.append((trials * draw.uniform(0.5, 1.0), trials))
    for successes, trials in cases:
        confidence = draw.choice([0.8, 0.9, 0.95, 0.99])
        bound = beta.ppf(1.0 - confidence, successes, trials - successes + 1)
        print(f"{successes!r}\t{trials!r}\t{confidence!r}\t{float(bound)!r}")


if __name__ == "__main__":
    main()
