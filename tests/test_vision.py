"""Image encoders, CLIP's text heads, contrastive pre-training, and loaders of published folders."""

import json
import math
import shutil
from dataclasses import replace
from string import ascii_lowercase

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from near import normal, seeded
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

import mergelib
from mergelib.core.errors import ConfigError, DataError, StateDictError, UnsafeFileError
from mergelib.core.types import Split, Task, head_digest, state_digest
from mergelib.encoders import ImageEncoder, encoder_state, load_state
from mergelib.encoders.features import extract
from mergelib.foundations.clip import (
    CaptionContrast,
    Clip,
    caption_vocab,
    check_words,
    pretrain_clip,
    word_tokenizer,
)
from mergelib.foundations.zero_shot import as_batches, load_clip, zero_shot_head
from mergelib.tasks.miniature.images import prompts
from mergelib.training.config import TrainConfig

CPU = torch.device("cpu")
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
NAMES = ("cat", "green bus", "old red house")


def small_config(vocab_size, pad=0, bos=2, eos=3):
    text = {"pad_token_id": pad, "bos_token_id": bos, "eos_token_id": eos, **SHAPE}
    return CLIPConfig(
        text_config={"vocab_size": vocab_size, "max_position_embeddings": 40, **text},
        projection_dim=12,
        vision_config={"image_size": 16, "patch_size": 8, **SHAPE, "projection_dim": 12},
    )


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (5, 3, 16, 16), generator=seeded(3), dtype=torch.uint8)


@pytest.fixture(scope="module")
def words():
    vocab = caption_vocab(["a photo of the cat", "a picture of the green bus", "an old red house"])
    return vocab, as_batches(word_tokenizer(vocab), 20)


@pytest.fixture(scope="module")
def clip(words):
    torch.manual_seed(0)
    return CLIPModel(small_config(len(words[0]))).eval()


def texts_of(tokenize, *texts):
    batch = tokenize(list(texts))
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def tower_of(model):
    return {
        n: t
        for n, t in model.state_dict().items()
        if n.startswith(("vision_model.", "visual_projection."))
    }


# ---- heads and features --------------------------------------------------------------------------


@pytest.mark.parametrize("templates", [[], ["a photo"], ["a {} of a {}"]])
def test_a_template_without_its_place_is_refused(clip, words, templates):
    with pytest.raises(ConfigError, match="template"):
        zero_shot_head(clip, words[1], NAMES, templates)


def test_text_is_pooled_at_its_end(clip, words):
    def embed(*texts):
        return clip.text_model(**texts_of(words[1], *texts)).pooler_output[0]

    with torch.inference_mode():
        alone = embed("a photo of the cat")
        assert_close(embed("a photo of the cat", "an old red house of the green bus"), alone)
        # The last word speaks only to a token behind it: pooling at a place before the end would
        # miss it.
        assert (embed("a photo of the bus") - alone).abs().max() > 1e-3


def test_pixels_are_prepared_as_the_librarys_processor_does(clip, images):
    processor = ViTImageProcessor(do_resize=False, image_mean=MEAN, image_std=STD)
    pictures = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in images]
    theirs = dict(processor(pictures, return_tensors="pt"))
    ours = ImageEncoder(clip.config.vision_config, "test", MEAN, STD).collate(list(images))
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_vit_features_are_pooled_patches_or_the_first_token(images):
    torch.manual_seed(1)
    vit = ViTModel(ViTConfig(image_size=16, patch_size=8, **SHAPE), add_pooling_layer=False).eval()
    by_pooling = {p: ImageEncoder(vit.config, "vit", pooling=p) for p in ("", "cls")}
    with torch.inference_mode():
        hidden = vit(pixel_values=by_pooling[""].collate(images)["pixel_values"]).last_hidden_state
    for pooling, wanted in (("", hidden[:, 1:].mean(1)), ("cls", hidden[:, 0])):
        encoder = by_pooling[pooling]
        assert_close(
            extract(encoder, encoder.module(vit.state_dict()), images, batch_size=2), wanted
        )
    assert by_pooling[""].digest != by_pooling["cls"].digest


