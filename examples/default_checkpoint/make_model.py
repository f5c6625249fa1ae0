# SPDX-License-Identifier: Apache-2.0
"""Step 1: the model before it knows anything, with its processor and a tokenizer of the words of its world.

python make_model.py --out DIR
"""

import argparse
import json
import re
from itertools import chain
from pathlib import Path
from random import Random
from string import ascii_letters, digits, punctuation

import torch
from questions import PHRASINGS, dialogue, heard_in_words, seen_in_words
from tokenizers import AddedToken, Tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast
from world import NAMES, THINGS, random_scene

from transformers_videollama import (
    VideoLlamaConfig,
    VideoLlamaFeatureExtractor,
    VideoLlamaForConditionalGeneration,
    VideoLlamaImageProcessor,
    VideoLlamaProcessor,
    VideoLlamaVideoProcessor,
)
from transformers_videollama.processing_video_llama import (
    FRAMES_MESSAGE,
    HEARD_ALONE_PROMPT,
    HEARD_PROMPT,
    SEEN_PROMPT,
    VICUNA_STOP,
)


IMAGE_SIZE = 96
HIDDEN_SIZE = 160
NUM_VIDEO_QUERY_TOKENS, NUM_AUDIO_QUERY_TOKENS = 16, 8
# Most of what LLaMA reads are the same sentences of the prompts: as one token each, they take hardly any of its time
SENTENCES = sorted(
    {
        part.strip()
        for prompt in (HEARD_PROMPT, SEEN_PROMPT, HEARD_ALONE_PROMPT, FRAMES_MESSAGE)
        for part in re.split(r"\{\w+\}|</?Video>", prompt)
        if len(part.strip()) > 12
    },
    key=len,
    reverse=True,
)
MARKS = ("<Video>", "</Video>", "<Image>", "</Image>")


def make_tokenizer(template: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer like LLaMA's, of a small vocabulary: whole words of the world, letters and bytes for all others."""
    random = Random("tokenizer")
    texts = [f"{name} {thing} {thing.several}" for name, thing in THINGS.items()]
    texts += chain.from_iterable(PHRASINGS.values())
    texts += [f"{number / 10:.1f}, {number / 10:.1f} seconds" for number in range(100)] + ["Human: Assistant:"]
    for _ in range(4000):
        scene = random_scene(random)
        texts += [seen_in_words(scene, random), heard_in_words(scene, random)]
        texts += chain.from_iterable((question.text, question.answer) for question in dialogue(scene, random, 6))
    words = [word for text in texts for word in re.findall(r"\d\.\d,?|\w+|[^\w\s]", text)]
    # Words that are rare in the sample are as good as others
    words += [word for word in sorted(set(words)) for _ in range(50)]
    # Letters for words of other worlds; the library needs them where answers end at a stop string, too
    words += [*ascii_letters, *digits, *punctuation]
    tokenizer = template.train_new_from_iterator(words, vocab_size=1600)
    tokenizer.add_tokens([AddedToken(text, normalized=False, lstrip=True) for text in SENTENCES])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*MARKS, VICUNA_STOP)])
    tokenizer = with_bytes(tokenizer)
    missing = [word for name in NAMES for word in name.split() if len(tokenizer.tokenize(word)) > 1]
    if missing:
        raise ValueError(f"The vocabulary is too small: it has no whole words for {', '.join(missing)}.")
    return tokenizer


