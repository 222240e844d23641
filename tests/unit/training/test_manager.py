"""The managers by their old names: what hand-written piles did, on a store."""

from __future__ import annotations

import numpy as np
import pytest

from casckpt.errors import BadRequest
from casckpt.training.manager import (
    CheckpointManager,
    KFoldCheckpointManager,
    OptunaCheckpointManager,
    TrainingResumer,
)


@pytest.fixture
def manager(tmp_path):
    with CheckpointManager(tmp_path / "store", "nn") as manager:
        yield manager


def fill(manager, algorithm=None, steps=(20, 40, 60)):
    for step in steps:
        manager.save_checkpoint(
            {"w": np.full(4, step)}, step, metrics={"val_loss": 1 / step}, algorithm=algorithm
        )


def test_nothing_is_none_and_no_error(manager, tmp_path):
    assert manager.load_checkpoint() is None
    assert manager.load_checkpoint(20) is None
    assert manager.get_latest_checkpoint() is None
    assert manager.get_best_checkpoint("val_loss", "min") is None
    assert manager.get_history() == {}
    assert manager.cleanup_old_checkpoints(3) == 0
    assert manager.get_progress(100) == {"completed": 0, "total": 100, "ratio": 0.0}
    assert not TrainingResumer(manager).can_resume()
    assert not TrainingResumer(tmp_path / "nowhere").can_resume()


def test_save_load_best_latest_per_algorithm(manager, tmp_path):
    fill(manager)
    fill(manager, "xgboost", (100, 200))
    assert manager.load_checkpoint()["w"][0] == 60
    assert manager.load_checkpoint(20)["w"][0] == 20
    assert manager.load_checkpoint("best:val_loss:max")["w"][0] == 20
    assert manager.load_checkpoint(algorithm="xgboost")["w"][0] == 200
    assert manager.load_checkpoint("xgboost@100")["w"][0] == 100
    assert manager.get_latest_checkpoint("xgboost").step == 200
    assert manager.get_best_checkpoint("val_loss", "min").step == 60
    assert [one.step for one in manager.list_checkpoints()] == [20, 40, 60]
    assert manager.get_history("xgboost")["val_loss"] == [(100, 0.01), (200, 0.005)]
    assert manager.format_progress_bar(120, 10) == "#####-----"
    assert manager.get_checkpoint_size() > 0
    resumer = TrainingResumer(manager)
    assert resumer.can_resume()
    assert resumer.can_resume("xgboost")
    assert not resumer.can_resume("other")
    manager.close()
    assert TrainingResumer(tmp_path / "store").can_resume("nn")


def test_clean_up_by_count_and_age_together(manager):
    fill(manager, steps=(1, 2, 3, 4, 5))
    with pytest.raises(BadRequest):
        manager.cleanup_old_checkpoints()
    assert manager.cleanup_old_checkpoints(keep_last_n=3, max_age_days=7) == 2
    assert [one.step for one in manager.list_checkpoints()] == [3, 4, 5]
    assert manager.cleanup_old_checkpoints(3, max_age_days=1e-9) == 2
    assert [one.step for one in manager.list_checkpoints()] == [5]


def test_a_damaged_newest_one_is_passed_over(manager, tmp_path):
    rng = np.random.default_rng(0)
    for step in (1, 2):
        manager.save_checkpoint({"w": rng.normal(size=50_000)}, step)
    before = manager.load_checkpoint(1)
    manager.close()
    packs = [file for file in (tmp_path / "store" / "packs").rglob("*") if file.is_file()]
    pack = max(packs, key=lambda file: file.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) * 3 // 4] ^= 0xFF
    pack.write_bytes(data)
    with CheckpointManager(tmp_path / "store", "nn") as again:
        assert again.load_checkpoint(2) is None
        assert (again.load_checkpoint()["w"] == before["w"]).all()


def test_folds_and_their_progress(tmp_path):
    with KFoldCheckpointManager(tmp_path / "store", 5) as manager:
        assert manager.load_fold(1) is None
        manager.save_fold(1, {"w": [1.0]}, metrics={"f1": 0.5})
        manager.save_fold(3, {"w": [3.0]}, metrics={"f1": 0.7})
        assert manager.load_fold(3) == {"w": [3.0]}
        assert manager.completed_folds() == {1: {"f1": 0.5}, 3: {"f1": 0.7}}
        assert manager.get_progress() == {"completed": 2, "total": 5, "ratio": 0.4}
        with pytest.raises(BadRequest):
            manager.save_fold(6, {})


def test_studies(tmp_path):
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), 3)
    with OptunaCheckpointManager(tmp_path / "store", "search") as manager:
        assert manager.load_study() is None
        assert manager.save_study(study).step == 3
        assert [t.params for t in manager.load_study().trials] == [t.params for t in study.trials]


def test_levels_of_compression(manager):
    assert manager.compress_checkpoint("fast") == 0
    rng = np.random.default_rng(0)
    weights = rng.normal(size=100_000).astype("float32")
    made = []
    for step in range(6):
        weights = weights + rng.normal(size=weights.size).astype("float32") * 1e-4
        made.append(weights)
        manager.save_checkpoint({"w": weights}, step)
    before = manager.store.stats("nn").stored_bytes
    manager.compress_checkpoint("small")
    assert manager.store.stats("nn").stored_bytes < 0.75 * before
    for step, value in enumerate(made):
        assert (manager.load_checkpoint(step)["w"] == value).all()
    with pytest.raises(BadRequest):
        manager.compress_checkpoint("tiny")
