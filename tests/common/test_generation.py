# SPDX-License-Identifier: Apache-2.0
"""Generation with pictures, videos and sounds: what the library's `GenerationTesterMixin` is about.

Its source distribution lacks that one, so this is written anew. Then follows what the suite for models tests on
accelerators only, as far as a CPU can: offloading and compilation.
"""

import copy
import threading

import pytest
import torch
from transformers import GenerationConfig, TextIteratorStreamer, set_seed

from transformers_videollama import VideoLlamaForConditionalGeneration

from ..helpers import tiny_config


MODALITIES = {"i": "image", "v": "video", "a": "audio"}
FEATURES = {"image": ["pixel_values"], "video": ["pixel_values_videos", "video_frame_mask"]}
FEATURES["audio"] = ["input_features", "input_features_mask"]
# What each sample sees and hears, as letters in the order of its prompt, and a seed for it
SAMPLES = [("iiaav", 1), ("av", 2), ("", 3), ("vaia", 4)]
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def config():
    return tiny_config()


@pytest.fixture
def model(config) -> VideoLlamaForConditionalGeneration:
    return build(config)


def build(config) -> VideoLlamaForConditionalGeneration:
    """A model with weights so large that every input counts in what it says next."""
    set_seed(0)
    model = VideoLlamaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(40 if "projection" in name else 10)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    return model


def random_item(letter: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    length = 1 + seed % 3
    shape = {"i": (3, 28, 28), "v": (length, 3, 28, 28), "a": (length, 128, 204)}[letter]
    return torch.randn(*shape, generator=generator)


def pad(items: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Items of different lengths as one batch, and its mask."""
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(item), dtype=torch.long) for item in items], True)
    return torch.nn.utils.rnn.pad_sequence(items, True), mask


def make_batch(config, samples: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
    """Inputs of the model for samples, their prompts padded on the left."""
    prompts, items = [], {"i": [], "v": [], "a": []}
    for letters, seed in samples:
        prompt = [1, 300 + seed]
        for position, letter in enumerate(letters):
            count = config.num_audio_query_tokens if letter == "a" else config.num_video_query_tokens
            prompt += [getattr(config, f"{MODALITIES[letter]}_token_id")] * count + [400 + 10 * seed + position]
            items[letter].append(random_item(letter, 10 * seed + position))
        prompts.append(torch.tensor(prompt))
    length = max(map(len, prompts))
    inputs = {
        "input_ids": torch.stack([torch.nn.functional.pad(ids, (length - len(ids), 0)) for ids in prompts]),
        "attention_mask": torch.stack(
            [torch.nn.functional.pad(torch.ones_like(ids), (length - len(ids), 0)) for ids in prompts]
        ),
    }
    if items["i"]:
        inputs["pixel_values"] = torch.stack(items["i"])
    if items["v"]:
        inputs["pixel_values_videos"], inputs["video_frame_mask"] = pad(items["v"])
    if items["a"]:
        inputs["input_features"], inputs["input_features_mask"] = pad(items["a"])
    return inputs


@pytest.fixture
def batch(config) -> dict[str, torch.Tensor]:
    return make_batch(config, SAMPLES)


def encode(model, inputs: dict[str, torch.Tensor]) -> tuple[dict, dict]:
    """Inputs without pictures, videos and sounds, and what the model makes of these."""
    inputs, outputs = dict(inputs), {}
    for modality, names in FEATURES.items():
        values = [inputs.pop(name, None) for name in names]
        if values[0] is not None:
            with torch.no_grad():
                outputs[modality] = getattr(model, f"get_{modality}_features")(*values)
    return inputs, outputs


def merge(model, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same prompts as embeddings that hold what is seen and heard already: a reference without placeholders."""
    inputs, outputs = encode(model, inputs)
    input_ids = inputs.pop("input_ids")
    masks = model.model.get_placeholder_mask(input_ids, None)
    embeds = model.get_input_embeddings()(input_ids.masked_fill(torch.stack(list(masks.values())).any(0), 0))
    features = {modality: output.pooler_output for modality, output in outputs.items()}
    return {"inputs_embeds": model.model.merge_features(embeds, features, masks).detach(), **inputs}


def new_tokens(model, inputs: dict[str, torch.Tensor], **kwargs) -> torch.Tensor:
    """What is generated behind the prompts."""
    output_ids = model.generate(**inputs, **kwargs)
    return output_ids[:, inputs["input_ids"].shape[1] :] if "input_ids" in inputs else output_ids


def test_every_input_counts_for_its_sample_alone(model, batch):
    """The other tests would see nothing if the model said the same whatever it is shown."""
    with torch.no_grad():
        reference = model(**batch).logits[:, -1]
        for name in ("pixel_values", "pixel_values_videos", "input_features"):
            owners = []
            for index in range(len(batch[name])):
                values = batch[name].clone()
                values[index] = values[index].flip(-1)
                changes = (model(**{**batch, name: values}).logits[:, -1] - reference).abs().amax(-1)
                owners.append(int(changes.argmax()))
                assert changes.sort().values[-2] < 1e-4 < 0.5 < changes.max(), (name, index)
            letter = {"pixel_values": "i", "pixel_values_videos": "v", "input_features": "a"}[name]
            assert owners == [row for row, (letters, _) in enumerate(SAMPLES) for _ in range(letters.count(letter))]


def test_greedy_takes_the_likeliest_token_each_time(model, batch):
    inputs = dict(batch)
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            next_ids = model(**inputs, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], next_ids], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(next_ids)], dim=1)

    assert torch.equal(model.generate(**batch), inputs["input_ids"])