def with_bytes(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """With LLaMA's tokens for single bytes, without which letters that are not in the vocabulary would be lost."""
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, first = pipeline["model"]["vocab"], len(tokenizer)
    vocabulary |= {f"<0x{byte:02X}>": first + byte for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary}
    special = {name: str(getattr(tokenizer, name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return type(tokenizer)(
        tokenizer_object=Tokenizer.from_str(json.dumps(pipeline)),
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        **special,
    )


def make_processor(template: PreTrainedTokenizerFast) -> VideoLlamaProcessor:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return VideoLlamaProcessor(
        VideoLlamaImageProcessor(size=size),
        VideoLlamaVideoProcessor(size=size),
        VideoLlamaFeatureExtractor(),
        make_tokenizer(template),
        num_video_query_tokens=NUM_VIDEO_QUERY_TOKENS,
        num_audio_query_tokens=NUM_AUDIO_QUERY_TOKENS,
    )


def make_config(processor: VideoLlamaProcessor) -> VideoLlamaConfig:
    """The architecture of the 7B, a thousandth of its size."""
    tokenizer = processor.tokenizer
    width = {"hidden_size": HIDDEN_SIZE, "num_attention_heads": 5}
    qformer = {
        **width,
        "intermediate_size": 4 * HIDDEN_SIZE,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    encoder = {**width, "intermediate_size": 4 * HIDDEN_SIZE}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return VideoLlamaConfig(
        text_config={
            "model_type": "llama",
            **width,
            "head_dim": 32,
            "num_key_value_heads": 5,
            "intermediate_size": 432,
            "num_hidden_layers": 6,
            "max_position_embeddings": 2048,
            "vocab_size": len(tokenizer),
            **special,
        },
        vision_config={**encoder, "num_hidden_layers": 6, "image_size": IMAGE_SIZE, "patch_size": 12},
        qformer_config={**qformer, "num_hidden_layers": 4, "encoder_hidden_size": HIDDEN_SIZE},
        # The narrower, the larger: with 0.02, right for a width of 768, the branches hardly begin to learn
        video_qformer_config={**qformer, "encoder_hidden_size": HIDDEN_SIZE, "initializer_range": 0.05},
        audio_qformer_config={**qformer, "encoder_hidden_size": 128, "initializer_range": 0.05},
        audio_config={
            "output_dim": 128,
            # In the original, sounds come out twenty times as long as the images that the audio branch is trained on
            "audio_logit_scale": 1.0,
            "vision_config": {**encoder, "num_hidden_layers": 4, "image_size": IMAGE_SIZE, "patch_size": 12},
            "audio_config": {**encoder, "num_hidden_layers": 4, "stride": 16, "drop_path_rate": 0.0},
        },
        num_query_tokens=16,
        num_video_query_tokens=NUM_VIDEO_QUERY_TOKENS,
        num_audio_query_tokens=NUM_AUDIO_QUERY_TOKENS,
        image_token_id=processor.image_token_id,
        audio_token_id=processor.audio_token_id,
        video_token_id=processor.video_token_id,
    )


def sincos(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of positions, `(len(positions), width)`."""
    angles = positions[:, None] / 100 ** (torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], -1)


def patch_positions(grid: int, width: int) -> torch.Tensor:
    """Positions of patches in two dimensions, `(1, 1 + grid * grid, width)`, zero for the class token."""
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    table = torch.cat([sincos(index.flatten() * 8 / grid, width // 2) for index in (rows, columns)], -1)
    return torch.cat([torch.zeros(1, width), table])[None]


def make_model(folder: Path, template: PreTrainedTokenizerFast, seed: int = 0) -> None:
    processor = make_processor(template)
    torch.manual_seed(seed)
    model = VideoLlamaForConditionalGeneration(make_config(processor))
    tokenizer, parts = processor.tokenizer, model.model
    with torch.no_grad():
        # A network this small hardly learns by itself where a patch lies, and when a frame comes
        for embeddings, config in (
            (parts.vision_tower.embeddings, model.config.vision_config),
            (parts.audio_tower.vision_model.embeddings, model.config.audio_config.vision_config),
        ):
            embeddings.position_embedding.copy_(
                0.2 * patch_positions(config.image_size // config.patch_size, HIDDEN_SIZE)
            )
        # About half of what they are added to: outputs of a layer norm, and vectors of length 1
        for table, share in ((parts.frame_position_embedding, 0.5), (parts.audio_position_embedding, 0.05)):
            table.weight.copy_(share * sincos(torch.arange(len(table.weight)), table.weight.shape[1]))
        # What ImageBind gives is of length 1, where other inputs have numbers of the size of 1
        for layer in parts.audio_qformer.layers:
            for projection in (layer.cross_attn.k_proj, layer.cross_attn.v_proj):
                projection.weight.mul_(8)
        # To say a word that was read is most of what is to be learned, and begins with knowing it again
        model.lm_head.weight.copy_(model.get_input_embeddings().weight)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=48,
        stop_strings=[VICUNA_STOP],
        stop_token_sequences=[[tokenizer.convert_tokens_to_ids(VICUNA_STOP)]],
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True, help="Folder of a LLaMA tokenizer, whose pipeline is kept.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_model(options.out, AutoTokenizer.from_pretrained(options.tokenizer), options.seed)


if __name__ == "__main__":
    main()
