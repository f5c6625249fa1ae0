# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a LLaMA folder, made to read text as the original did."""

import json
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from transformers_videollama.exceptions import CheckpointError


def in_order_of_scores(backend: Tokenizer, sentencepiece_file: Path) -> models.BPE:
    """The merges of a tokenizer in the order of its sentencepiece scores.

    transformers 5.23 takes the order of the ids. LLaMA's runs of blanks come first among these and last by their scores, so
    "  What" would begin with another token.
    """
    scores = SentencePieceProcessor(model_file=str(sentencepiece_file))
    fields = json.loads(backend.to_str())["model"]
    merges = sorted(map(tuple, fields["merges"]), key=lambda merge: -scores.get_score(fields["vocab"]["".join(merge)]))
    return models.BPE(fields["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def read_tokenizer(folder: Path, context_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a LLaMA folder, reading text as the original did: "▁" before every piece between placeholders.

    That is what `LlamaTokenizer` calls legacy. transformers 5.23 neither takes it for granted nor saves it, so the pipeline
    is set here and kept by the generic class; of the folder's tokenizer only the vocabulary counts.

    Raises:
        CheckpointError: If there is no tokenizer, or one without LLaMA's special tokens.
    """
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if not has_tokenizer(folder):
        # transformers would make one of three tokens
        raise CheckpointError(f"{folder} has neither tokenizer.json nor tokenizer.model: give one by --tokenizer.")
    try:
        backend = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **specials).backend_tokenizer
    except Exception as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer that transformers can read ({error}): give one by --tokenizer."
        ) from error
    ids = [backend.token_to_id(token) for token in specials.values()]
    if ids != [0, 1, 2]:
        raise CheckpointError(
            f"The tokenizer of {folder} has the ids {ids} for {', '.join(specials.values())}, expected [0, 1, 2]: give that "
            "of the LLaMA by --tokenizer."
        )
    if not (folder / "tokenizer.json").is_file():
        backend.model = in_order_of_scores(backend, folder / "tokenizer.model")
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **specials,
        pad_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=context_length,
    )
