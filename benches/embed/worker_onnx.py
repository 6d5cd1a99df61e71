"""ONNX Runtime on the fused graph: `worker_onnx.py TOKENIZER.json FUSED.onnx`.

Texts are sorted by their tokens and padded to the longest of their batch. batch = texts a batch, or "tN": as many
texts as fit into N tokens with their padding.
"""

from __future__ import annotations

import sys

import numpy as np
from serve import serve

THREADS = 2
MAX_TOKENS = 256


def load():
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(sys.argv[1])
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
    wanted = {given.name: np.int64 if "int64" in given.type else np.int32 for given in session.get_inputs()}

    def embed(texts: list[str], batch: object) -> np.ndarray:
        encodings = tokenizer.encode_batch_fast(texts)
        order = sorted(range(len(texts)), key=lambda text: len(encodings[text].ids))
        vectors = None
        for part in batches(order, [len(encoding.ids) for encoding in encodings], batch):
            longest = len(encodings[part[-1]].ids)
            ids = np.zeros((len(part), longest), np.int64)
            mask = np.zeros((len(part), longest), np.int64)
            for row, text in enumerate(part):
                found = encodings[text].ids
                ids[row, : len(found)] = found
                mask[row, : len(found)] = 1
            given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            given = {name: given[name].astype(kind, copy=False) for name, kind in wanted.items()}
            hidden = session.run(["last_hidden_state"], given)[0]
            sums = np.matmul(mask[:, None, :].astype(np.float32), hidden)[:, 0]
            if vectors is None:
                vectors = np.empty((len(texts), sums.shape[1]), np.float32)
            vectors[part] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return vectors

    return embed


def batches(order: list[int], lengths: list[int], batch: object) -> list[list[int]]:
    if isinstance(batch, int):
        return [order[start : start + batch] for start in range(0, len(order), batch)]
    budget = int(batch[1:])
    parts: list[list[int]] = [[]]
    for text in order:
        # Sorted, so the text at hand is the longest and decides the padding.
        if parts[-1] and (len(parts[-1]) + 1) * lengths[text] > budget:
            parts.append([])
        parts[-1].append(text)
    return parts


if __name__ == "__main__":
    serve(load)