def test_a_padded_batch_gives_each_sample_what_it_gets_alone(model, config, batch):
    together = new_tokens(model, batch)

    for sample, tokens in zip(SAMPLES, together):
        assert torch.equal(new_tokens(model, make_batch(config, [sample]))[0], tokens), sample


def test_sampling_depends_on_the_seed_alone(model, batch):
    def sample(seed: int) -> torch.Tensor:
        set_seed(seed)
        return model.generate(**batch, do_sample=True, top_p=0.9)

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def test_several_sequences_for_each_sample(model, config):
    """The same as each sample given as often."""
    set_seed(0)
    sampled = model.generate(**make_batch(config, SAMPLES), do_sample=True, num_return_sequences=3)
    set_seed(0)
    repeated = model.generate(**make_batch(config, [sample for sample in SAMPLES for _ in range(3)]), do_sample=True)

    assert torch.equal(sampled, repeated)
    assert len(sampled.unique(dim=0)) == 3 * len(SAMPLES)


@pytest.mark.parametrize("ends", [False, True], ids=["all_of_one_length", "some_end_early"])
class TestBeams:
    @pytest.fixture
    def options(self, model, batch, ends) -> dict:
        # A token that some samples come to
        eos_token_id = int(new_tokens(model, batch)[0, 3]) if ends else None
        options = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True, "return_dict_in_generate": True}
        return {**options, "eos_token_id": eos_token_id}

    def test_they_see_and_hear_what_their_sample_does(self, model, batch, options):
        beams = model.generate(**batch, **options)
        reference = model.generate(**merge(model, batch), **options)

        assert torch.equal(beams.sequences[:, batch["input_ids"].shape[1] :], reference.sequences)
        torch.testing.assert_close(beams.sequences_scores, reference.sequences_scores)

    def test_a_batch_gives_each_sample_what_it_gets_alone(self, model, config, batch, options):
        together = model.generate(**batch, **options)

        for index, sample in enumerate(SAMPLES):
            inputs = make_batch(config, [sample])
            alone = model.generate(**inputs, **options)
            alone_ids = alone.sequences[:, inputs["input_ids"].shape[1] :]
            tokens = together.sequences[2 * index : 2 * index + 2, batch["input_ids"].shape[1] :]
            assert torch.equal(tokens[:, : alone_ids.shape[1]], alone_ids), sample
            assert (tokens[:, alone_ids.shape[1] :] == 0).all(), sample
            scores = together.sequences_scores[2 * index : 2 * index + 2]
            torch.testing.assert_close(scores, alone.sequences_scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("prefill_chunk_size", [1, 5, 16, 1000])
def test_a_prompt_may_be_read_in_chunks(model, batch, prefill_chunk_size, num_beams):
    options = {"num_beams": num_beams}
    chunked = model.generate(**batch, **options, prefill_chunk_size=prefill_chunk_size)

    assert torch.equal(chunked, model.generate(**batch, **options))


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("num_beams", [1, 2])
def test_every_cache_gives_the_same(model, batch, options, num_beams):
    tokens = model.generate(**batch, num_beams=num_beams, **options)

    assert torch.equal(tokens, model.generate(**batch, num_beams=num_beams))


class TestAssistedGeneration:
    @pytest.fixture
    def raise_on_deprecation(self):
        """Off: the library calls its assistant in a way that it calls deprecated itself."""

    @pytest.mark.parametrize("sample", SAMPLES, ids=str)
    def test_by_the_prompt_it_is_greedy(self, model, config, sample):
        inputs = make_batch(config, [sample])

        assert torch.equal(model.generate(**inputs, prompt_lookup_num_tokens=3), model.generate(**inputs))

    @pytest.mark.parametrize("sample", [sample for sample in SAMPLES if sample[0]], ids=str)
    @pytest.mark.parametrize("agrees", [True, False], ids=["that_agrees", "that_does_not"])
    def test_by_a_model_it_is_greedy(self, model, config, sample, agrees):
        inputs, assistant = make_batch(config, [sample]), copy.deepcopy(model)
        if not agrees:
            assistant.model.language_model.layers[1].mlp.down_proj.weight.data.mul_(-1)

        assert torch.equal(model.generate(**inputs, assistant_model=assistant), model.generate(**inputs))


def test_streamed_text_is_the_text(model, config, processor):
    inputs = make_batch(config, SAMPLES[:1])
    expected = processor.tokenizer.decode(new_tokens(model, inputs)[0])
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=60)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()

    assert "".join(pieces) == expected
    assert len(pieces) > 2


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 2}, {"prefill_chunk_size": 5}, {"do_sample": True, "num_return_sequences": 2}],
    ids=str,
)
def test_what_is_encoded_already_may_be_given_and_is_left_as_it_is(model, batch, options):
    inputs, outputs = encode(model, batch)
    given = dict(outputs)
    before = {modality: output.pooler_output.clone() for modality, output in outputs.items()}
    set_seed(0)
    expected = model.generate(**batch, **options)
    for _ in range(2):
        set_seed(0)
        assert torch.equal(model.generate(**inputs, mm_encoder_outputs=given, **options), expected)

    assert given == outputs
    assert all(given[modality] is output for modality, output in outputs.items())
    for modality, values in before.items():
        assert torch.equal(outputs[modality].pooler_output, values)


