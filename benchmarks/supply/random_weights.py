"""The paper's pipelines at their published size with random weights, from nothing but the installed packages.

They draw noise and no pictures, but take the time and the memory of the published ones. So both are known before
anything is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline
from torch import nn
from transformers import CLIPTokenizer, T5EncoderModel, T5Tokenizer

from benchmarks.supply.paper_configs import PaperModel, paper_model
from dipgo.errors import unknown

PERIOD = 1_000_003
"""After so many values, a prime number, the noise repeats, since billions of draws would take minutes."""
DECODER = "vae"
"""The part that stays in float32, as SD-XL's overflows in float16."""
DENOISERS = ("unet", "transformer")
CLASSES = [f"class {label}" for label in range(1000)]
"""The names of the DiT's classes; a random one knows no better names."""
T5_LONGEST, CLIP_LONGEST = 512, 77
"""The most tokens of a caption."""

Changes = Mapping[str, Any]


def pipeline(
    name: str,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **changes: Changes,
) -> DiffusionPipeline:
    """Return a model of the paper as its pipeline of diffusers, with random weights that are frozen.

    name: the model.
    dtype: the dtype of the denoiser and the text encoders.
    seed: equal seeds give equal weights. torch's own generator stays as it was.
    device: where the weights are drawn. Buffers stay on the CPU.
    changes: changes to the configuration of a part, by the name of the part, which make smaller ones:
        `unet={"sample_size": 8}`.

    Raises `DipgoError` for an unknown name.
    """
    pipeline = without_values(name, dtype, **changes)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(PERIOD).uniform_(-1, 1, generator=generator).repeat(2).to(device)
    for part in _modules(pipeline):
        for module in part.modules():
            for key, values in module.named_parameters(recurse=False):
                drawn = torch.empty(values.shape, dtype=values.dtype, device=device)
                _draw(drawn, key, noise, int(torch.randint(PERIOD, (), generator=generator)))
                setattr(module, key, nn.Parameter(drawn, requires_grad=False))
        _tie(part)
    return pipeline


def without_values(name: str, dtype: torch.dtype = torch.float32, **changes: Changes) -> DiffusionPipeline:
    """Return the same pipeline with its parameters on the meta device, where they have shapes but no memory."""
    model = paper_model(name)
    for part in changes:
        if part not in model.parts:
            raise unknown(f"part of {name}", part, model.parts)
    with _quietly(), torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        parts = {part: _build(model, part, changes.get(part, {})) for part in model.parts}
    pipeline = model.pipeline(**parts, **_extras(model))
    for part, module in parts.items():
        if isinstance(module, nn.Module):
            _cast(module.eval().requires_grad_(False), torch.float32 if part == DECODER else dtype)
            _tie(module)
    return pipeline


def _build(model: PaperModel, part: str, changes: Changes) -> Any:
    kind, config = model.parts[part]
    if part in DENOISERS:
        return model.denoiser(**changes)
    if hasattr(kind, "config_class"):  # transformers keeps a configuration apart from its model
        return kind(kind.config_class(**{**config, **changes}))
    return kind.from_config({**config, **changes})


def _extras(model: PaperModel) -> dict[str, Any]:
    """Return the pipeline's arguments that have no weights."""
    if "text_encoder" not in model.parts:
        return {"id2label": dict(enumerate(CLASSES))}
    if model.parts["text_encoder"][0] is T5EncoderModel:
        return {"tokenizer": _t5_tokenizer()}
    if "text_encoder_2" in model.parts:
        tokenizers = {"tokenizer": _clip_tokenizer(), "tokenizer_2": _clip_tokenizer(pad_token="!")}
        return {**tokenizers, "add_watermarker": False}
    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return {"tokenizer": _clip_tokenizer(), **unused}


def _cast(part: nn.Module, dtype: torch.dtype) -> None:
    """Cast a part as `from_pretrained` does: what a class keeps in float32 (T5's output layers) stays so in float16."""
    kept = getattr(part, "_keep_in_fp32_modules", None) or () if dtype == torch.float16 else ()
    for path, module in part.named_modules():
        inside = torch.float32 if set(kept) & set(path.split(".")) else dtype
        for values in (module._parameters, module._buffers):
            for key, value in values.items():
                if value is not None and value.is_floating_point():
                    cast = value.to(inside)
                    values[key] = nn.Parameter(cast, requires_grad=False) if values is module._parameters else cast


def _tie(part: nn.Module) -> None:
    """Make weights one again that two modules of a text encoder share: `init_empty_weights` and drawing split them."""
    if hasattr(part, "tie_weights"):
        part.tie_weights()


def _draw(values: torch.Tensor, key: str, noise: torch.Tensor, start: int) -> None:
    """Fill the values of a parameter.

    Matrices and kernels become uniform within 1 / sqrt(inputs), where activations neither vanish nor overflow. Biases
    become 0 and the scales of norms 1. The noise is read from `start` on.
    """
    if values.ndim < 2:
        values.fill_(key == "weight")
        return
    bound = values[0].numel() ** -0.5
    for piece in values.view(-1).split(PERIOD):
        piece.copy_(noise[start : start + len(piece)]).mul_(bound)


@cache
def _clip_words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary and merges, as open_clip ships them. Its two marks come last, and have other names there."""
    from open_clip.tokenizer import SimpleTokenizer

    published = SimpleTokenizer()
    words = [*published.encoder][:-2] + ["<|startoftext|>", "<|endoftext|>"]
    return {word: place for place, word in enumerate(words)}, [*published.bpe_ranks]


def _clip_tokenizer(**differs: Any) -> CLIPTokenizer:
    vocabulary, merges = _clip_words()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LONGEST, **differs)


def _t5_tokenizer() -> T5Tokenizer:
    """Return a tokenizer in place of T5's, which no package ships. A token is a letter. Captions are padded to T5's
    length."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = ["<pad>", "</s>", "<unk>", "\u2581", *letters]
    return T5Tokenizer(vocab=[(word, -1.0) for word in words], extra_ids=0, model_max_length=T5_LONGEST)


def _modules(pipeline: DiffusionPipeline) -> list[nn.Module]:
    return [part for part in pipeline.components.values() if isinstance(part, nn.Module)]


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence diffusers, which complains of configurations that say more than a class needs."""
    before = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers.utils.logging.set_verbosity(before)