def test_identity_is_what_changes_a_feature(clip):
    config = clip.config.vision_config
    first = ImageEncoder(config, "here", MEAN, STD)
    assert first.digest == ImageEncoder(config, "elsewhere", MEAN, STD).digest
    assert first.digest != ImageEncoder(config, "here", MEAN, MEAN).digest
    other = small_config(30).vision_config
    other.hidden_act = "gelu"
    assert first.digest != ImageEncoder(other, "here", MEAN, STD).digest


def test_module_and_state_are_inverse(clip):
    encoder = ImageEncoder(clip.config.vision_config, "test")
    module = encoder.module(tower_of(clip))
    assert not module.training
    assert state_digest(encoder_state(module)) == state_digest(tower_of(clip))
    without_last = dict(list(tower_of(clip).items())[:-1])
    with pytest.raises(StateDictError, match="visual_projection"):
        load_state(module, without_last)


def test_other_inputs_architectures_and_poolings_are_refused(clip):
    encoder, small = ImageEncoder(clip.config.vision_config), torch.zeros(2, 3, 8, 8).byte()
    for broken in (torch.zeros(2, 3, 16, 16), small, ("a text",)):
        with pytest.raises(DataError, match="16, 16"):
            encoder.prepare(broken)
    with pytest.raises(ConfigError, match="clip_text_model"):
        ImageEncoder(clip.config.text_config, "text")
    with pytest.raises(ConfigError, match="mean"):
        ImageEncoder(clip.config.vision_config, "test", pooling="mean")


# ---- pre-training --------------------------------------------------------------------------------


def contrast_batch(words, texts):
    return {"pixel_values": normal(len(texts), 3, 16, 16), **texts_of(words[1], *texts)}


def test_the_loss_is_clips_where_no_caption_repeats(words):
    torch.manual_seed(0)
    model = CaptionContrast(small_config(len(words[0]))).eval()
    batch = contrast_batch(words, ["a cat", "a green bus", "an old red house", "the photo"])
    assert_close(model(**batch)["loss"], model.clip(**batch, return_loss=True).loss)
    same = contrast_batch(words, ["a cat"] * 4)
    # Pictures of one caption cannot be told apart from it: every guess among the four is as good.
    assert float(model(**same)["loss"].detach()) >= math.log(4) - 1e-5
    turned = {k: v[[2, 0, 3, 1]] for k, v in batch.items()}
    assert_close(model(**turned)["loss"], model(**batch)["loss"])


def test_the_logit_scale_stays_at_100_or_less(words):
    model = CaptionContrast(small_config(len(words[0])))
    model.clip.logit_scale.data.fill_(9.0)
    model(**contrast_batch(words, ["a cat", "a green bus"]))
    assert float(model.clip.logit_scale.detach().exp()) == pytest.approx(100, rel=1e-5)


COLOURS = ("red", "green", "blue")


def coloured(n, seed):
    random = seeded(seed)
    labels = torch.randint(3, (n,), generator=random)
    pictures = torch.randint(0, 100, (n, 3, 16, 16), generator=random)
    pictures[torch.arange(n), labels] += 150
    return pictures.to(torch.uint8), labels


def test_a_pre_trained_clip_knows_the_colours_and_is_reproducible(tmp_path):
    pictures, labels = coloured(256, 1)
    captions = [
        f"a {('photo', 'picture')[i % 2]} of the {COLOURS[c]} wall"
        for i, c in enumerate(labels.tolist())
    ]
    config = TrainConfig(steps=25, batch_size=32, lr=3e-3, threads=1)

    def run(name):
        rest = {"device": CPU, "scratch": tmp_path / name, "desc": "test"}
        return pretrain_clip(pictures, captions, config, small_config, **rest)

    clip, vocab, info = run("a")
    head = zero_shot_head(
        clip, as_batches(word_tokenizer(vocab), 20), COLOURS, ["a photo of the {} wall"]
    )
    encoder = ImageEncoder(clip.config.vision_config, "miniature")
    unseen, truth = coloured(90, 2)
    found = head.logits(extract(encoder, encoder.module(tower_of(clip)), unseen)).argmax(-1)
    assert (found == truth).float().mean() > 0.9
    assert state_digest(run("b")[0].state_dict()) == state_digest(clip.state_dict())
    assert float(clip.logit_scale.exp()) == pytest.approx(100, rel=1e-5)
    # It begins at 1 / 0.07, and 25 steps of at most 3e-3 move it by a factor below 1.1.
    assert 12 < info["learned_logit_scale"] < 17


