"""sentence-transformers on torch: `worker_torch.py MODEL_FOLDER`. It sorts by length itself; batch = texts a batch."""

from __future__ import annotations

import sys

import numpy as np
from serve import serve

THREADS = 2


def load():
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(THREADS)
    model = SentenceTransformer(sys.argv[1], device="cpu")

    def embed(texts: list[str], batch: object) -> np.ndarray:
        return model.encode(texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)

    return embed


if __name__ == "__main__":
    serve(load)
