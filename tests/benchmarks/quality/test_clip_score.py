from __future__ import annotations

import json
import shutil
import string
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from benchmarks.quality.clip_score import CONFIG, ClipJudge, class_similarity

CAPTIONS = ["red dot, google", "blue dot, fluent", "sunflower", "cat face", "apple", "red dot, google"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny random open_clip model with its own config and its own letter-by-letter tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    letters = string.ascii_lowercase + ","
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    config = {
        "embed_dim": 16,
        "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
        "text_cfg": {
            "context_length": 24,
            "vocab_size": len(vocabulary),
            "hf_tokenizer_name": "letters",
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3}}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.model.CLIP(**config)
        # A fresh model's features are nearly the same whatever the input: spread them.
        torch.nn.init.normal_(model.visual.conv1.weight)
        torch.nn.init.normal_(model.token_embedding.weight)
    weights = {name: value.half() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def judge(model_folder, monkeypatch):
    def refuse(*_):
        raise AssertionError("reached for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    return ClipJudge(model_folder)


@pytest.fixture
def paths(tmp_path):
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(len(CAPTIONS))]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return paths


def test_scores_are_100_times_the_cosine_clamped_at_0(judge, paths):
    scores = judge.scores(judge.image_features(paths, progress=False), CAPTIONS)
    assert scores.shape == (len(paths),) and scores.dtype == np.float32
    with torch.no_grad():
        images = torch.stack([judge.preprocess(Image.open(path)) for path in paths])
        cosines = torch.cosine_similarity(
            judge.model.encode_image(images), judge.model.encode_text(judge.tokenizer(CAPTIONS))
        ).numpy()
    assert cosines.min() > 0 and np.ptp(cosines) > 0.05
    np.testing.assert_allclose(scores, 100 * cosines, atol=1e-3)
    judge.model.visual.proj.neg_()  # now every cosine is below 0
    assert not judge.scores(judge.image_features(paths, progress=False), CAPTIONS).any()


def test_stored_half_precision_weights_are_computed_with_in_float32(judge):
    assert {parameter.dtype for parameter in judge.model.parameters()} == {torch.float32}


def test_the_tokenizer_is_the_folders_own(judge, model_folder):
    tokens = judge.tokenizer(["cat"])
    assert tokens.shape == (1, 24)
    start, end = len(judge.tokenizer.tokenizer) - 2, len(judge.tokenizer.tokenizer) - 1
    assert tokens[0, :5].tolist() == [start, 2, 0, 27 + 19, end]  # c, a, t</w>


def test_features_do_not_depend_on_the_batch(judge, paths):
    one = judge.image_features(paths, batch=1, progress=False)
    torch.testing.assert_close(one, judge.image_features(paths, batch=4, progress=False), atol=1e-6, rtol=0)


def test_each_distinct_caption_is_encoded_once(judge, monkeypatch):
    images = torch.zeros(len(CAPTIONS), 16)
    encoded = []
    encode = judge.model.encode_text

    def counting(tokens):
        encoded.append(len(tokens))
        return encode(tokens)

    monkeypatch.setattr(judge.model, "encode_text", counting)
    judge.scores(images, CAPTIONS)
    judge.scores(images, CAPTIONS)
    assert sum(encoded) == len(set(CAPTIONS))


def with_known_texts(judge, monkeypatch, texts: dict[str, list[float]]) -> None:
    monkeypatch.setattr(judge, "text_features", lambda names, *_: torch.tensor([texts[n] for n in names]))


def test_retrieval_hits_where_the_pictures_own_caption_wins(judge, monkeypatch):
    texts = {"a": [1.0, 0.0, 0.0], "b": [0.0, 1.0, 0.0], "c": [0.0, 0.0, 1.0]}
    images = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    with_known_texts(judge, monkeypatch, texts)
    hits = judge.retrieval(images, ["a", "b", "c", "a"], range(4), among=3)
    assert hits.tolist() == [True, True, False, False]  # the last one is a tie


def test_retrieval_distractors_never_repeat_the_pictures_own_caption(judge, monkeypatch):
    captions, texts = ["a", "b", "a", "a", "b"], {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    with_known_texts(judge, monkeypatch, texts)
    images = torch.tensor([texts[caption] for caption in captions])
    assert judge.retrieval(images, captions, range(5), among=2).all()


def test_retrieval_by_chance_is_1_in_among_and_depends_on_the_seed_alone(judge, monkeypatch):
    random = torch.Generator().manual_seed(0)
    captions = [str(index) for index in range(400)]
    texts = dict(zip(captions, torch.randn(400, 8, generator=random).tolist(), strict=True))
    with_known_texts(judge, monkeypatch, texts)
    images = torch.randn(400, 8, generator=random)
    found = [judge.retrieval(images, captions, range(400), among=5, seed=seed).mean() for seed in (0, 0, 1, 2)]
    assert found[0] == found[1] and len(set(found)) > 1
    assert np.mean(found[1:]) == pytest.approx(1 / 5, abs=0.05)


def test_retrieval_of_some_rows_is_that_of_all(judge, monkeypatch):
    random = torch.Generator().manual_seed(0)
    captions = [str(index) for index in range(60)]
    with_known_texts(
        judge, monkeypatch, dict(zip(captions, torch.randn(60, 8, generator=random).tolist(), strict=True))
    )
    images = torch.randn(60, 8, generator=random)
    rows = [3, 17, 18, 40, 59]
    hits = judge.retrieval(images, captions, range(60), among=3)
    assert judge.retrieval(images[rows], captions, rows, among=3).tolist() == hits[rows].tolist()
    assert len({*hits[rows].tolist()}) == 2


def test_class_similarity_is_the_cosine_to_the_own_centroid_and_a_hit_where_that_is_the_nearest(tmp_path):
    file = tmp_path / "centroids.safetensors"
    save_file({"cat": torch.tensor([1.0, 0.0]).half(), "dog": torch.tensor([0.0, 1.0]).half()}, file)
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    cosines, hits = class_similarity(images, ["cat", "cat", "dog"], file)
    np.testing.assert_allclose(cosines, [1.0, 0.6, 0.8])
    assert hits.tolist() == [True, False, True]
    with pytest.raises(ValueError, match="centroids.*unknown class 'doge'; did you mean dog"):
        class_similarity(images, ["cat", "cat", "doge"], file)
    with pytest.raises(ValueError, match="no class centroids in .*nowhere"):
        class_similarity(images, ["cat", "cat", "dog"], tmp_path / "nowhere")


def test_bad_input_is_named(judge, tmp_path):
    with pytest.raises(ValueError, match="6 pictures but 1 captions"):
        judge.scores(torch.zeros(6, 16), ["sunflower"])
    with pytest.raises(ValueError, match="no pictures"):
        judge.image_features([])
    with pytest.raises(ValueError, match="among 100 captions of 5 distinct ones"):
        judge.retrieval(torch.zeros(6, 16), CAPTIONS, range(6))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot read picture .*broken.png"):
        judge.image_features([broken], progress=False)


def test_a_folder_without_its_parts_or_with_pickles_is_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match="no CLIP model at .*nowhere"):
        ClipJudge(tmp_path / "nowhere")
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    weights = (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="one safetensors file, not 0"):
        ClipJudge(folder)
    shutil.copy(weights, folder)
    torch.save({}, folder / "open_clip_pytorch_model.bin")  # open_clip would prefer it
    with pytest.raises(ValueError, match="pickled weights: open_clip_pytorch_model.bin"):
        ClipJudge(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(ValueError, match=f"lacks {CONFIG}"):
        ClipJudge(folder)


def test_broken_weights_are_named(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="CLIP model .*copy cannot be loaded"):
        ClipJudge(folder)
    save_file({"logit_scale": torch.zeros(())}, weights)
    with pytest.raises(ValueError, match="copy cannot be loaded: .*Missing key") as caught:
        ClipJudge(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_without_tokenizer_files_uses_clips_own(tmp_path):
    """The published ViT-g-14 is such a folder."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(open_clip.model.CLIP(**config).state_dict(), tmp_path / "open_clip_pytorch_model.safetensors")
    judge = ClipJudge(tmp_path)
    assert judge.tokenizer(["a cat"]).shape == (1, 77) and judge.tokenizer(["a cat"])[0, 1] == 320  # "a</w>"
    assert judge.text_features(["a cat", "a dog"]).shape == (2, 16)


def with_architecture(folder: Path, name: str) -> Path:
    """What of an open_clip folder is looked at before anything is loaded."""
    (folder / CONFIG).write_text(json.dumps({"model_cfg": open_clip.get_model_config(name)}))
    (folder / "open_clip_model.safetensors").touch()
    return folder


def test_another_architecture_than_expected_is_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match="is no ViT-g-14: embed_dim is 16, not 1024"):
        ClipJudge(model_folder, expected="ViT-g-14")
    with pytest.raises(ValueError, match="is no ViT-g-14: vision_cfg.layers is 32, not 40"):
        ClipJudge(with_architecture(tmp_path, "ViT-H-14"), expected="ViT-g-14")
    with pytest.raises(ValueError, match="cannot be loaded"):  # it is, but its weights are no weights
        ClipJudge(with_architecture(tmp_path, "ViT-B-32"), expected="ViT-B-32")
    with pytest.raises(ValueError, match="unknown open_clip model 'ViT-g14'; did you mean"):
        ClipJudge(model_folder, expected="ViT-g14")
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(ValueError, match="open_clip_config.json names no model"):
        ClipJudge(tmp_path, expected="ViT-g-14")
