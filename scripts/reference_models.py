#!/usr/bin/env python3
"""Small random models of each architecture that embank runs, and what torch makes of them.

What: five models of 2 or 3 layers with random weights, each in a folder as sentence-transformers and transformers save
it, and in each folder `reference.json`: a dozen texts with the token count, the truncation and the vector that
sentence-transformers on torch gives them, once as a query and once as a passage.

Why: the published weights of most models cannot be fetched on every machine. An encoder that agrees with torch on random
weights of its architecture agrees on the published ones too: they are the same operations. Between them the models have
all that can differ: architecture and position offset, mean and CLS pooling, both layer norm constants, prefixes, vectors
that are not normalised, long texts, heads of 8, 16, 32 and 64 numbers, a WordPiece and a Unigram tokenizer, weights in
32, 16 and brain-float 16 bits, tensors with and without the encoder's name before theirs, and settings files of the old
and the new form.

How, from the root of the repository:

    PY=$(scripts/python-env.sh)
    "$PY" scripts/reference_models.py tests/data/models
    "$PY" scripts/reference_models.py --check tests/data/models

`--check` loads the models that are there, computes all vectors again, and fails where a token count or a truncation
differs or where a vector's cosine is below 0.999999. Without it everything is made anew, weights from a fixed seed.

Form of `reference.json`: `texts` is a list; `query` and `passage` each hold the parallel lists `tokens` (special tokens
and prefix counted, after truncation), `truncated` and `vectors` (base64 of little-endian float32). ASCII throughout.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

SEED = 20_261_121
MIN_COSINE = 0.999999
MAX_FOLDER_BYTES = 300_000


@dataclass(frozen=True)
class Recipe:
    """One model. `heads` divides `width`; `window` counts special tokens and ends before the positions do."""

    name: str
    architecture: str
    width: int
    heads: int
    layers: int
    inner: int
    positions: int
    window: int
    eps: float
    pooling: str
    normalised: bool = True
    prompts: dict[str, str] = field(default_factory=dict)
    # How the weights are stored; the reference computes with what is stored, in float32.
    stored_as: str = "float32"
    # Weights of a whole language model, with the encoder's name before each tensor's.
    whole: bool = False
    # Settings files as sentence-transformers 2 wrote them, rather than as the installed release does.
    old_form: bool = False


RECIPES = (
    Recipe("bert-mean", "bert", 32, 4, 2, 80, 64, 48, 1e-12, "mean", old_form=True),
    Recipe(
        *("bert-cls-prefix", "bert", 48, 3, 2, 96, 40, 32, 1e-5, "cls"),
        prompts={"query": "query: ", "document": "passage: "},
    ),
    Recipe("bert-raw", "bert", 64, 2, 2, 72, 40, 40, 1e-12, "mean", normalised=False, stored_as="bfloat16", whole=True),
    Recipe("xlmr-mean", "xlm-roberta", 64, 2, 2, 72, 66, 64, 1e-5, "mean"),
    Recipe("xlmr-cls-long", "xlm-roberta", 64, 1, 2, 96, 402, 384, 1e-5, "cls", stored_as="float16", whole=True, old_form=True),
)

# What the tokenizers are trained on, and what the long texts are cut from.
PASSAGE = """
The pump by the barn gives cold, clear water, and in a dry summer it gives less of it than the garden would like. We
measure the well on the first day of each month with a weighted line, write the depth on the door of the shed, and
decide from that number how many beds to plant. A rope, a tin can and a pencil are all the tools this needs. Lift the
back of the hive with one hand: a light box wants sugar, a heavy one wants nothing but peace. Do not open it on a day
when you would wear a coat. Der Brunnen ist seit drei Wochen trocken, obwohl es im Frühjahr reichlich geregnet hat. Le
miel cristallisé n'est pas gâté : réchauffez-le au bain-marie. Как хранить картофель зимой, чтобы он не прорастал?
"""
LONG = " ".join((PASSAGE * 3).split())
TEXTS = (
    "water",
    "How deep must a post be set so that frost does not lift it?",
    "",
    "   \t\n ",
    "Der Brunnen ist trocken, das Frühjahr war es nicht.",
    "Как хранить картофель зимой?",
    "e\u0301 and \u00e9, \ufb01ve \u2460 \uff21\uff22\uff23",
    "\U0001f41d\U0001f36f in the hive \U0001f469\u200d\U0001f33e",
    "\u0643\u064a\u0641 \u0646\u062d\u0641\u0638 \u0627\u0644\u0645\u0627\u0621",
    " ".join(LONG.split()[:25]),
    LONG,
    "WATER in The well; WELL water, the well.",
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Small random models with their reference vectors.")
    parser.add_argument("folder", type=Path, help="where the models' folders are, or go")
    parser.add_argument("--check", action="store_true", help="compare with what is there instead of making it")
    arguments = parser.parse_args()

    # Set before the libraries are imported, which is when they read it.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # One thread: the sums of a matrix product keep one order, so that a rerun differs as little as possible.
    torch.set_num_threads(1)

    problems = []
    for recipe in RECIPES:
        folder = arguments.folder / recipe.name
        if not arguments.check:
            make_model(recipe, folder)
        made = make_reference(recipe, folder)
        path = folder / "reference.json"
        if arguments.check:
            problems += compare(recipe.name, json.loads(path.read_text(encoding="utf-8")), made)
        else:
            path.write_text(json.dumps(made, ensure_ascii=True, indent=1) + "\n", encoding="utf-8")
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            require(size < MAX_FOLDER_BYTES, f"{folder} stays small, but has {size} bytes")
            print(f"{folder}: {size} bytes")
    for problem in problems:
        print(f"reference_models: {problem}", file=sys.stderr)
    if arguments.check:
        print(f"{arguments.folder} {'differs from' if problems else 'agrees with'} {len(RECIPES)} recomputed models")
    return 1 if problems else 0


def require(holds: bool, what: str) -> None:
    """Like `assert`, but also under `python -O`."""
    if not holds:
        sys.exit(f"the reference is not what it should be: {what}")


# --- Making a model ---------------------------------------------------------------------------------------------------


def make_model(recipe: Recipe, folder: Path) -> None:
    """Writes the model's folder: by the libraries, then pared down to what a user's folder needs to hold."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import PreTrainedTokenizerFast

    if folder.exists():
        shutil.rmtree(folder)
    tokenizer, special = wordpiece() if recipe.architecture == "bert" else unigram()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=recipe.window, **special)
    torch.manual_seed(SEED)
    whole, encoder = random_encoder(recipe, tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain"
        encoder.save_pretrained(plain)
        fast.save_pretrained(plain)
        transformer = modules.Transformer(str(plain), max_seq_length=recipe.window)
        steps = [transformer, modules.Pooling(recipe.width, recipe.pooling)]
        if recipe.normalised:
            steps.append(modules.Normalize())
        SentenceTransformer(modules=steps, prompts=recipe.prompts or None, device="cpu").save(str(folder))
    # What is stored: the encoder alone or the whole model, in the recipe's number format.
    stored = (whole if recipe.whole else encoder).to(getattr(torch, recipe.stored_as))
    stored.save_pretrained(folder)
    if recipe.old_form:
        write_old_form(recipe, folder)
    for superfluous in ("README.md", "generation_config.json"):
        (folder / superfluous).unlink(missing_ok=True)
    # The library writes it for its owner's eyes alone.
    (folder / "model.safetensors").chmod(0o644)
    # The tokenizer as it is published: the library sets its own truncation when it loads it.
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")


def random_encoder(recipe: Recipe, tokenizer: Tokenizer) -> tuple[Any, Any]:
    """A whole masked language model and the encoder in it, with weights wide enough that every part matters."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, XLMRobertaConfig, XLMRobertaForMaskedLM

    settings = dict(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.inner,
        max_position_embeddings=recipe.positions,
        layer_norm_eps=recipe.eps,
    )
    if recipe.architecture == "bert":
        whole = BertForMaskedLM(BertConfig(type_vocab_size=2, pad_token_id=0, **settings))
        encoder = whole.bert
    else:
        config = XLMRobertaConfig(type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2, **settings)
        whole = XLMRobertaForMaskedLM(config)
        encoder = whole.roberta
    with torch.no_grad():
        for name, weight in whole.named_parameters():
            if "LayerNorm" in name and name.endswith("weight"):
                weight.uniform_(0.5, 1.5)
            elif weight.dim() == 1:
                weight.uniform_(-0.3, 0.3)
            elif "embeddings" in name:
                weight.normal_(0.0, 0.5)
            else:
                # Wide enough that what a token sees weighs as much as the token itself.
                weight.normal_(0.0, 2.0 / weight.shape[1] ** 0.5)
    return whole.eval(), encoder.eval()


def wordpiece() -> tuple[Tokenizer, dict[str, str]]:
    """A small tokenizer of BERT's kind."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=280, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([PASSAGE], trainer)
    frame = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=frame
    )
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return tokenizer, dict(zip(roles, special, strict=True))