def test_raw_and_encoded_sounds_at_once_are_an_error(model, batch):
    _, outputs = encode(model, batch)
    with pytest.raises(ValueError, match="audio"):
        model.generate(**batch, mm_encoder_outputs={"audio": outputs["audio"]})


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}], ids=str)
def test_prompts_may_be_embeddings_that_hold_everything(model, batch, options):
    assert torch.equal(new_tokens(model, merge(model, batch), **options), new_tokens(model, batch, **options))


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
def test_prompts_may_be_embeddings_with_placeholders_of_the_vocabulary(options):
    config = tiny_config(image_token_id=31997, audio_token_id=31998, video_token_id=31999)
    model, inputs = build(config), make_batch(config, SAMPLES)
    expected = new_tokens(model, inputs, **options)
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids")).detach()

    assert torch.equal(new_tokens(model, inputs, **options), expected)


@pytest.mark.parametrize("letters", ["", "i", "va"])
def test_a_conversation_goes_on_from_its_cache(model, config, letters):
    """A second question, with or without something new to see or hear, behind the first answer."""
    first = make_batch(config, [("iav", 1)])
    answer = model.generate(**first, return_dict_in_generate=True)
    question = make_batch(config, [(letters, 2)])
    input_ids = torch.cat([answer.sequences, question.pop("input_ids")], dim=1)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    continued = model.generate(**{**question, **inputs}, past_key_values=answer.past_key_values)

    everything = dict(inputs)
    for names in FEATURES.values():
        values = [sample[names[0]] for sample in (first, question) if names[0] in sample]
        if len(names) == 1:
            everything[names[0]] = torch.cat(values)
        else:
            everything[names[0]], everything[names[1]] = pad(
                [
                    item[m == 1]
                    for sample in (first, question)
                    if names[0] in sample
                    for item, m in zip(sample[names[0]], sample[names[1]])
                ]
            )
    assert torch.equal(continued, model.generate(**everything))


