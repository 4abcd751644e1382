"""The ViT of real images: its pre-training sees no label, its views are views, its contrast is
NT-Xent."""

from dataclasses import replace

import pytest
import torch
from near import equal, normal, seeded

from mergelib.core.errors import ConfigError
from mergelib.core.types import Split, Task
from mergelib.encoders import ImageEncoder, encoder_state
from mergelib.encoders.features import extract
from mergelib.foundations import vit
from mergelib.profiles import load_profile
from mergelib.training.config import TrainConfig

CPU = torch.device("cpu")
SIZE, CLASSES, WIDTH = 16, 4, 32


def recipe(tasks=(), **changes):
    shape = {"image_size": SIZE, "width": WIDTH, "layers": 2, "heads": 2}
    shape |= {"pretraining.steps": 2, "pretraining.batch_size": 16} | changes
    overrides = {f"encoder.{n}": value for n, value in shape.items()}
    return vit.Vit(load_profile("real", {"threads": 1} | overrides, "vision_b"), tasks)


def tiny():
    return ImageEncoder(vit.vit_config(recipe().shape), "tiny")


def gratings(n, seed):
    """Stripes of one of four directions, with random phase, pitch, colours and noise: class and
    mean colour are independent."""
    generator = seeded(seed)
    labels = torch.arange(n) % CLASSES
    angle = (labels * torch.pi / CLASSES)[:, None, None]
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    pitch = 1.2 + 0.6 * torch.rand(n, 1, 1, generator=generator)
    phase = 6.3 * torch.rand(n, 1, 1, generator=generator)
    wave = torch.sin(pitch * (x * angle.cos() + y * angle.sin()) + phase)
    first, second = torch.rand(2, n, 3, 1, 1, generator=generator)
    pixels = torch.lerp(second, first, (wave[:, None] + 1) / 2)
    pixels += 0.05 * torch.randn(pixels.shape, generator=generator)
    return (255 * pixels.clamp(0, 1)).to(torch.uint8), labels


def pretrain(tmp_path, images, steps=3, save_every=0, seed=0):
    torch.manual_seed(seed)  # whatever ran before must not matter
    config = TrainConfig(steps, batch_size=64, lr=2e-3, threads=1, save_every=save_every)
    return vit.pretrain_vit(tiny(), images, config, device=CPU, scratch=tmp_path, desc="t")[0]


def test_the_contrast_is_nt_xent():
    """Chen et al.'s equation 1, written out pair by pair."""
    first, second = normal(2, 5, 8)
    z = [v / v.norm() for v in [*first, *second]]
    total = 0.0
    for i in range(10):
        earned = [torch.exp(z[i] @ z[k] / 0.3) for k in range(10) if k != i]
        total -= torch.log(torch.exp(z[i] @ z[(i + 5) % 10] / 0.3) / sum(earned))
    for pair in ((first, second), (7 * first, second / 9)):  # lengths do not count
        assert torch.allclose(vit.contrast(*pair, 0.3), total / 10, atol=1e-5)


def test_all_patches_kept_are_the_encoders_own_features():
    """Independent reference: the ViT's forward behind ``ImageEncoder``; the order of patches makes
    no difference to their mean."""
    encoder, (images, _) = tiny(), gratings(6, 0)
    module = encoder.module()
    pixels = encoder.collate(images)["pixel_values"]
    transformer = module.transformer
    with torch.no_grad():
        assert torch.allclose(vit.encode_part(transformer, pixels, 1), module(pixels), atol=1e-5)
        torch.manual_seed(0)
        some = [vit.encode_part(transformer, pixels, 0.5) for _ in range(2)]
    assert some[0].shape == (6, WIDTH) and not torch.allclose(some[0], some[1], atol=1e-4)


def test_patches_left_out_do_not_reach_the_features():
    encoder, (images, _) = tiny(), gratings(3, 0)
    module, pixels = encoder.module().transformer, encoder.collate(images)["pixel_values"]
    with torch.no_grad():
        features = []
        for noise in (0.0, 1.0):
            # With one of 16 patches kept, most changes of a single patch must leave most features
            # as they are.
            changed = pixels.clone()
            changed[:, :, :4, :4] += noise
            torch.manual_seed(4)
            features.append(
                torch.stack([vit.encode_part(module, changed, 1 / 16) for _ in range(20)])
            )
    same = (features[0] == features[1]).all(-1).float().mean()
    assert 0.7 < same < 1