def unigram() -> tuple[Tokenizer, dict[str, str]]:
    """A small tokenizer of XLM-RoBERTa's kind: pieces with their probabilities, spaces as part of them."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(vocab_size=240, special_tokens=special, unk_token="<unk>", show_progress=False)
    # Line by line: the trainer takes a line as a sentence.
    tokenizer.train_from_iterator(PASSAGE.splitlines(), trainer)
    require(tokenizer.token_to_id("<pad>") == 1, "the padding token has the id that XLM-RoBERTa gives it")
    frame = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=frame
    )
    roles = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
    return tokenizer, {**dict(zip(roles, special, strict=True)), "bos_token": "<s>", "eos_token": "</s>"}


def write_old_form(recipe: Recipe, folder: Path) -> None:
    """The settings as sentence-transformers 2 wrote them, and as most published folders have them."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if recipe.normalised else [])]
    modules = [
        {"idx": at, "name": str(at), "path": f"{at}_{kind}" if at else "", "type": f"sentence_transformers.models.{kind}"}
        for at, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    wanted = {"cls": "cls_token", "mean": "mean_tokens"}[recipe.pooling]
    flags = {f"pooling_mode_{mode}": mode == wanted for mode in modes}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": recipe.width, **flags})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": recipe.window, "do_lower_case": False})
    (folder / "2_Normalize" / "config.json").unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# --- What torch makes of it -------------------------------------------------------------------------------------------


