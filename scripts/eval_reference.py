#!/usr/bin/env python3
"""The independent oracle for `embank eval`: sentence-transformers and exact search, on the same chunks.

What: embeds chunks and queries with the reference implementation, ranks documents by their best chunk (cosine, exact,
all chunks), and prints nDCG@10 and recall@10 against relevance judgements.

Why: embank has to reach the same numbers to three decimals. This script shares no code with it: what they have in
common is the text of the chunks, exactly as embank gives it to its embedder, and the judgements.

How, from the root of the repository:

    PY=$(scripts/python-env.sh)
    "$PY" scripts/eval_reference.py --chunks chunks.jsonl --queries dev_data/queries.tsv --qrels dev_data/qrels.txt
    "$PY" scripts/eval_reference.py --self-test

Input: a line of chunks is an object with the strings `id`, `doc_path` and `text`; a line of queries is
`qid<TAB>text`; a line of judgements is `qid 0 doc_path grade`, as in TREC.

The measures, as trec_eval defines them:
- nDCG@10 with linear gain: a document of grade g at rank r counts g / log2(r + 1), divided by the same sum over the
  best possible ranking of all judged documents, found or not. A negative or missing grade counts nothing.
- recall@10: documents of grade 1 or more among the first 10, by all documents of grade 1 or more.
- Documents with the same score are ranked by path, ascending.
- A query without a document of grade 1 or more in the judgements has nothing to be found: it is skipped and counted.

Where pytrec_eval, a binding of trec_eval itself, is installed, it computes both measures again from the same rankings,
and a disagreement is an error. `--self-test` checks the measures on examples worked out by hand; it needs no packages.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from reference_vectors import ReferenceModel

DEPTH = 10
RELEVANT_GRADE = 1
# Texts embedded together. It changes the speed, and vectors by float noise alone.
BATCH_SIZE = 32
# Our measures and those of trec_eval, both in float64, differ by rounding only.
CROSS_CHECK_TOLERANCE = 1e-9

Qrels = dict[str, dict[str, int]]
# A document's path and its score, best first.
Ranking = list[tuple[str, float]]


def main() -> int:
    parser = argparse.ArgumentParser(description="nDCG@10 and recall@10 by sentence-transformers and exact search.")
    parser.add_argument("--chunks", metavar="FILE.jsonl", type=Path, help="what embank gave to its embedder")
    parser.add_argument("--queries", metavar="FILE.tsv", type=Path)
    parser.add_argument("--qrels", metavar="FILE.txt", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the values of every query")
    parser.add_argument("--self-test", action="store_true", help="check the measures on examples and stop")
    arguments = parser.parse_args()
    if arguments.self_test:
        return self_test()
    for name in ("chunks", "queries", "qrels"):
        if getattr(arguments, name) is None:
            parser.error(f"--{name} is missing")

    report = evaluate(read_chunks(arguments.chunks), read_queries(arguments.queries), read_qrels(arguments.qrels))
    if arguments.json:
        json.dump(report, sys.stdout, ensure_ascii=False, indent=1)
        sys.stdout.write("\n")
    else:
        print_table(report)
    return 1 if report["cross_check"] == "disagrees" else 0


@dataclass(frozen=True)
class Chunk:
    id: str
    doc_path: str
    text: str


def evaluate(chunks: list[Chunk], queries: dict[str, str], qrels: Qrels) -> dict[str, Any]:
    """The whole report: means, counts, and the values of each query."""
    from reference_vectors import MAX_TOKENS, MODEL_NAME, load_reference_model

    judged = {qid: text for qid, text in queries.items() if has_relevant(qrels.get(qid, {}))}
    if not judged:
        sys.exit("none of the queries has a document of grade 1 or more in the judgements")
    model = load_reference_model()
    rankings = dict(zip(judged, rank_documents(model, chunks, list(judged.values())), strict=True))
    values = {qid: (ndcg(ranking, qrels[qid]), recall(ranking, qrels[qid])) for qid, ranking in rankings.items()}

    documents = {chunk.doc_path for chunk in chunks}
    relevant = {path for qid in judged for path, grade in qrels[qid].items() if grade >= RELEVANT_GRADE}
    return {
        "model": MODEL_NAME,
        "ndcg_at_10": mean([value for value, _ in values.values()]),
        "recall_at_10": mean([value for _, value in values.values()]),
        "queries": len(judged),
        "queries_skipped": len(queries) - len(judged),
        # Judgements of a query that is not asked are a mistake in the files, and change no number.
        "judged_but_not_asked": len(qrels.keys() - queries.keys()),
        "chunks": len(chunks),
        "documents": len(documents),
        # Relevant documents that no chunk belongs to: they cannot be found, and count as missed.
        "relevant_but_absent": sorted(relevant - documents),
        "chunks_truncated": sum(model.token_count(chunk.text) > MAX_TOKENS for chunk in chunks),
        "cross_check": cross_check(rankings, qrels, values),
        "per_query": [
            {
                "qid": qid,
                "ndcg_at_10": values[qid][0],
                "recall_at_10": values[qid][1],
                "documents": [
                    {"doc_path": path, "score": score, "grade": qrels[qid].get(path)} for path, score in ranking
                ],
            }
            for qid, ranking in rankings.items()
        ],
    }


def print_table(report: dict[str, Any]) -> None:
    print(f"nDCG@10     {report['ndcg_at_10']:.4f}")
    print(f"recall@10   {report['recall_at_10']:.4f}")
    print(f"queries     {report['queries']} ({report['queries_skipped']} skipped without judgements)")
    print(f"chunks      {report['chunks']} of {report['documents']} documents")
    print(f"trec_eval   {report['cross_check']}")
    for note, count in (
        ("chunks were longer than the model takes and were truncated", report["chunks_truncated"]),
        ("relevant documents have no chunk and cannot be found", len(report["relevant_but_absent"])),
        ("judged queries are not among the queries", report["judged_but_not_asked"]),
    ):
        if count:
            print(f"note: {count} {note}", file=sys.stderr)


# --- Search -----------------------------------------------------------------------------------------------------------


def rank_documents(model: ReferenceModel, chunks: list[Chunk], queries: list[str]) -> Iterator[Ranking]:
    """The first documents of each query, by their best chunk."""
    # Equal texts are embedded and compared once, so that their documents tie exactly and not but for float noise.
    texts = list(dict.fromkeys(chunk.text for chunk in chunks))
    row_of = {text: row for row, text in enumerate(texts)}
    places = [(row_of[chunk.text], chunk.doc_path) for chunk in chunks]
    passages = embed(model, texts)
    for query in embed(model, queries):
        # Unit norm on both sides: the product is the cosine.
        scores = (passages @ query).tolist()
        best: dict[str, float] = {}
        for row, path in places:
            best[path] = max(scores[row], best.get(path, -math.inf))
        yield sorted(best.items(), key=by_score_then_path)[:DEPTH]


def by_score_then_path(entry: tuple[str, float]) -> tuple[float, str]:
    path, score = entry
    return -score, path


def embed(model: ReferenceModel, texts: list[str]) -> np.ndarray:
    """Rows of unit norm, in float64 so that the products add no noise of their own."""
    return model.embed(texts, batch_size=BATCH_SIZE).astype("f8")


# --- Measures ---------------------------------------------------------------------------------------------------------


def ndcg(ranking: Ranking, grades: dict[str, int]) -> float:
    gained = discounted(grades.get(path, 0) for path, _ in ranking[:DEPTH])
    ideal = discounted(sorted(grades.values(), reverse=True)[:DEPTH])
    return gained / ideal


def discounted(grades: Iterator[int] | list[int]) -> float:
    """The sum of the gains in rank order. A negative grade gains nothing."""
    return math.fsum(max(grade, 0) / math.log2(rank + 1) for rank, grade in enumerate(grades, start=1))


def recall(ranking: Ranking, grades: dict[str, int]) -> float:
    found = sum(grades.get(path, 0) >= RELEVANT_GRADE for path, _ in ranking[:DEPTH])
    return found / sum(grade >= RELEVANT_GRADE for grade in grades.values())


def has_relevant(grades: dict[str, int]) -> bool:
    return any(grade >= RELEVANT_GRADE for grade in grades.values())


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def cross_check(rankings: dict[str, Ranking], qrels: Qrels, values: dict[str, tuple[float, float]]) -> str:
    """Both measures again by trec_eval, from the same rankings: `agrees`, `disagrees` or `not installed`."""
    try:
        import pytrec_eval
    except ImportError:
        return "not installed"
    # trec_eval sorts by score and breaks ties by name, descending: it is given the ranks as scores, to keep our order.
    run = {
        qid: {path: float(DEPTH - rank) for rank, (path, _) in enumerate(ranking)} for qid, ranking in rankings.items()
    }
    judged = {qid: qrels[qid] for qid in rankings}
    measures = {f"ndcg_cut.{DEPTH}", f"recall.{DEPTH}"}
    theirs = pytrec_eval.RelevanceEvaluator(judged, measures, relevance_level=RELEVANT_GRADE).evaluate(run)
    agree = theirs.keys() == values.keys() and all(
        math.isclose(ours, theirs[qid][name], abs_tol=CROSS_CHECK_TOLERANCE)
        for qid, pair in values.items()
        for ours, name in zip(pair, (f"ndcg_cut_{DEPTH}", f"recall_{DEPTH}"), strict=True)
    )
    return "agrees" if agree else "disagrees"


# --- Files ------------------------------------------------------------------------------------------------------------


def read_chunks(path: Path) -> list[Chunk]:
    chunks: dict[str, Chunk] = {}
    for place, line in lines(path):
        try:
            record = json.loads(line)
            chunk = Chunk(record["id"], record["doc_path"], record["text"])
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(f"{place}: not an object with id, doc_path and text: {error!r}")
        if not all(isinstance(value, str) for value in (chunk.id, chunk.doc_path, chunk.text)):
            sys.exit(f"{place}: id, doc_path and text have to be strings")
        if chunk.id in chunks:
            sys.exit(f"{place}: chunk {chunk.id} is there twice")
        chunks[chunk.id] = chunk
    return list(chunks.values())


def read_queries(path: Path) -> dict[str, str]:
    queries: dict[str, str] = {}
    for place, line in lines(path):
        qid, tab, text = line.partition("\t")
        if not (qid and tab and text.strip()):
            sys.exit(f"{place}: not of the form qid<TAB>text")
        if qid in queries:
            sys.exit(f"{place}: query {qid} is there twice")
        queries[qid] = text
    return queries


def read_qrels(path: Path) -> Qrels:
    qrels: Qrels = {}
    for place, line in lines(path):
        try:
            # From both ends: a path may hold spaces.
            qid, _iteration, rest = line.split(maxsplit=2)
            doc_path, grade = rest.rsplit(maxsplit=1)
            graded = int(grade)
        except ValueError:
            sys.exit(f"{place}: not of the form qid 0 doc_path grade")
        if qrels.setdefault(qid, {}).setdefault(doc_path, graded) != graded:
            sys.exit(f"{place}: query {qid} has two grades for {doc_path}")
    return qrels


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not blank, each with its place for a message."""
    try:
        # Split at "\n" only: str.splitlines would also cut at characters that JSON allows within a string.
        content = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"{path}: {error}")
    numbered = [(f"{path}:{number}", line.rstrip("\r")) for number, line in enumerate(content, start=1) if line.strip()]
    if not numbered:
        sys.exit(f"{path}: empty")
    yield from numbered


