"""The folder layout that sentence-transformers wants, around the three files that embank has of all-MiniLM-L6-v2."""

from __future__ import annotations

import json
from pathlib import Path

# As published beside the model: mean over real tokens, unit length, at most 256 tokens.
MAX_TOKENS = 256
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
POOLING = {"word_embedding_dimension": 384, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
TOKENIZER = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": True,
    "model_max_length": MAX_TOKENS,
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "pad_token": "[PAD]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
}


def sentence_transformers_folder(model: Path, out: Path) -> Path:
    """Makes `out` from the files in `model`, which are linked, and returns it."""
    for name in ("1_Pooling", "2_Normalize"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        link = out / name
        if not link.is_symlink():
            link.symlink_to((model / name).resolve())
    for name, value in {
        "modules.json": MODULES,
        "1_Pooling/config.json": POOLING,
        "sentence_bert_config.json": {"max_seq_length": MAX_TOKENS, "do_lower_case": False},
        "tokenizer_config.json": TOKENIZER,
    }.items():
        (out / name).write_text(json.dumps(value), encoding="utf-8")
    return out