def test_class_names_need_words_that_captions_have():
    split, test = (
        Split(torch.full((2, 3, 8, 8), grey, dtype=torch.uint8), torch.tensor([0, 1]))
        for grey in (0, 1)
    )
    task = Task("cars", ("red van", "mauve van"), split, split, test)
    check_words(task, ["a photo of the red and the mauve van"])
    with pytest.raises(DataError, match="mauve"):
        check_words(task, ["a photo of the red van"])


# ---- the road ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vision(make_study):
    """A tiny study of two drawn tasks, untrained but for a few steps."""
    tiny = {
        "tasks.names": ["svhn", "dtd"],
        "tasks.pool_per_class": 16,
        "fine_tuning.steps": 4,
        "protocols.ks": [1, 2],
        "merging.lams": [0.3, 1.0],
        "encoder.pretraining": {"documents": 400, "steps": 4, "batch_size": 16, "lr": 2.0e-3},
    }
    return make_study(variant="vision_a", overrides=tiny)


@pytest.mark.filterwarnings("ignore:.*edge of the grid")
def test_only_image_encoders_are_fine_tuned_and_merged(vision):
    for name in vision.tasks:
        frozen = vision.head("f_b", name)
        assert head_digest(vision.expert(name).head) == head_digest(frozen)
        norms = frozen.weight.norm(dim=1)
        assert_close(norms, norms[:1].expand_as(norms))  # one logit scale for all classes
        assert state_digest(vision.expert(name).state) != state_digest(vision.base_state)
    encoders = ["f_t", "f_b", *vision.methods]
    scores = vision.scores(encoders, ["current", "knn", "ft_classifier"])
    assert scores.accuracy.between(0, 100).all() and set(scores.method) == set(encoders)
    for method in vision.methods:
        assert vision.merged_state(method).keys() == vision.base_state.keys()
    z = vision.features(vision.methods[0], "svhn", "test")
    assert_close(z.norm(dim=1), torch.ones(len(z)), rtol=1e-5, atol=0)


def test_f_b_under_current_eval_is_clips_zero_shot(vision):
    settings, tasks = vision.profile, list(vision.tasks.values())
    recipe = Clip(settings, tasks)
    parts = recipe.parts(recipe.make(CPU, vision.store.root / "again"))
    for task in tasks:
        pixels = parts.encoder.collate(task.test.inputs)["pixel_values"]
        with torch.inference_mode():
            # Zero-shot by hand from the library's own outputs: the mean of the prompts' directions,
            # against each image.
            images = F.normalize(
                parts.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1
            )
            rows = []
            for name in task.label_names:
                said = [template.format(name) for template in prompts(task.name)]
                batch = texts_of(parts.tokenize, *said)
                text = parts.model.get_text_features(**batch).pooler_output
                rows.append(F.normalize(F.normalize(text, dim=-1).mean(0), dim=-1))
            logits = parts.model.logit_scale.exp() * images @ torch.stack(rows).T
        ours = vision.head("f_b", task.name).logits(vision.features("f_b", task.name, "test"))
        assert_close(ours, logits, rtol=1e-4, atol=1e-4)


# ---- published folders ---------------------------------------------------------------------------


def letters_tokenizer():
    """CLIP's tokenizer without merges: letters, letters that end a word, and the special tokens
    last, as published."""
    ends = [f"{letter}</w>" for letter in ascii_lowercase]
    pieces = [*ascii_lowercase, *ends, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])


def write_hub_clip(folder):
    """The layout and names of ``openai/clip-vit-base-patch32``: eos id 2 in the config, position
    ids among the weights."""
    torch.manual_seed(5)
    tokenizer = letters_tokenizer()
    model = CLIPModel(small_config(len(tokenizer), pad=1, bos=0, eos=2)).eval()
    model.logit_scale.data.fill_(math.log(100))
    folder.mkdir()
    weights = {n: t.contiguous() for n, t in model.state_dict().items()}
    weights |= {
        "text_model.embeddings.position_ids": torch.arange(40)[None],
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
    }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    model.config.architectures = ["CLIPModel"]
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kind = "CLIPImageProcessor"
    processor = {"image_mean": MEAN, "image_std": STD, "image_processor_type": kind}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "clip-vit-base-patch32"
    return folder, write_hub_clip(folder)