def test_outputs_of_every_step_are_returned(config, batch):
    model = build(tiny_config(attn_implementation="eager"))
    outputs = model.generate(
        **batch,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    batch_size, length = batch["input_ids"].shape
    heads = config.text_config.num_attention_heads

    assert len(outputs.scores) == len(outputs.logits) == NEW_TOKENS
    assert outputs.logits[0].shape == (batch_size, config.text_config.vocab_size)
    assert len(outputs.attentions) == len(outputs.hidden_states) == NEW_TOKENS
    for step, attentions in enumerate(outputs.attentions):
        queries = length if step == 0 else 1
        assert [layer.shape for layer in attentions] == [(batch_size, heads, queries, length + step)] * 2
        states = outputs.hidden_states[step]
        assert [layer.shape for layer in states] == [(batch_size, queries, config.text_config.hidden_size)] * 3
    assert outputs.past_key_values.get_seq_length() == length + NEW_TOKENS - 1


def test_attentions_of_the_queries_and_to_the_frames_are_told_apart(config):
    model = build(tiny_config(attn_implementation="eager"))
    video = torch.stack([random_item("v", 2), random_item("v", 5)])  # 3 frames each
    with torch.no_grad():
        outputs = model.get_video_features(video, output_attentions=True)
    frame, whole = outputs.qformer_outputs, outputs.video_qformer_outputs
    heads, patches = config.qformer_config.num_attention_heads, 5
    queries, video_queries = config.num_query_tokens, config.num_video_query_tokens

    assert [layer.shape for layer in frame.attentions] == [(6, heads, queries, queries)] * 4
    # Only every other layer looks at the frame
    assert [layer.shape for layer in frame.cross_attentions] == [(6, heads, queries, patches)] * 2
    assert [layer.shape for layer in whole.attentions] == [(2, heads, video_queries, video_queries)] * 2
    assert [layer.shape for layer in whole.cross_attentions] == [(2, heads, video_queries, 3 * queries)] * 2
    for layer in (*frame.attentions, *frame.cross_attentions, *whole.attentions, *whole.cross_attentions):
        torch.testing.assert_close(layer.sum(-1), torch.ones(layer.shape[:-1]))


def loss_and_gradients(model, batch) -> tuple[float, dict[str, torch.Tensor]]:
    set_seed(0)
    labels = batch["input_ids"].masked_fill(batch["input_ids"] >= 32000, -100)
    loss = model(**batch, labels=labels).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.item(), gradients


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("trained", ["", "qformer"], ids=["all_is_trained", "qformers_are_trained"])
def test_gradient_checkpointing_changes_no_gradient(config, batch, trained, use_reentrant):
    set_seed(0)
    model = VideoLlamaForConditionalGeneration(config).train()  # with dropout and stochastic depth
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    loss, gradients = loss_and_gradients(model, batch)

    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": use_reentrant})
    if trained and use_reentrant:
        model.enable_input_require_grads()
    assert model.is_activation_checkpointing
    loss_again, gradients_again = loss_and_gradients(model, batch)

    assert loss_again == pytest.approx(loss)
    assert gradients_again.keys() == gradients.keys()
    expected = {name for name, p in model.named_parameters() if p.requires_grad and "audio_tower.vision" not in name}
    assert gradients.keys() == expected
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient, msg=name)


