"""What benches/embed has measured, as Markdown."""

from __future__ import annotations

import statistics

from contenders import CONTENDERS

MIXES = ["s30", "s128", "s226", "mixed"]
COLUMNS = [
    "contender",
    "batch",
    "rounds",
    "useful GFLOP/s (lowest–highest)",
    "tokens/s",
    "texts/s",
    "MB after / peak",
    "load s",
    "min. cosine to torch",
]
# Ours over a rival: what the targets are about.
RATIOS = [
    ("embank-f32", "onnxruntime"),
    ("embank-f32", "torch"),
    ("embank-f32", "candle"),
    ("embank-f32", "fastembed"),
    ("embank-bf16", "onnxruntime"),
]


def tables(record: dict) -> str:
    out = []
    if "machine" in record:
        found = record["machine"]
        versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        features = ", ".join(found["features"])
        out.append(f"{found['cpu']} ({found['cpus']} CPUs: {features}), {found['threads']} threads; {versions}.")
    for mix in (mix for mix in MIXES if mix in record["mixes"]):
        kept = record["mixes"][mix]
        mean = kept["tokens"] / kept["texts"]
        out.append(f"\n**{mix}**: {kept['texts']} texts, {kept['tokens']} tokens, mean {mean:.0f}\n")
        out.append("| " + " | ".join(COLUMNS) + " |")
        out.append("|---" * len(COLUMNS) + "|")
        out.extend(row(name, kept) for name in CONTENDERS if kept["contenders"].get(name, {}).get("rounds"))
    ratios = ratio_table(record)
    return "\n".join(out + ratios)


def row(name: str, kept: dict) -> str:
    found = kept["contenders"][name]
    rounds = found["rounds"]
    seconds = [round_["seconds"] for round_ in rounds]
    middle = statistics.median(seconds)
    rates = f"**{kept['gflop'] / middle:.0f}** ({kept['gflop'] / max(seconds):.0f}–{kept['gflop'] / min(seconds):.0f})"
    memory = f"{statistics.median(r['rss_mb'] for r in rounds):.0f} / {max(r['peak_mb'] for r in rounds):.0f}"
    load = statistics.median(r["load_seconds"] for r in rounds)
    cosine = "reference" if name == "torch" else f"{found['min_cosine']:.7f}" if "min_cosine" in found else "–"
    cells = [name, rounds[-1].get("batch") or "–", len(rounds), rates, f"{kept['tokens'] / middle:.0f}"]
    return "| " + " | ".join(map(str, [*cells, f"{kept['texts'] / middle:.0f}", memory, f"{load:.2f}", cosine])) + " |"


def ratio_table(record: dict) -> list[str]:
    """Each rival's median time over embank's."""
    mixes = [mix for mix in MIXES if mix in record["mixes"]]
    lines = ["", "| times as fast as | " + " | ".join(mixes) + " |", "|---|" + "---|" * len(mixes)]
    for ours, rival in RATIOS:
        cells = []
        for mix in mixes:
            found = record["mixes"][mix]["contenders"]
            if not (found.get(ours, {}).get("rounds") and found.get(rival, {}).get("rounds")):
                cells.append("–")
                continue
            middle = {name: statistics.median(r["seconds"] for r in found[name]["rounds"]) for name in (ours, rival)}
            cells.append(f"{middle[rival] / middle[ours]:.2f}")
        lines.append(f"| {ours} : {rival} | " + " | ".join(cells) + " |")
    return lines
