"""Old piles: files of other people's training scripts become runs that go on."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

import casckpt
from casckpt.errors import BadRequest, Corrupt, FilesLeftOut, PickleRefused
from tests.unit.training.pickles import Evil, dump


@pytest.fixture
def store(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        yield store


# ---- folders


def pile_of_torch(folder, epochs=(5, 10, 15)):
    torch = pytest.importorskip("torch")
    folder.mkdir()
    for epoch in epochs:
        state = {"model": {"w": torch.full((3,), float(epoch))}, "epoch": epoch,
                 "val_loss": 1.0 / epoch, "metrics": {"corr": epoch / 20}}  # fmt: skip
        torch.save(state, folder / f"model_epoch_{epoch}.pth")
    return torch


def test_a_folder_is_one_run_with_steps_from_the_names(store, tmp_path):
    torch = pile_of_torch(tmp_path / "old")
    (tmp_path / "old" / "README.txt").write_text("\x01 what these are")
    made = store.import_files("reg", tmp_path / "old")
    assert [(one.run, one.step) for one in made] == [("reg", 5), ("reg", 10), ("reg", 15)]
    assert store.best("reg", "corr", "max").step == 15
    assert store.get("reg@best:val_loss:min").metrics == {"val_loss": 1 / 15, "corr": 0.75}
    assert torch.equal(store.restore("reg@10")["model"]["w"], torch.full((3,), 10.0))
    assert [one.id for one in store.import_files("reg", tmp_path / "old")] == [
        one.id for one in made
    ]


def test_best_and_latest_are_tags_of_what_they_equal(store, tmp_path):
    pile_of_torch(tmp_path / "old")
    old = tmp_path / "old"
    (old / "model_latest.pth").write_bytes((old / "model_epoch_15.pth").read_bytes())
    (old / "model_best.pth").write_bytes((old / "model_epoch_10.pth").read_bytes())
    store.import_files("reg", old)
    assert store.get("reg@imported-latest").step == 15
    assert store.get("reg@imported-best").step == 10
    assert [one.name for one in store.runs()] == ["reg"]


def test_a_best_at_a_step_of_its_own_takes_its_place(store, tmp_path):
    torch = pile_of_torch(tmp_path / "old")
    old = tmp_path / "old"
    torch.save({"model": {"w": torch.ones(3)}, "epoch": 12}, old / "model_best.pth")
    torch.save({"model": {"w": torch.zeros(3)}, "epoch": 15}, old / "model_latest.pth")
    made = store.import_files("reg", old)
    assert [(one.run, one.step) for one in made] == [
        ("reg", 5), ("reg", 10), ("reg", 12), ("reg", 15), ("reg/latest", 0)
    ]  # fmt: skip
    assert store.get("reg@imported-best").step == 12


def test_a_run_goes_on_from_an_imported_pile(store, tmp_path):
    torch = pile_of_torch(tmp_path / "old")
    store.import_files("reg", tmp_path / "old")
    state = {"model": {"w": torch.zeros(3)}, "epoch": 0, "val_loss": 0.0, "metrics": {"corr": 0.0}}
    with store.run("reg", resume="must") as run:
        epochs = []
        for epoch in run.epochs(17, state):
            epochs.append(epoch)
            state["model"]["w"] += 1
    assert epochs == [16, 17]
    assert store.restore("reg@17")["model"]["w"].tolist() == [17.0] * 3


def test_several_things_in_one_folder_are_several_runs(store, tmp_path):
    old = tmp_path / "old"
    (old / "fold_1").mkdir(parents=True)
    for step in (20, 40):
        np.savez(old / f"nn_epoch{step}.npz", w=np.full(2, step))
        np.savez(old / f"head-{step}.npz", w=np.full(2, -step))
        np.savez(old / "fold_1" / f"{step}.npz", w=np.full(2, step / 2))
    made = store.import_files("bpm", old)
    assert {(one.run, one.step) for one in made} == {
        (f"bpm/{name}", step) for name in ("nn", "head", "fold_1") for step in (20, 40)
    }


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("model_epoch_5", 5), ("checkpoint-1200", 1200), ("epoch=12-step=340", 340),
        ("xgb_100_trees", 100), ("nn_epoch20_loss_0.123", 20), ("v2_epoch7", 7), ("best", None),
        ("model_0.95", None), ("resnet50_ep003_epoch_3", 3), ("100", 100), ("trial_7", 7),
    ],
)  # fmt: skip
def test_numbers_in_names(name, step):
    from casckpt.checkpoint.exchange.piles import step_of

    assert step_of(name) == step


def test_what_cannot_be_imported_is_left_out_and_named(store, tmp_path):
    old = tmp_path / "old"
    trainer_folder(old / "bart", 500, {})
    (trainer_folder(old / "bart", 1000, {}) / "trainer_state.json").write_text("{")
    for epoch in (5, 10, 15, 20):
        np.savez(old / f"model_epoch_{epoch}.npz", w=np.full(2, epoch))
    cut = (old / "model_epoch_10.npz").read_bytes()[:-30]
    (old / "model_epoch_10.npz").write_bytes(cut)
    dump(old / "model_epoch_12.pkl", Evil())
    (old / "model_epoch_20.npz").unlink()
    (old / "model_epoch_20.npz").symlink_to("nowhere.npz")
    (old / "model_epoch_30.pth").touch()
    (old / "model_epoch_31.pkl").write_bytes(bytes(3000))
    (old / "model_epoch_32.safetensors").write_bytes(b"\x05")
    (old / "notes_5.bin").touch()
    with zipfile.ZipFile(old / "table.zip", "w") as archive:
        archive.writestr("table.csv", "no checkpoint at all")
    with pytest.raises(FilesLeftOut) as caught:
        store.import_files("reg", old)
    error = caught.value
    there = [("reg/bart", 500), ("reg/model", 5), ("reg/model", 15)]
    assert [(one.run, one.step) for one in error.checkpoints] == there
    assert {path.name: type(one) for path, one in error.left_out} == {
        "model_epoch_10.npz": Corrupt,
        "model_epoch_12.pkl": PickleRefused,
        "checkpoint-1000": Corrupt,
        "model_epoch_30.pth": Corrupt,
        "model_epoch_31.pkl": Corrupt,
        "model_epoch_32.safetensors": Corrupt,
    }
    assert error.what == "6 files were left out of the import into reg"
    assert "model_epoch_12.pkl: it names posix.system (" in error.why
    np.savez(old / "model_epoch_7.npz", w=np.full(2, 7))  # smaller than what is there
    with pytest.raises(FilesLeftOut, match=r"model_epoch_7\.npz: ") as caught:
        store.import_files("reg", old)
    assert [(one.run, one.step) for one in caught.value.checkpoints] == there


def test_files_named_one_by_one_come_in_but_for_the_refused(store, tmp_path):
    names = [tmp_path / f"epoch_{epoch}.pkl" for epoch in (1, 2, 3)]
    for path in names:
        dump(path, {"w": 1.5})
    dump(names[1], Evil())
    with pytest.raises(FilesLeftOut, match=r"a file was left out.*\n.*epoch_2.pkl: it names"):
        store.import_files("r", *names)
    assert [one.step for one in store.checkpoints("r")] == [1, 3]


def test_a_folder_without_checkpoints_is_an_error(store, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("# nothing")
    with pytest.raises(BadRequest, match="no file"):
        store.import_files("r", tmp_path / "empty")


def test_progress_files_are_plain_values(store, tmp_path):
    progress = {"epoch": 15, "best_score": 0.81, "done": ["a", "b"], "history": [1.5, 1.2]}
    (tmp_path / "checkpoint.json").write_text(json.dumps(progress))
    (made,) = store.import_files("nas", tmp_path / "checkpoint.json")
    assert (made.step, made.metrics) == (15, {"best_score": 0.81})
    assert store.restore("nas") == progress


# ---- folders of a Trainer


def trainer_folder(home, step, losses, best=None, optimizer=None):
    torch = pytest.importorskip("torch")
    folder = home / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    history = [{"step": at, "epoch": at / 10, "loss": loss} for at, loss in losses.items()]
    history.append({"step": step, "eval_loss": float("inf"), "note": "text"})
    state = {"global_step": step, "log_history": history, "best_model_checkpoint": best}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    torch.save({"w": torch.full((3,), float(step))}, folder / "pytorch_model.bin")
    torch.save({"state": {}} if optimizer is None else optimizer, folder / "optimizer.pt")
    torch.save(Evil(), folder / "training_args.bin")
    return folder


def test_folders_of_a_trainer_are_one_run_of_files(store, tmp_path):
    out = tmp_path / "out"
    trainer_folder(out, 500, {500: 2.0}, "out/checkpoint-500")
    trainer_folder(out, 1000, {500: 2.0, 1000: 2.5}, "/elsewhere/out/checkpoint-500")
    for name in ("config.json", "trainer_state.json", "training_args.bin"):
        (out / name).write_bytes((out / "checkpoint-500" / "trainer_state.json").read_bytes())
    (out / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    made = store.import_files("bart", out)
    assert [(one.run, one.step) for one in made] == [
        ("bart", 500),
        ("bart", 1000),
        ("bart/final", 0),
    ]
    assert store.get("bart@imported-best").step == 500
    assert store.get("bart").metrics == {"loss": 2.5, "eval_loss": float("inf")}
    assert store.best("bart", "loss", "min").step == 500
    store.restore_files("bart@1000", tmp_path / "back")
    for file in (out / "checkpoint-1000").iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()
    assert [one.id for one in store.import_files("bart", out)] == [one.id for one in made]


def test_folders_of_a_trainer_may_be_named_one_by_one(store, tmp_path):
    folders = [trainer_folder(tmp_path / name, step, {}) for name, step in (("a", 30), ("b", 4))]
    made = store.import_files("bart", *folders)
    assert [one.step for one in made] == [4, 30]
    renamed = folders[0].rename(tmp_path / "bart-v2")
    assert store.import_files("other", renamed)[0].step == 30


def test_a_trainers_folder_that_would_run_code_or_says_nothing_is_refused(store, tmp_path):
    folder = trainer_folder(tmp_path / "evil", 5, {}, optimizer={"state": Evil()})
    with pytest.raises(PickleRefused, match="system"):
        store.import_files("r", folder)
    folder = trainer_folder(tmp_path / "broken", 5, {})
    for text in ("{", "[]", '{"global_step": -1, "log_history": []}', '{"global_step": 5}'):
        (folder / "trainer_state.json").write_text(text)
        with pytest.raises(Corrupt, match="no state of a Trainer"):
            store.import_files("r", folder)
    assert store.runs() == []
