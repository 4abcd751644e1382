"""Training: resumes to the same bytes, depends on nothing that ran before, and refuses to hand out
weights that diverged."""

from itertools import chain, islice

import pytest
import torch
from near import normal, seeded
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.utils import parameters_to_vector
from toy import CONFIG, ROWS, Toy, collate, run

from mergelib.training.config import TrainConfig, resolve_precision
from mergelib.training.experts import linear_probe
from mergelib.training.loop import checkpoints, shuffled_batches


def test_the_loop_is_that_of_the_trainer_of_transformers(tmp_path):
    """Another implementation, which made the weights that are stored and shipped: equal bytes."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=CONFIG.steps,
        per_device_train_batch_size=CONFIG.batch_size,
        learning_rate=CONFIG.lr,
        warmup_steps=1,  # a tenth of 12
        seed=CONFIG.seed,
        data_seed=CONFIG.seed,
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    model = Toy()
    trainer = Trainer(model, arguments, train_dataset=ROWS, data_collator=collate)
    trainer.train()
    weights, info = run(tmp_path / "ours")
    assert torch.equal(weights, parameters_to_vector(model.parameters()))
    assert info["last_loss"] == round(trainer.state.log_history[-2]["loss"], 4)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one(monkeypatch, processes):
    config, n = TrainConfig(steps=1, batch_size=8, lr=1.0), 19
    alone = list(islice(shuffled_batches(n, config, 0), 6))
    assert [len(rows) for rows in alone] == [8, 8, 3] * 2 and alone[:3] != alone[3:]
    assert sorted(chain(*alone[:3])) == sorted(chain(*alone[3:])) == list(range(n))
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    shares = []
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        shares.append([next(shuffled_batches(n, config, step)) for step in range(6)])
    for step, rows in enumerate(alone):
        filled = rows + alone[step // 3 * 3][: 8 - len(rows)]
        assert list(chain(*(share[step] for share in shares))) == filled


@pytest.mark.parametrize("stop", [8, 11])  # in the first epoch of ten batches, and in the second
def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path, stop):
    undisturbed, info = run(tmp_path / "a")
    batches = 0

    def interrupted(rows):
        nonlocal batches
        batches += 1
        if batches > stop:
            raise KeyboardInterrupt
        return collate(rows)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", interrupted)
    assert len(checkpoints(tmp_path / "b")) == stop // 5
    resumed, same_info = run(tmp_path / "b")
    assert torch.equal(resumed, undisturbed) and same_info == info


def test_global_random_state_does_not_matter(tmp_path):
    first, _ = run(tmp_path / "a")
    torch.manual_seed(99)
    torch.randn(1000)
    assert torch.equal(run(tmp_path / "b")[0], first)


@pytest.mark.parametrize("damage", [lambda b: b"not weights", lambda b: b[:-9], lambda b: b""])
def test_a_damaged_checkpoint_is_removed_and_said(tmp_path, damage):
    undisturbed, _ = run(tmp_path)
    _, newest = checkpoints(tmp_path)  # of three, the two newest are kept
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged"):
        resumed, _ = run(tmp_path)
    assert torch.equal(resumed, undisturbed)


def test_auto_precision_is_bf16_only_where_the_device_has_it(monkeypatch):
    from mergelib.profiles import load_profile

    cpu = torch.device("cpu")
    for amx, allowed, wanted in (
        (True, "AVX512", "bf16"),
        (True, "AVX2", "float32"),
        (False, "AVX512", "float32"),
    ):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=allowed: name)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert resolve_precision("auto", cpu) == wanted
        profile = load_profile("real")
        assert (
            profile.train_config(profile.fine_tuning, cpu).precision == wanted
        )  # what the store's key holds
    assert resolve_precision("auto", torch.device("mps")) == "float32"
    assert resolve_precision("bf16", cpu) == "bf16"


@pytest.mark.parametrize("classes", [2, 5])
def test_a_linear_probe_is_logistic_regression_on_standardised_features(classes):
    labels = torch.randint(classes, (400,), generator=seeded(1))
    z = (normal(400, 6) + normal(classes, 6, seed=2)[labels]) * 10.0 ** torch.arange(-3, 3) + 7
    wanted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(z, labels)
    found = linear_probe(z, labels).logits(z).softmax(-1)
    expected = torch.from_numpy(wanted.predict_proba(z)).float()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
