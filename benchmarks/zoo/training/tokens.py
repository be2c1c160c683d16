"""The captions' own byte-pair vocabulary, for the generator and the judge."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, models, trainers
from transformers import CLIPTokenizer

CONTEXT = 20  # tokens, the longest caption and both end marks included
VOCABULARY = 1640


def train_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A CLIPTokenizer whose byte-pair merges are learnt from ``captions``; deterministic.

    Raises ValueError when a caption is longer than ``CONTEXT`` tokens.
    """
    start, end = "<|startoftext|>", "<|endoftext|>"
    pipeline = CLIPTokenizer().backend_tokenizer  # CLIP's own normaliser and word splitting
    learner = Tokenizer(models.BPE(unk_token=end, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    learner.normalizer, learner.pre_tokenizer = pipeline.normalizer, pipeline.pre_tokenizer
    learner.train_from_iterator(
        captions, trainers.BpeTrainer(vocab_size=VOCABULARY - 2, end_of_word_suffix="</w>", show_progress=False)
    )

    learnt = json.loads(learner.to_str())["model"]
    # CLIP's text encoder pools at the highest token number, so the end mark comes last.
    vocabulary = {**learnt["vocab"], start: len(learnt["vocab"]), end: len(learnt["vocab"]) + 1}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(pair) for pair in learnt["merges"]], model_max_length=CONTEXT
    )
    longest = max(len(tokens) for tokens in tokenizer(captions).input_ids)
    if longest > CONTEXT:
        raise ValueError(f"the longest caption has {longest} tokens, more than {CONTEXT}; raise CONTEXT")
    return tokenizer
