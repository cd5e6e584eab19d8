"""What every family promises to the loop, the methods and the files, on its random miniature and at its true shapes."""

from __future__ import annotations

import functools
import math
from collections import Counter

import pytest
import torch
from tiny_flow import TinyFlow

from aprendiz import registry
from aprendiz.families import Base, Family, PictureSize
from aprendiz.formats import clip_vocab
from aprendiz.nets import clip

SIZE = PictureSize((200, 100), (4, 2), (64, 64))
FAMILIES: dict[str, Family] = {**registry.families(), "tiny_flow": TinyFlow()}
LONG = ", ".join(f"a red circle above {n} blue squares" for n in range(17))  # more than 75 tokens, fewer than 225

# The networks that people have, as diffusers configures them.
SD1 = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
SD2 = {**SD1, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SDXL = {"sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20], "use_linear_projection": True, "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
TRUE = {"sd1": (SD1, [(768, 12)]), "sd2": (SD2, [(1024, 23)]), "sdxl": (SDXL, [(768, 12), (1280, 32)])}


@functools.cache
def tiny(name: str) -> Base:
    return FAMILIES[name].tiny()


@functools.cache
def true_shaped(name: str) -> Base:
    """A base of the family's true shapes, without weights."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    network, encoders = TRUE[name]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**network)
        configs = [CLIPTextConfig(hidden_size=width, num_hidden_layers=layers, intermediate_size=4 * width, projection_dim=width,
                                  num_attention_heads=width // 64) for width, layers in encoders]
        made = [(CLIPTextModelWithProjection if one.hidden_size == 1280 else CLIPTextModel)(one) for one in configs]
    base = tiny(name)
    return Base(FAMILIES[name], base.source, unet, None, made, base.tokenizers, base.prediction, base.schedule, base.resolution)


def states(name: str, prompts: list[str], weighted: bool = True):
    base = tiny(name)
    return base.family.encode_tokens(base, base.family.tokenize(base, prompts, weighted=weighted))


def predicted(name: str, conditioning, rows: int) -> torch.Tensor:
    base = tiny(name)
    shape = base.family.latent_shape(base, 64, 64)
    noisy = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1)).expand(rows, -1, -1, -1)
    times = torch.full((rows,), 0.5) if base.prediction == "flow" else torch.full((rows,), 500)
    with torch.no_grad():
        return base.family.predict(base, noisy, times, conditioning)


def test_families_are_tried_in_the_order_in_which_recognition_is_safe():
    assert list(registry.families()) == ["sdxl", "sd2", "sd1"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_miniature_follows_from_its_seed_and_disturbs_no_other_draws(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (FAMILIES[name].tiny(seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    for part, module in first.parts().items():
        same, differs = second.parts()[part].state_dict(), other.parts()[part].state_dict()
        assert all(torch.equal(tensor, same[key]) for key, tensor in module.state_dict().items())
        assert any(not torch.equal(tensor, differs[key]) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_base_is_frozen_and_in_evaluation_mode(name):
    for module in tiny(name).parts().values():
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_latents_have_the_announced_shape_and_decode_to_pixels(name):
    base = tiny(name)
    pixels = torch.rand(3, 3, 64, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = base.family.encode_images(base, pixels)
    assert mean.shape == std.shape == (3, *base.family.latent_shape(base, 128, 64))
    assert (std > 0).all()
    with torch.no_grad():
        decoded = base.family.decode(base, mean)
    assert decoded.shape == pixels.shape and decoded.min() >= -1 and decoded.max() <= 1


@pytest.mark.parametrize("name", FAMILIES)
def test_decoding_carries_gradients_to_the_latents(name):
    base = tiny(name)
    latents = torch.zeros(1, *base.family.latent_shape(base, 64, 64), requires_grad=True)
    base.family.decode(base, latents).mean().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


@pytest.mark.parametrize("name", registry.families())
def test_latents_are_scaled_by_the_vaes_own_factor(name):
    base = tiny(name)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = base.vae.encode(pixels).latent_dist
    mean, std = base.family.encode_images(base, pixels)
    torch.testing.assert_close(mean, expected.mean * base.vae.config.scaling_factor)
    torch.testing.assert_close(std, expected.std * base.vae.config.scaling_factor)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mixed_batch_predicts_what_its_members_predict_alone(name):
    """Prompts of one, two and three chunks (of any length, for the flow family) together and each by itself."""
    prompts = ["a cat", "a dog " * 60, LONG]
    alone = [states(name, [prompt]) for prompt in prompts]
    together = FAMILIES[name].collate(alone, [SIZE] * 3)
    mixed = predicted(name, together, 3)
    for i, state in enumerate(alone):
        single = predicted(name, FAMILIES[name].collate([state], [SIZE]), 1)
        torch.testing.assert_close(mixed[i:i + 1], single, rtol=1e-4, atol=1e-5)
    assert (mixed[0] - mixed[2]).abs().max() > 1e-4  # the prompts do count


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_tokenised_together_mean_what_they_mean_alone(name):
    prompts = ["a cat", LONG]
    together = states(name, prompts)
    one = predicted(name, FAMILIES[name].collate([together], [SIZE] * 2), 2)
    other = predicted(name, FAMILIES[name].collate([states(name, [p]) for p in prompts], [SIZE] * 2), 2)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_text_states_survive_being_cached_as_plain_tensors(name):
    state = states(name, ["a cat", "a dog"])
    again = FAMILIES[name].Conditioning(**state.tensors())
    assert state.rows(1, 2).tensors().keys() == again.rows(1, 2).tensors().keys()
    for key, tensor in again.rows(1, 2).tensors().items():
        assert torch.equal(tensor, state.tensors()[key][1:2])


@pytest.mark.parametrize("name", FAMILIES)
def test_text_states_carry_gradients_where_the_encoder_asks_for_them(name):
    base = FAMILIES[name].tiny()
    wanted = [module.get_submodule(n).weight for part, module in base.parts().items() if part.startswith("text_encoder")
              for n in base.family.lora_targets(base, "attention")[part][:1]]
    for weight in wanted:
        weight.requires_grad_(True)
    state = base.family.encode_tokens(base, base.family.tokenize(base, ["a (red:1.3) cat"]))
    state.tensors()["text_BTD"].square().sum().backward()
    assert wanted and all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answer_is_in_the_precision_of_the_latents(name):
    base = FAMILIES[name].tiny()
    base.network.to(torch.bfloat16)
    conditioning = base.family.collate([states(name, ["a cat"])], [SIZE])
    noisy = torch.randn(1, *base.family.latent_shape(base, 64, 64))
    times = torch.tensor([0.5]) if base.prediction == "flow" else torch.tensor([500])
    answer = base.family.predict(base, noisy, times, conditioning)
    assert answer.dtype == torch.float32 and answer.shape == noisy.shape and answer.isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_come_in_the_order_in_which_they_run(name):
    base, ran = tiny(name), []
    found = base.family.blocks(base)
    hooks = [block.register_forward_hook(lambda module, _, __: ran.append(module)) for block in found]
    predicted(name, base.family.collate([states(name, ["a cat"])], [SIZE]), 1)
    for hook in hooks:
        hook.remove()
    assert len(found) > 1 and [id(block) for block in ran] == [id(block) for block in found]


@pytest.mark.parametrize("name", registry.families())
def test_blocks_hold_nearly_all_of_the_networks_weights(name):
    network = true_shaped(name).network
    in_blocks = sum(p.numel() for block in FAMILIES[name].blocks(true_shaped(name)) for p in block.parameters())
    assert in_blocks > 0.98 * sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_targets_are_layers_of_the_parts_and_grow_with_the_reach(name):
    base = tiny(name)
    reaches = [base.family.lora_targets(base, targets) for targets in ("attention", "attention+ff", "all")]
    for targets in reaches:
        assert targets.keys() == base.parts().keys() - {"vae"}
        for part, names in targets.items():
            assert all(isinstance(base.parts()[part].get_submodule(n), (torch.nn.Linear, torch.nn.Conv2d)) for n in names)
            assert len(set(names)) == len(names) > 0
    for smaller, larger in zip(reaches, reaches[1:]):
        assert all(set(smaller[part]) <= set(larger[part]) for part in smaller)


@pytest.mark.parametrize(("name", "counts"), [
    ("sd1", {"attention": (128, 48), "attention+ff": (192, 72), "all": (278, 72)}),
    ("sd2", {"attention": (128, 92), "attention+ff": (192, 138), "all": (278, 138)}),
    ("sdxl", {"attention": (560, 48, 128), "attention+ff": (722, 72, 192), "all": (788, 72, 192)}),
])
def test_lora_targets_are_those_of_sd_scripts(name, counts):
    """Its default set, and with convolutions; 278 and 788 are the modules it makes of a U-Net of SD1.5 and of SDXL."""
    base = true_shaped(name)
    for targets, expected in counts.items():
        assert tuple(len(names) for names in base.family.lora_targets(base, targets).values()) == expected
    everything = base.family.lora_targets(base, "all")["network"]
    assert not [n for n in everything if n.startswith(("conv_in", "conv_out", "time_embedding", "add_embedding")) or "norm" in n]
    ends = Counter(n.rpartition(".")[2] for n in base.family.lora_targets(base, "attention+ff")["network"])
    assert ends.keys() == {"to_q", "to_k", "to_v", "0", "proj", "2", "proj_in", "proj_out"}


@pytest.mark.parametrize("name", registry.families())
def test_lora_names_are_unique_and_of_the_familys_layout(name):
    base = true_shaped(name)
    targets = base.family.lora_targets(base, "all")
    names = [base.family.lora_name(part, module) for part, modules in targets.items() for module in modules]
    assert len(set(names)) == len(names)
    begins = {"sd1": ("lora_unet_", "lora_te_text_model_encoder_"), "sd2": ("lora_unet_", "lora_te_text_model_encoder_"),
              "sdxl": ("lora_unet_input_", "lora_unet_middle_", "lora_unet_output_", "lora_te1_text_model_encoder_",
                       "lora_te2_text_model_encoder_")}[name]
    assert all(one.startswith(begins) for one in names)
    assert not [one for one in names if "." in one or "text_model_text_model" in one]


@pytest.mark.parametrize(("part", "module", "expected"), [
    ("network", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
     "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"),
    ("network", "down_blocks.0.downsamplers.0.conv", "lora_unet_input_blocks_3_0_op"),
    ("network", "mid_block.attentions.0.proj_in", "lora_unet_middle_block_1_proj_in"),
    ("network", "mid_block.resnets.1.conv2", "lora_unet_middle_block_2_out_layers_3"),
    ("network", "up_blocks.0.upsamplers.0.conv", "lora_unet_output_blocks_2_2_conv"),
    ("network", "up_blocks.2.resnets.2.conv_shortcut", "lora_unet_output_blocks_8_0_skip_connection"),
    ("text_encoder_1", "encoder.layers.3.mlp.fc1", "lora_te1_text_model_encoder_layers_3_mlp_fc1"),
    ("text_encoder_2", "text_model.encoder.layers.31.self_attn.out_proj",
     "lora_te2_text_model_encoder_layers_31_self_attn_out_proj"),
])
def test_sdxl_loras_carry_original_names(part, module, expected):
    assert FAMILIES["sdxl"].lora_name(part, module) == expected


@pytest.mark.parametrize("name", registry.families())
def test_a_network_of_true_shapes_is_recognised_by_its_family_alone(name):
    shapes = {key: tuple(tensor.shape) for key, tensor in true_shaped(name).network.state_dict().items()}
    assert [family.name for family in registry.families().values() if family.recognise(shapes)] == [name]


# ---- sizes ----

def test_sdxl_is_told_the_sizes_height_first():
    collated = FAMILIES["sdxl"].collate([states("sdxl", ["a cat"])], [PictureSize((200, 100), (4, 2), (64, 48))])
    assert collated.size_B6.tolist() == [[100, 200, 2, 4, 48, 64]]


def test_sdxl_sizes_change_the_prediction():
    state = states("sdxl", ["a cat"])
    one, other = (predicted("sdxl", FAMILIES["sdxl"].collate([state], [PictureSize(size, (0, 0), (64, 64))]), 1)
                  for size in ((64, 64), (2000, 1000)))
    assert (one - other).abs().max() > 1e-4


# ---- tokens ----

@pytest.mark.parametrize(("prompt", "ids"), [
    ("a photo of a cat", [320, 1125, 539, 320, 2368]),
    ("8k (uhd), ñandú", [279, 330, 263, 84, 4414, 264, 11, 6445, 672, 36019][:6] + [2361, 6445, 672, 36019]),
])
def test_the_shipped_vocabulary_gives_clips_own_ids(prompt, ids):
    built = clip_vocab.tokenizer()
    found = built(prompt, add_special_tokens=False).input_ids
    assert found[:5] == ids[:5] and found[-3:] == ids[-3:]
    assert (len(built), built.bos_token_id, built.eos_token_id) == (49408, 49406, 49407)


def test_padding_is_end_of_text_for_clip_l_and_an_exclamation_mark_for_openclip():
    base = tiny("sdxl")
    tokens = base.family.tokenize(base, ["a cat"])
    assert tokens.ids_1_BNT[0, 0].tolist() == [49406, 320, 2368] + [49407] * 74
    assert tokens.ids_2_BNT[0, 0].tolist() == [49406, 320, 2368, 49407] + [0] * 73
    assert tiny("sd1").family.tokenize(tiny("sd1"), [""]).ids_BNT[0, 0].tolist() == [49406] + [49407] * 76
    assert tiny("sd2").family.tokenize(tiny("sd2"), [""]).ids_BNT[0, 0].tolist() == [49406, 49407] + [0] * 75


@pytest.mark.parametrize(("words", "count"), [(0, 1), (75, 1), (76, 2), (150, 2), (151, 3), (225, 3), (300, 4)])
def test_prompts_of_any_length_go_into_chunks_of_75(words, count):
    base = tiny("sd1")
    tokens = base.family.tokenize(base, ["cat " * words])
    assert tokens.ids_BNT.shape == (1, count, 77)
    assert (tokens.ids_BNT == 2368).sum() == words
    assert (tokens.ids_BNT[:, :, 0] == 49406).all() and (tokens.ids_BNT[:, :, -1] == 49407).all()


@pytest.mark.parametrize(("limit", "chunks"), [(75, 1), (100, 2), (225, 3)])
def test_prompts_are_cut_at_the_token_limit(limit, chunks):
    base = tiny("sd1")
    tokens = base.family.tokenize(base, ["cat " * 400], limit)
    assert tokens.ids_BNT.shape[1] == chunks and (tokens.ids_BNT == 2368).sum() == limit


def test_a_word_stays_whole_at_the_end_of_a_chunk():
    built = clip_vocab.tokenizer()
    word = built("aprendizaje", add_special_tokens=False).input_ids
    assert len(word) > 1
    made = clip.chunks(built, "cat " * 74 + "aprendizaje")
    assert [len(chunk) for chunk in made] == [74, len(word)]


def test_break_begins_a_new_chunk_in_prompts_and_is_a_word_in_captions():
    built = clip_vocab.tokenizer()
    assert [len(chunk) for chunk in clip.chunks(built, "a cat BREAK a dog")] == [2, 2]
    assert [len(chunk) for chunk in clip.chunks(built, "a cat BREAK a dog", weighted=False)] == [5]


def test_tokens_are_counted_as_they_are_chunked():
    built = clip_vocab.tokenizer()
    assert clip.count_tokens(built, "a (red:1.3) cat") == 3
    assert clip.count_tokens(built, "a (red:1.3) cat", weighted=False) == 9


def test_tokens_added_to_the_vocabulary_count_as_words():
    built = clip_vocab.tokenizer()
    built.add_tokens(["<vase>", "<vase>_1"])
    made = clip.chunks(built, "a <vase><vase>_1 on (<vase>:1.2)")
    assert [token for token, _ in made[0]] == [320, 49408, 49409, 525, 49408]
    assert made[0][-1][1] == 1.2


# ---- weights ----

@pytest.mark.parametrize(("prompt", "expected"), [
    ("a cat", [("a cat", 1.0)]),
    ("", []),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("a [quiet] word", [("a ", 1.0), ("quiet", 1 / 1.1), (" word", 1.0)]),
    ("(word:1.3)", [("word", 1.3)]),
    ("(word: .5 )", [("word", 0.5)]),
    ("(word:-1)", [("word", -1.0)]),
    ("((very) much:2)", [("very", 2.2), (" much", 2.0)]),
    ("(one)(two)", [("onetwo", 1.1)]),
    (r"\(plain\) \[brackets\]", [("(plain) [brackets]", 1.0)]),
    (r"back\\slash and \letters", [(r"back\slash and letters", 1.0)]),
    ("(never closed", [("never closed", 1.1)]),
    ("[[never closed", [("never closed", 1 / 1.21)]),
    ("never opened) here]", [("never opened) here]", 1.0)]),
    ("no brackets:1.3)", [("no brackets:1.3)", 1.0)]),
    ("(a:b)", [("a:b", 1.1)]),
    ("(saber \\(fate\\):1.2)", [("saber (fate)", 1.2)]),
    ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
     [("a ", 1.0), ("house", 1.3 * 1.1 * 1.1), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
      ("sky", 1.1 ** 4), (".", 1.1)]),
])
def test_weights_are_read_as_the_hosts_read_them(prompt, expected):
    found = clip.parse(prompt)
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert all(math.isclose(weight, wanted, rel_tol=1e-9) for (_, weight), (_, wanted) in zip(found, expected))


def test_weights_fall_on_their_tokens():
    base = tiny("sd1")
    tokens = base.family.tokenize(base, ["a (red:1.3) cat"])
    torch.testing.assert_close(tokens.weights_BNT[0, 0, :5], torch.tensor([1, 1, 1.3, 1, 1]))
    assert (tokens.weights_BNT[0, 0, 5:] == 1).all()


def test_captions_keep_their_brackets():
    base = tiny("sd1")
    tokens = base.family.tokenize(base, ["saber (fate)"], weighted=False)
    plain = clip_vocab.tokenizer()("saber (fate)", add_special_tokens=False).input_ids
    assert tokens.ids_BNT[0, 0, 1:1 + len(plain)].tolist() == plain
    assert (tokens.weights_BNT == 1).all()


@pytest.mark.parametrize("name", registry.families())
def test_weights_of_one_change_no_bit(name):
    assert torch.equal(states(name, ["a (red:1.0) cat"]).text_BTD, states(name, ["a red cat"], weighted=False).text_BTD)


def test_weighted_states_are_multiplied_and_keep_their_mean():
    plain, weighted = states("sd1", ["a red cat"]).text_BTD, states("sd1", ["a (red:1.5) cat"]).text_BTD
    torch.testing.assert_close(weighted.mean(), plain.mean())
    ratio = (weighted / plain)[0].median(-1).values
    assert math.isclose(float(ratio[2] / ratio[1]), 1.5, rel_tol=1e-4)


# ---- layers ----

def reference(name: str, encoder: int, ids: torch.Tensor):
    with torch.no_grad():
        return tiny(name).text_encoders[encoder](input_ids=ids, output_hidden_states=True)


def test_sd1_reads_the_last_layer_and_clip_skip_goes_down_under_the_norm():
    base = FAMILIES["sd1"].tiny()
    tokens = base.family.tokenize(base, ["a cat"])
    out = reference("sd1", 0, tokens.ids_BNT[0])
    torch.testing.assert_close(base.family.encode_tokens(base, tokens).text_BTD, out.last_hidden_state)
    base.clip_skip = 2
    expected = clip.core(base.text_encoders[0]).final_layer_norm(out.hidden_states[-2])
    torch.testing.assert_close(base.family.encode_tokens(base, tokens).text_BTD, expected)


def test_sd2_reads_the_last_layer_that_is_there_as_the_second_from_the_end():
    base = FAMILIES["sd2"].tiny()
    tokens = base.family.tokenize(base, ["a cat"])
    out = reference("sd2", 0, tokens.ids_BNT[0])
    for skip in (None, 1, 2):
        base.clip_skip = skip
        torch.testing.assert_close(base.family.encode_tokens(base, tokens).text_BTD, out.last_hidden_state)


def test_sdxl_reads_both_encoders_last_layer_but_one_and_pools_the_second():
    base = tiny("sdxl")
    tokens = base.family.tokenize(base, ["a cat"])
    first, second = reference("sdxl", 0, tokens.ids_1_BNT[0]), reference("sdxl", 1, tokens.ids_2_BNT[0])
    state = base.family.encode_tokens(base, tokens)
    torch.testing.assert_close(state.text_BTD, torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1))
    torch.testing.assert_close(state.pooled_BD, second.text_embeds)


def test_the_pooled_state_is_the_first_chunks_and_survives_added_tokens():
    base = FAMILIES["sdxl"].tiny()
    long, begin = ("cat " * 75 + tail for tail in ("dog " * 75, ""))
    pooled = [base.family.encode_tokens(base, base.family.tokenize(base, [prompt])).pooled_BD for prompt in (long, begin)]
    torch.testing.assert_close(*pooled)
    for built, encoder in zip(base.tokenizers, base.text_encoders):
        built.add_tokens(["<vase>"])
        encoder.resize_token_embeddings(len(built), mean_resizing=False)
    tokens = base.family.tokenize(base, ["a <vase> here"])
    last = base.text_encoders[1](input_ids=tokens.ids_2_BNT[0]).last_hidden_state
    expected = base.text_encoders[1].text_projection(last[:, 4])  # begin, three tokens, end
    torch.testing.assert_close(base.family.encode_tokens(base, tokens).pooled_BD, expected)


# ---- the flow family ----

def test_the_flow_family_tells_positions_apart():
    base = tiny("tiny_flow")
    conditioning = base.family.collate([states("tiny_flow", ["a cat"])], [SIZE])
    with torch.no_grad():
        answer = base.family.predict(base, torch.zeros(1, 4, 8, 8), torch.tensor([0.5]), conditioning)
    assert (answer[..., :4] - answer[..., 4:]).abs().max() > 1e-4  # equal patches, other places


def test_the_flow_family_opens_what_it_writes(tmp_path):
    from aprendiz.families import Source
    from aprendiz.settings import BaseSettings
    family = TinyFlow()
    base = family.tiny(seed=3)
    family.save(base, tmp_path / "flow.safetensors")
    again = family.load(Source("tiny_flow", tmp_path / "flow.safetensors", "file", "flow"), BaseSettings(), torch.float32)
    for part, module in base.parts().items():
        assert all(torch.equal(tensor, again.parts()[part].state_dict()[key]) for key, tensor in module.state_dict().items())
