#!/usr/bin/env python3
"""Small image models with random weights, test images, and what transformers on torch makes of them.

What: a CLIP and a DINOv2 model of the published form (config.json, preprocessor_config.json, tokenizer.json,
model.safetensors) but of a few thousand weights, drawn from a fixed seed; a handful of images in the formats, modes
and shapes that pictures come in; and reference.json with, for every image and model, the cropped pixels and the vector,
and for every text its token ids and its vector.

Why: published weights cannot be fetched on every machine, and they are large. Whether an implementation is right
shows on random weights as well, if every part of it matters to the result: so norms, biases and layer scales are random
too, and images and texts are asserted to get clearly different vectors.

How, from the root of the repository (Pillow is needed beside what python-env.sh installs):

    PY=$(scripts/python-env.sh)
    "$PY" -m pip install pillow==13.0.0
    "$PY" scripts/reference_vision.py tests/data/vision           # writes everything anew
    "$PY" scripts/reference_vision.py --check tests/data/vision   # computes again from the files, and compares

`--check` starts from the files in the folder and fails where a pixel or a token differs, or where a vector's cosine
with the file's is below 0.999999.

Form of reference.json: `crop` is base64 of height x width x 3 bytes, what is left of the image after decoding, upright
turning, resizing and cropping by Pillow; `vector` is base64 of little-endian float32, of unit norm.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps
from tokenizers import pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SEED = 20_260_101
MIN_COSINE = 0.999999
# Two images or texts closer than this would hide a mistake.
MAX_COSINE_BETWEEN = 0.98

TEXTS = [
    "a red bicycle",
    "A photo of a red bicycle leaning on a wall.",
    "",
    "   ",
    "don't   stop 1234 times!",
    "Größe & naïve café, 北京的雨, 🚲🚲",
    "the quick brown fox jumps over the lazy dog " * 12,
    "before <|endoftext|> after",
    "bees\x00hive\nwater\ttank",
]

# Words that the tokenizer's merges are learned from.
CORPUS = [
    "a photo of a red bicycle leaning on a wall, a photo of the bees in the hive",
    "the quick brown fox jumps over the lazy dog, the water in the tank and the rain in the barrel",
] * 4


def main() -> int:
    parser = argparse.ArgumentParser(description="Small image models, images and reference vectors.")
    parser.add_argument("--check", action="store_true", help="compare with the folder instead of writing it")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    if not arguments.check:
        write_images(arguments.folder / "images")
        write_clip(arguments.folder / "clip")
        write_dinov2(arguments.folder / "dinov2")
    reference = make_reference(arguments.folder)
    path = arguments.folder / "reference.json"
    if not arguments.check:
        path.write_text(json.dumps(reference, indent=1, ensure_ascii=True) + "\n", encoding="ascii")
        return 0
    problems = compare(json.loads(path.read_text(encoding="ascii")), reference)
    for problem in problems:
        print(f"reference_vision: {problem}", file=sys.stderr)
    print(f"{path} {'differs from' if problems else 'agrees with'} what was recomputed")
    return 1 if problems else 0


# --- images


def scene(width: int, height: int, seed: int, channels: int = 3) -> np.ndarray:
    """A picture with smooth parts, edges and texture, no two of them alike: [height, width, channels], uint8."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    picture = np.zeros((height, width, channels))
    for channel in range(channels):
        angle, phase, cycles = random.uniform(0, 6.28, 2).tolist() + [random.uniform(0.5, 3)]
        across = (x * np.cos(angle) + y * np.sin(angle)) / max(width, height)
        picture[:, :, channel] = 128 + 90 * np.sin(6.28 * cycles * across + phase)
    for _ in range(4):
        left, top = random.integers(0, width), random.integers(0, height)
        right, bottom = left + random.integers(2, max(3, width // 2)), top + random.integers(2, max(3, height // 2))
        picture[top:bottom, left:right] = random.integers(0, 256, channels)
    picture += random.normal(0, 4, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(90, 61, 1)).save(folder / "wide.png", optimize=True)
    Image.fromarray(scene(7, 110, 2)).save(folder / "narrow.png", optimize=True)
    Image.fromarray(scene(52, 52, 3, 4), "RGBA").save(folder / "transparent.png", optimize=True)
    Image.fromarray(scene(21, 34, 4, 1)[:, :, 0], "L").save(folder / "grey_small.png", optimize=True)
    Image.fromarray(scene(120, 83, 5)).save(folder / "photo.jpg", quality=92, subsampling="4:2:0")
    # As a camera held upright stores it: lying on its side (orientation 6 turns it clockwise), with the date it was taken.
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x0132] = "2024:05:06 10:11:12"
    exif.get_ifd(0x8769)[0x9003] = "2023:07:14 18:30:05"
    Image.fromarray(scene(100, 64, 6)).save(folder / "turned.jpg", quality=95, subsampling="4:4:4", exif=exif)
    Image.fromarray(scene(64, 70, 7)).save(folder / "lossless.webp", lossless=True)
    Image.fromarray(scene(75, 58, 8)).save(folder / "lossy.webp", quality=90)
    Image.fromarray(scene(60, 47, 9)).quantize(32, dither=Image.Dither.NONE).save(folder / "palette.gif")


# --- models


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Every parameter random, of a size that keeps activations near 1 and leaves no part without effect."""
    generator = torch.Generator().manual_seed(SEED)

    def normal(parameter: torch.Tensor) -> torch.Tensor:
        return torch.randn(parameter.shape, generator=generator)

    for name, parameter in sorted(model.named_parameters()):
        if "norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * normal(parameter))
        elif "lambda1" in name:
            parameter.copy_(0.7 + 0.3 * normal(parameter))
        elif "embedding" in name and "patch" not in name:
            parameter.copy_(0.5 * normal(parameter))
        elif parameter.dim() >= 2:
            inputs = parameter[0].numel()
            parameter.copy_(1.2 * normal(parameter) / inputs**0.5)
        else:
            parameter.copy_(0.2 * normal(parameter))


def write_clip(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = clip_tokenizer()
    (folder / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(pretty=False), encoding="utf-8")
    config = CLIPConfig(
        # As published, where eos_token_id is the mistaken 2 and the state of the token with the highest id is taken.
        text_config={
            "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
            "max_position_embeddings": 112, "vocab_size": len(tokenizer), "projection_dim": 24, "eos_token_id": 2,
            "bos_token_id": 0,
        },
        vision_config={
            "hidden_size": 40, "intermediate_size": 48, "num_attention_heads": 5, "num_hidden_layers": 2,
            "image_size": 48, "patch_size": 8, "projection_dim": 24,
        },
        projection_dim=24,
    )
    model = CLIPModel(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    # The published file has this one too, of integers.
    add_tensor(folder, "text_model.embeddings.position_ids", torch.arange(112)[None])
    processor = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    # In the form in which the first CLIP models were published.
    write_json(folder / "preprocessor_config.json", {
        "crop_size": 48, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std), "resample": 3, "size": 48,
    })


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer with a few dozen merges; the special tokens have the highest ids, as published."""
    learner = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=600, end_of_word_suffix="</w>", initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    learner.train_from_iterator(CORPUS, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][:60]
    # No words but bytes, bytes at the end of a word, merges, specials.
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(pair) for pair in merges)]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)


