"""Export all-MiniLM-L6-v2 to ONNX and fuse it: `export_onnx.py MODEL_DIR OUT.onnx`.

The graph that ONNX Runtime's own transformers optimizer makes: embeddings, attention, layer norms and gelu each one node.
Refuses to write a graph that is not fused in full, because that would be another rival.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
LAYERS, HEADS, HIDDEN = 6, 12, 384


def main() -> int:
    import torch
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions
    from transformers import BertModel

    model = BertModel.from_pretrained(sys.argv[1], attn_implementation="eager", add_pooling_layer=False).eval()

    class LastHidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids, mask, types):
            return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

    ids = torch.randint(1000, 2000, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    names = ["input_ids", "attention_mask", "token_type_ids"]
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "plain.onnx")
        # The older exporter: its graph is the one whose attention the optimizer knows (the newer one leaves it unfused).
        torch.onnx.export(
            LastHidden().eval(),
            (ids, mask, torch.zeros_like(ids)),
            plain,
            dynamo=False,
            opset_version=17,
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in [*names, "last_hidden_state"]},
        )
        fused = optimizer.optimize_model(
            str(plain),
            model_type="bert",
            num_heads=HEADS,
            hidden_size=HIDDEN,
            optimization_options=FusionOptions("bert"),
            opt_level=0,
        )
    nodes = {name: count for name, count in fused.get_fused_operator_statistics().items() if count}
    wanted = {"EmbedLayerNormalization": 1, "Attention": LAYERS, "BiasGelu": LAYERS, "SkipLayerNormalization": 2 * LAYERS}
    if nodes != wanted:
        print(f"export_onnx: fused {nodes}, wanted {wanted}", file=sys.stderr)
        return 1
    fused.save_model_to_file(sys.argv[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