def make_reference(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Everything that goes into the file. Texts are embedded one at a time: no padding can enter a vector."""
    import torch
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

    model = SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"torch_dtype": torch.float32}
    )
    model.eval()
    require(all(weight.dtype == torch.float32 for weight in model.parameters()), "it computes in 32 bits")
    require(model.max_seq_length == recipe.window, f"{recipe.name} takes {recipe.window} tokens")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    reference: dict[str, Any] = {"texts": list(TEXTS)}
    for kind, encode, prompt in (
        ("query", model.encode_query, recipe.prompts.get("query", "")),
        ("passage", model.encode_document, recipe.prompts.get("document", "")),
    ):
        tokens, truncated, vectors = [], [], []
        for text in TEXTS:
            whole = tokenizer.encode(prompt + text).ids
            require(len(whole) >= 2, "every text has its two special tokens")
            cut = whole if len(whole) <= recipe.window else [*whole[: recipe.window - 1], whole[-1]]
            features = model.preprocess([prompt + text])
            require(features["input_ids"].tolist() == [cut], f"the token ids of {text!r} in {recipe.name}")
            [vector] = encode([text], batch_size=1, convert_to_numpy=True, show_progress_bar=False)
            require(vector.shape == (recipe.width,) and vector.dtype.name == "float32", "a vector of float32")
            norm = float((vector.astype("f8") ** 2).sum()) ** 0.5
            require(abs(norm - 1.0) < 1e-6 or not recipe.normalised, "a vector of unit norm, where it is promised")
            tokens.append(len(cut))
            truncated.append(len(whole) > recipe.window)
            vectors.append(base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii"))
        require(any(truncated) and not all(truncated), "some texts are cut, some are not")
        reference[kind] = {"tokens": tokens, "truncated": truncated, "vectors": vectors}
    check_texts_differ(recipe, reference)
    return reference


def check_texts_differ(recipe: Recipe, reference: dict[str, Any]) -> None:
    """A test is worth nothing where all texts get nearly the same vector."""
    vectors = [decode(vector) for vector in reference["passage"]["vectors"]]
    cosines = [cosine(vectors[0], other) for other in vectors[1:]]
    require(min(cosines) < 0.9, f"the texts of {recipe.name} differ, the least alike has cosine {min(cosines):.3f}")


def compare(name: str, found: dict[str, Any], made: dict[str, Any]) -> list[str]:
    """What in the file `found` differs from the recomputed `made`."""
    problems = [] if found["texts"] == made["texts"] else [f"{name}: the texts differ"]
    for kind in ("query", "passage"):
        problems += [f"{name}: {kind} {part}" for part in ("tokens", "truncated") if found[kind][part] != made[kind][part]]
        pairs = zip(found[kind]["vectors"], made[kind]["vectors"], strict=True)
        cosines = [cosine(decode(a), decode(b)) for a, b in pairs]
        # `not >=` also catches a NaN.
        problems += [f"{name}: {kind} {at} has cosine {c:.9f}" for at, c in enumerate(cosines) if not c >= MIN_COSINE]
    return problems


def decode(vector: str) -> np.ndarray:
    import numpy as np

    return np.frombuffer(base64.b64decode(vector), dtype="<f4").astype("f8")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    import numpy as np

    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) if a.shape == b.shape else float("nan")


if __name__ == "__main__":
    sys.exit(main())