def write_dinov2(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=3, image_size=64, patch_size=8,
        layerscale_value=1.0,
    )
    model = Dinov2Model(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    processor = BitImageProcessorPil(size={"shortest_edge": 46}, crop_size={"height": 40, "width": 40})
    processor.image_mean, processor.image_std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    write_json(folder / "preprocessor_config.json", {
        "crop_size": {"height": 40, "width": 40}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": processor.image_mean, "image_processor_type":
        "BitImageProcessor", "image_std": processor.image_std, "resample": 3, "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 46},
    })


def add_tensor(folder: Path, name: str, tensor: torch.Tensor) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file({**load_file(path), name: tensor.contiguous()}, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="ascii")


# --- reference


@torch.no_grad()
def make_reference(folder: Path) -> dict[str, Any]:
    clip = CLIPModel.from_pretrained(folder / "clip").eval()
    dinov2 = Dinov2Model.from_pretrained(folder / "dinov2").eval()
    models = {
        "clip": (processor_of(folder / "clip", CLIPImageProcessorPil),
                 lambda pixels: clip.get_image_features(pixel_values=pixels).pooler_output),
        "dinov2": (processor_of(folder / "dinov2", BitImageProcessorPil),
                   lambda pixels: dinov2(pixel_values=pixels).pooler_output),
    }
    reference: dict[str, Any] = {}
    for name, (processor, encode) in models.items():
        images, vectors = {}, []
        for path in sorted((folder / "images").iterdir()):
            with Image.open(path) as opened:
                upright = ImageOps.exif_transpose(opened)
            pixels = processor(images=upright, return_tensors="pt")["pixel_values"]
            vector = unit(encode(pixels)[0])
            images[path.name] = {"crop": packed(crop_bytes(processor, upright)), "vector": packed(vector)}
            vectors.append(vector)
        assert_different(vectors, f"{name} images")
        reference[name] = {"images": images}

    tokenizer = load_tokenizer(folder / "clip")
    window = clip.config.text_config.max_position_embeddings
    texts, vectors = [], []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        whole = len(ids)
        if whole > window:
            ids = ids[: window - 1] + ids[-1:]
        vector = unit(clip.get_text_features(input_ids=torch.tensor([ids])).pooler_output[0])
        texts.append({"text": text, "ids": ids, "truncated": whole > window, "vector": packed(vector)})
        vectors.append(vector)
    # The third and the fourth are both without a word.
    assert_different(vectors[:3] + vectors[4:], "texts")
    reference["clip"]["texts"] = texts
    reference["made_with"] = {
        "transformers": transformers.__version__, "torch": torch.__version__, "pillow": Image.__version__
    }
    return reference


def load_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def processor_of(folder: Path, kind: Any) -> Any:
    settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="ascii"))
    settings.pop("feature_extractor_type", None)
    settings.pop("image_processor_type", None)
    return kind(**settings)