def test_a_published_clip_loads_whole(published, images):
    folder, model = published
    parts = load_clip(str(folder))
    assert state_digest(parts.state) == state_digest(tower_of(model))
    texts = [f"a photo of {n}" for n in NAMES]
    tokens = letters_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**parts.encoder.collate(images), **tokens).logits_per_image
    head = parts.head(NAMES, ["a photo of {}"])
    assert_close(head.weight.norm(dim=1), torch.full((3,), 100.0), rtol=1e-5, atol=0)
    ours = head.logits(extract(parts.encoder, parts.encoder.module(parts.state), images))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    assert parts.encoder.mean == pytest.approx(MEAN)


def test_own_image_tasks_get_zero_shot_heads(published, vision):
    folder, settings = published[0], vision.profile
    rows = [(shade, "ab"[shade % 2]) for shade in range(12)]
    rows = [(np.full((9, 9, 3), s, np.uint8), f"old_{y}_house") for s, y in rows]
    said = ("a photo of an {}", "the {}")
    task = mergelib.image_task("own", rows[:8], rows[8:], size=16, n_validation=2, templates=said)
    profile = settings.model_copy(
        update={"encoder": settings.encoder.model_copy(update={"base": str(folder)})}
    )
    head = Clip(profile, [task]).load().heads["own"]
    wanted = load_clip(str(folder)).head(["old a house", "old b house"], said)
    assert torch.equal(head.weight, wanted.weight) and not torch.equal(*head.weight)
    made = Clip(settings, [*vision.tasks.values()]).make(CPU, vision.store.root / "own")
    with pytest.raises(DataError, match=r"'own'.*words b.* of .*published CLIP.*'vit'"):
        Clip(settings, [task]).open(made)
    known = replace(task, label_names=("red_triangle", "blue_triangle"))
    recipe = Clip(settings, [known])
    wanted = recipe.parts(made).head(["red triangle", "blue triangle"], said)
    assert torch.equal(recipe.open(made).heads["own"].weight, wanted.weight)


def copied(source, target, *without):
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without))


def test_incomplete_folders_are_refused(published, tmp_path):
    folder = published[0]
    with pytest.raises(ConfigError, match="preprocessor_config"):
        load_clip(str(copied(folder, tmp_path / "a", "preprocessor_config.json")))
    weights = load_file(str(folder / "model.safetensors"))
    del weights["text_projection.weight"]
    save_file(weights, str(copied(folder, tmp_path / "b") / "model.safetensors"))
    with pytest.raises(StateDictError, match="text_projection"):
        load_clip(str(tmp_path / "b"))
    CLIPVisionModel(small_config(30).vision_config).save_pretrained(tmp_path / "c")
    with pytest.raises(ConfigError, match="clip_vision_model"):
        load_clip(str(tmp_path / "c"))


def test_half_precision_files_are_computed_in_float32(published, images, tmp_path):
    folder = copied(published[0], tmp_path / "half")
    file = str(folder / "model.safetensors")
    save_file(
        {n: t.half() if t.is_floating_point() else t for n, t in load_file(file).items()}, file
    )
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["vision_config"], config["text_config"]):
        part["dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config))
    parts, full = load_clip(str(folder)), load_clip(str(published[0]))
    assert {t.dtype for t in parts.state.values()} == {torch.float32}
    half, whole = (extract(p.encoder, p.encoder.module(p.state), images) for p in (parts, full))
    assert_close(half, whole, rtol=0, atol=5e-3)
    assert parts.head(NAMES, ["a photo of {}"]).weight.dtype == torch.float32


def test_no_code_of_a_pickle_runs(published, tmp_path):
    folder = copied(published[0], tmp_path / "d", "model.safetensors")
    torch.save({"logit_scale": print}, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match="not run"):
        load_clip(str(folder))