def test_views_differ_per_image_and_keep_what_they_show():
    torch.manual_seed(0)
    flat = torch.linspace(-0.8, 0.8, 8)[:, None, None, None].expand(8, 3, SIZE, SIZE).contiguous()
    view = vit.random_views(flat)
    assert view.shape == flat.shape and view.flatten(2).std(-1).max() < 1e-5, (
        "a flat image has flat views"
    )
    image = torch.rand(1, 3, SIZE, SIZE).expand(64, -1, -1, -1).contiguous() * 2 - 1
    views = vit.random_views(image)
    assert views.isfinite().all() and (views[0] - views[1]).abs().max() > 0.1
    grey = (views.std(1).amax((1, 2)) < 1e-5).float().mean()
    assert 0.05 < grey < 0.4


def test_no_view_is_mirrored():
    """A ramp from left to right still rises from left to right, and one from top to bottom falls
    nowhere."""
    torch.manual_seed(1)
    ramp = torch.linspace(-1, 1, SIZE).expand(64, 3, SIZE, SIZE).contiguous()
    for image, axis in ((ramp, -1), (ramp.mT.contiguous(), -2)):
        view = vit.random_views(image)
        step = view.narrow(axis, SIZE - 2, 1) - view.narrow(axis, 1, 1)
        assert (step > 0).all()


def test_pre_training_repeats_whatever_ran_before_and_depends_on_the_images(tmp_path):
    images, _ = gratings(96, 0)
    one, two = pretrain(tmp_path / "a", images), pretrain(tmp_path / "b", images, seed=9)
    assert equal(one, two)
    other = pretrain(tmp_path / "c", gratings(96, 1)[0])
    assert not equal(one, other)
    assert one.keys() == encoder_state(tiny().module()).keys(), (
        "no projection and no position beyond the encoder's own"
    )


def test_an_interrupted_run_draws_the_views_of_the_whole_one(tmp_path, monkeypatch):
    images, _ = gratings(96, 0)
    whole = pretrain(tmp_path / "whole", images, steps=6, save_every=3)
    calls = []
    real = vit.contrast

    def stop_in_the_fifth_step(*args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(vit, "contrast", stop_in_the_fifth_step)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path / "cut", images, steps=6, save_every=3)
    monkeypatch.setattr(vit, "contrast", real)
    resumed = pretrain(tmp_path / "cut", images, steps=6, save_every=3, seed=5)
    assert all(torch.allclose(whole[k], resumed[k], atol=1e-6) for k in whole)


@pytest.fixture(scope="module")
def tasks():
    def splits(t):
        return [Split(*gratings(40, 10 * t + s)) for s in range(3)]

    return [Task(f"task{t}", tuple("abcd"), *splits(t), modality="image") for t in range(2)]


def test_the_key_holds_training_images_and_shape_but_no_label(tasks):
    def changed(change):
        return recipe([replace(t, **change(t)) for t in tasks]).key()

    key = recipe(tasks).key()

    def relabelled(t):
        return {"train": Split(t.train.inputs, (t.train.labels + 1) % CLASSES)}

    assert changed(relabelled) == key
    assert changed(lambda t: {"test": t.validation, "validation": t.test}) == key
    assert changed(lambda t: {"train": t.validation, "validation": t.train}) != key
    assert recipe(tasks[:1]).key() != key != recipe(tasks, patch_size=8).key()


def test_the_recipe_makes_a_foundation_with_trained_heads_to_come(tasks, tmp_path):
    made = recipe(tasks).make(CPU, tmp_path)
    foundation = recipe(tasks).open(made)
    encoder = foundation.encoder
    assert foundation.heads is None and encoder.width == WIDTH
    features = extract(encoder, encoder.module(foundation.state), tasks[0].test.inputs)
    assert features.shape == (40, WIDTH) and features.isfinite().all()


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"patch_size": 5}, "patches of 5"),
        ({"heads": 5}, "5 heads"),
        ({"base": "some/vit"}, "leave the base model out"),
    ],
)
def test_what_no_vit_can_be_is_refused_with_the_remedy(changes, says):
    with pytest.raises(ConfigError, match=says):
        recipe(**changes).load() if "base" in changes else recipe(**changes).key()