def crop_bytes(processor: Any, image: Image.Image) -> bytes:
    """What the processor gives before it rescales and normalises: height x width x 3."""
    pixels = processor(images=image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)).astype(np.uint8).tobytes()


def unit(vector: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(vector.double(), dim=0).float().numpy()


def packed(content: bytes | np.ndarray) -> str:
    return base64.b64encode(content if isinstance(content, bytes) else content.astype("<f4").tobytes()).decode("ascii")


def unpacked(content: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(content), "<f4").astype(np.float64)


def assert_different(vectors: list[np.ndarray], what: str) -> None:
    closeness = np.array([[a @ b for a in vectors] for b in vectors]) - np.eye(len(vectors))
    assert closeness.max() < MAX_COSINE_BETWEEN, f"two {what} have cosine {closeness.max():.4f}"
    print(f"{what}: highest cosine between two {closeness.max():.3f}", file=sys.stderr)


def compare(found: Any, expected: Any, at: str = "") -> list[str]:
    """What differs, by place."""
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = sorted((expected.keys() | found.keys()) - {"made_with"})
        return [p for key in keys for p in compare(found.get(key), expected.get(key), f"{at}/{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [p for i, pair in enumerate(zip(found, expected)) for p in compare(*pair, f"{at}/{i}")]
    if at.endswith("/vector") and isinstance(found, str) and isinstance(expected, str):
        cosine = float(unpacked(found) @ unpacked(expected))
        return [] if cosine >= MIN_COSINE else [f"{at}: cosine {cosine:.9f}"]
    return [] if found == expected else [f"{at} differs"]


if __name__ == "__main__":
    sys.exit(main())