PARTS = ["vision_tower", "query_tokens", "qformer", "frame_position_embedding", "video_query_tokens", "video_qformer"]
PARTS += ["video_projection", "audio_tower", "audio_position_embedding", "audio_query_tokens", "audio_qformer"]
PARTS += ["audio_projection", "language_model"]


@pytest.mark.parametrize(
    "on_disk",
    [
        {},
        {"model.vision_tower", "model.audio_tower"},
        {f"model.{part}" for part in PARTS if "quer" in part or "position" in part},
        {f"model.{part}" for part in PARTS} - {"model.language_model"},
        {"model.language_model", "lm_head"},
    ],
    ids=["none", "towers", "embeddings", "both_branches", "llama"],
)
def test_offloading_to_disk_changes_nothing(model, batch, tmp_path, on_disk):
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = model(**batch).logits
    modules = [f"model.{part}" for part in PARTS] + ["lm_head"]
    device_map = {module: "disk" if module in on_disk else "cpu" for module in modules}
    loaded = VideoLlamaForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offloaded"
    ).eval()

    on_meta = {name for name, parameter in loaded.named_parameters() if parameter.device.type == "meta"}
    assert all(any(name.startswith(f"{module}.") for name in on_meta) for module in on_disk)
    assert all(any(name.startswith(f"{module}.") for module in on_disk) for name in on_meta)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, expected)
    loaded.generation_config = model.generation_config
    assert torch.equal(loaded.generate(**batch, num_beams=2), model.generate(**batch, num_beams=2))


def test_single_layers_may_be_offloaded(model, batch, tmp_path):
    """Down to the modules that may not be split, as `device_map="auto"` does where memory is short."""
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = model(**batch).logits
    device_map = {}
    for name, module in model.named_modules():
        is_whole = type(module).__name__ in model._no_split_modules or not list(module.children())
        if is_whole and not any(name.startswith(f"{parent}.") for parent in device_map):
            device_map[name] = "disk" if len(device_map) % 2 else "cpu"
    loaded = VideoLlamaForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offloaded"
    ).eval()

    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, expected)


class TestCompilation:
    """Without breaks in the graph. `eager` traces all and generates no code, which takes a minute on a CPU."""

    def test_a_step_of_text(self, model, config):
        inputs = make_batch(config, SAMPLES[:1])
        prefill = model.generate(
            **inputs, max_new_tokens=1, cache_implementation="static", max_cache_len=64, return_dict_in_generate=True
        )
        step = {
            "input_ids": prefill.sequences[:, -1:],
            "attention_mask": torch.ones_like(prefill.sequences),
            "position_ids": torch.tensor([[prefill.sequences.shape[1] - 1]]),
        }
        with torch.no_grad():
            expected = model(**step, past_key_values=copy.deepcopy(prefill.past_key_values)).logits
            compiled = torch.compile(model, fullgraph=True, backend="eager")
            logits = compiled(**step, past_key_values=prefill.past_key_values).logits

        torch.testing.assert_close(logits, expected)

    def test_a_prompt_with_everything(self, model, config):
        inputs = make_batch(config, [("iav", 2)])
        # Which frames are real can't be known to a graph
        inputs = {name: values for name, values in inputs.items() if not name.endswith("_mask")}
        with torch.no_grad():
            expected = model(**inputs).logits
            logits = torch.compile(model, fullgraph=True, backend="eager")(**inputs).logits

        torch.testing.assert_close(logits, expected)

    @pytest.mark.slow
    def test_generated_code(self, model, config):
        inputs = make_batch(config, [("iav", 2)])
        inputs = {name: values for name, values in inputs.items() if not name.endswith("_mask")}
        with torch.no_grad():
            expected = model(**inputs).logits
            logits = torch.compile(model, fullgraph=True)(**inputs).logits

        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