# --- Self-test --------------------------------------------------------------------------------------------------------


def self_test() -> int:
    """Examples whose values can be worked out with a pencil."""
    grades = {"a": 3, "b": 2, "c": 1, "d": 0, "e": -1}
    ideal = 3 / 1 + 2 / math.log2(3) + 1 / 2

    def ranked(paths: str) -> Ranking:
        return [(path, -float(rank)) for rank, path in enumerate(paths)]

    cases = [
        ("the ideal order", ndcg(ranked("abc"), grades), 1.0),
        ("nothing found", ndcg(ranked("xyz"), grades), 0.0),
        ("linear gain: grade 3 at rank 2 counts 3 / log2(3)", ndcg(ranked("xa"), grades), 3 / math.log2(3) / ideal),
        ("grades of 0 and less gain nothing", ndcg(ranked("dea"), grades), 3 / 2 / ideal),
        ("rank 10 counts", ndcg(ranked("123456789a"), grades), 3 / math.log2(11) / ideal),
        ("rank 11 does not", ndcg(ranked("123456789xa"), grades), 0.0),
        ("the ideal has ten ranks", ndcg(ranked("abcdefghij"), dict.fromkeys("abcdefghijklm", 1)), 1.0),
        ("two of three", recall(ranked("axb"), grades), 2 / 3),
        ("a grade of 0 is not to be found", recall(ranked("abcde"), grades), 1.0),
        ("recall ends at rank 10", recall(ranked("123456789xa"), grades), 0.0),
        ("more relevant than ranks", recall(ranked("abcdefghij"), dict.fromkeys("abcdefghijklm", 1)), 10 / 13),
    ]
    failed = [f"{name}: {got} instead of {want}" for name, got, want in cases if not math.isclose(got, want)]
    if sorted([("b", 0.5), ("c", 0.9), ("a", 0.5)], key=by_score_then_path) != [("c", 0.9), ("a", 0.5), ("b", 0.5)]:
        failed.append("ties are not ranked by path")

    rankings = {"good": ranked("abc"), "mixed": ranked("dxbea"), "bad": ranked("xyz")}
    values = {qid: (ndcg(ranking, grades), recall(ranking, grades)) for qid, ranking in rankings.items()}
    against = cross_check(rankings, dict.fromkeys(rankings, grades), values)
    if against == "disagrees":
        failed.append("trec_eval disagrees")

    for failure in failed:
        print(f"self-test: {failure}", file=sys.stderr)
    print(f"self-test: {len(cases) + 1} examples, {len(failed)} failed; trec_eval: {against}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
