"""Commands that change a store: names, trash, gc, files in and out, repair."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time

import numpy as np
import pytest

import casckpt
from casckpt.checkpoint.curation import Curation
from casckpt.cli import root


def refs(cli, *words):
    document = json.loads(cli("ls", *words, "--json").out)
    return [checkpoint["ref"] for checkpoint in document["checkpoints"]]


def test_init_and_the_nearest_store_upward(own_cli, tmp_path):
    deep = tmp_path / "project" / "deep"
    deep.mkdir(parents=True)
    own_cli.folder = tmp_path / "project"
    assert own_cli("init", CASCKPT_STORE="").code == 0
    assert (tmp_path / "project" / ".casckpt" / "format.json").exists()
    own_cli.folder = deep
    answer = own_cli("ls", CASCKPT_STORE="")
    assert answer.code == 0
    assert answer.err == "No checkpoints yet.\n"
    again = own_cli("init", str(tmp_path / "project" / ".casckpt"))
    assert again.code == 2


def test_the_way_out_of_no_store_works(new_cli, tmp_path):
    (tmp_path / "full of things").mkdir()
    (tmp_path / "full of things" / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("full of things", "empty", "not there"):
        answer = new_cli("--store", tmp_path / name, "ls")
        assert answer.code == 10
        words = shlex.split(answer.err.split("`")[1])
        assert words[:2] == ["casckpt", "init"]
        assert new_cli(*words[1:]).code == 0
        assert new_cli("--store", tmp_path / name, "ls").code == 0
    answer = new_cli("--store", tmp_path / "full of things" / "notes.txt", "ls")
    assert answer.code == 10
    assert "it is no folder" in answer.err
    assert "init" not in answer.err


def test_what_ls_adds_up_is_right_where_more_was_written_than_there_is(new_cli):
    with casckpt.open(new_cli.store) as store:
        store.save("r", {"v": 1}, 1)
    answer = new_cli("ls")
    assert re.fullmatch(
        r"1 checkpoint\. .* logical, .* new when saved\. `casckpt du` shows the disk\.\n",
        answer.err,
    )


def test_an_import_names_a_checkpoint_once(new_cli, tmp_path):
    pile = tmp_path / "pile"
    pile.mkdir()
    for name in ("model_epoch_11", "model_epoch_12", "model_best", "model_latest"):
        value = 11.0 if name.endswith("11") else 12.0
        np.savez(pile / f"{name}.npz", w=np.full(1000, value))
    new_cli("init", new_cli.store)
    for words in ([], ["-q"]):
        answer = new_cli("import", pile, "--run", "net", *words)
        assert answer.code == 0, answer.err
        lines = answer.out.splitlines()
        assert len(lines) == len(set(lines)) == 2
    checkpoints = json.loads(new_cli("import", pile, "--run", "net", "--json").out)["checkpoints"]
    assert [one["step"] for one in checkpoints] == [11, 12]


def test_what_matches_nothing_is_named(own_cli):
    answer = own_cli("ls", "zz*")
    assert (answer.code, answer.err) == (0, "No checkpoint of zz*.\n")
    assert own_cli("ls", "zz*", "--trash").err == "No checkpoint of zz* in the trash.\n"
    answer = own_cli("rm", "zz", "--yes")
    assert answer.code == 12
    assert [line.split(":")[0].strip() for line in answer.err.splitlines()] == [
        "casckpt",
        "why",
        "try",
    ]


@pytest.mark.parametrize("command", ["tree", "du", "stats"])
def test_a_run_that_is_not_there_is_no_empty_store(cli, command):
    answer = cli(command, "bpm/nm")
    assert (answer.code, answer.out) == (12, "")
    assert "no run bpm/nm" in answer.err
    assert "did you mean bpm/nn?" in answer.err
    answer = cli(command, "ty*")
    assert answer.code == 12
    assert "no run matches ty*" in answer.err
    assert cli(command, "bpm/*").code == 0


def test_tree_counts_as_people_do(new_cli):
    with casckpt.open(new_cli.store) as store:
        for number in (10, 2, 1):
            store.save(f"search/trial-{number}", {"v": number}, 1)
    shown = new_cli("tree", "-q").out.split()
    assert shown == [f"search/trial-{number}~0" for number in (1, 2, 10)]
    new_cli("rm", "search/*", "--yes")
    assert new_cli("tree").code == new_cli("du").code == 0


def test_tag_untag_pin_unpin(own_cli):
    assert own_cli("tag", "bpm/nn@30", "a", "b").out == "bpm/nn@30  tags: a, b\n"
    assert refs(own_cli, "--tag", "a") == ["bpm/nn@30"]
    assert own_cli("untag", "bpm/nn@a", "a").out == "bpm/nn@30  tags: b\n"
    for words in (["bpm/nn@40", "b"], ["bpm/nn", "b"], ["bpm/nn@30", "b", "c"]):
        missing = own_cli("untag", *words)
        assert missing.code == 12
        assert f"has no tag {words[-1]}" in missing.err
    assert refs(own_cli, "--tag", "b") == ["bpm/nn@30"]
    assert own_cli("pin", "bpm/nn@30", "bpm/nn@40").out.count("pinned") == 2
    document = json.loads(own_cli("unpin", "bpm/nn@30", "--json").out)
    assert document["checkpoints"][0]["pinned"] is False
    assert own_cli("tag", "bpm/nn@30", "latest").code == 2


def test_a_mistyped_ref_among_several_changes_nothing(own_cli):
    assert own_cli("pin", "bpm/nn@30", "bpm/nn@31").code == 12
    document = json.loads(own_cli("show", "bpm/nn@30", "--json").out)
    assert document["checkpoint"]["pinned"] is False


def test_undelete_of_several_looks_at_all_names_first(own_cli):
    own_cli("rm", "bpm/nn", "--yes")
    mistyped = own_cli("undelete", "bpm/nn@10", "bpm/nn@11")
    assert (mistyped.code, mistyped.out) == (12, "")
    assert not [ref for ref in refs(own_cli) if ref.startswith("bpm/nn")]
    both = own_cli("undelete", "bpm/nn@10", "bpm/nn@20", "bpm/nn@10")
    assert (both.code, both.out) == (0, "bpm/nn@10  is back\nbpm/nn@20  is back\n")
    # What is refused after another came back does not keep that from being told.
    with casckpt.open(own_cli.store) as store:
        store.save("bpm/nn", {"epoch": 7}, 40)
    taken = own_cli("undelete", "bpm/nn@30", "bpm/nn@40", "--json")
    assert taken.code == 2
    assert "StepExists" in taken.err
    assert [one["ref"] for one in json.loads(taken.out)["checkpoints"]] == ["bpm/nn@30"]
    assert refs(own_cli, "bpm/nn") == [f"bpm/nn@{step}" for step in (10, 20, 30, 40)]


def test_rm_and_undelete(own_cli):
    assert own_cli("rm", "bpm/nn@30").code == 0
    assert "bpm/nn@30" not in refs(own_cli)
    assert refs(own_cli, "--trash") == ["bpm/nn@30"]
    assert own_cli("undelete", "bpm/nn@30").out == "bpm/nn@30  is back\n"
    assert "bpm/nn@30" in refs(own_cli)


def test_rm_of_a_run_needs_a_yes_and_leaves_other_runs(own_cli):
    assert own_cli("rm", "bpm/nn").code == 2
    assert len(refs(own_cli, "bpm/nn")) == 6
    assert own_cli("rm", "bpm/nn", "--yes").code == 0
    assert refs(own_cli) == ["bpm/xgboost@100", "bpm/xgboost@200"]


def test_all_that_comes_back_of_a_run_is_named(own_cli):
    gone = own_cli("rm", "bpm/nn", "--yes")
    assert "`casckpt undelete bpm/nn` brings all of it back, for at least an hour" in gone.err
    back = own_cli("undelete", "bpm/nn")
    assert back.out.splitlines() == [f"bpm/nn@{10 * epoch}  is back" for epoch in range(1, 7)]
    own_cli("unpin", "bpm/xgboost@100")
    own_cli("rm", "bpm/*", "--yes")
    document = json.loads(own_cli("undelete", "bpm/nn", "--json").out)
    assert len(document["checkpoints"]) == 6
    assert own_cli("undelete", "bpm/xgboost", "-q").out.count("id:") == 2
    assert "RUN" in own_cli("undelete", "--help").out


def test_rm_of_a_line_of_each_run_that_matches(own_cli):
    own_cli("unpin", "bpm/xgboost@100")
    gone = own_cli("rm", "bpm/*~0", "--yes")
    assert "`casckpt undelete bpm/nn~0 bpm/xgboost~0` brings all" in gone.err
    assert refs(own_cli) == []
    own_cli("undelete", "bpm/nn~0")
    assert len(refs(own_cli)) == 6
    assert own_cli("rm", "bpm/*~1", "--yes").code == 12
    assert own_cli("rm", "bpm/*~x", "--yes").code == 2
    assert len(refs(own_cli)) == 6


def test_gc_with_nobody_to_ask_changes_nothing(own_cli):
    answer = own_cli("gc", "--keep-last", "1", stdin="y\n")
    assert answer.code == 2
    assert "--yes" in answer.err
    assert own_cli("gc", "--keep-last", "1", "--json").code == 2
    assert len(refs(own_cli)) == 8


def test_gc_moves_to_the_trash_and_now_frees(own_cli):
    plan = json.loads(own_cli("gc", "--keep-last", "1", "-n", "--json").out)
    assert plan["dry_run"] is True
    assert len(refs(own_cli)) == 8
    done = json.loads(own_cli("gc", "--keep-last", "1", "--yes", "--json").out)
    assert done["drop"] == plan["drop"]
    assert done["dry_run"] is False
    kept = ["bpm/nn@20", "bpm/nn@60", "bpm/xgboost@100", "bpm/xgboost@200"]
    assert refs(own_cli) == kept
    assert refs(own_cli, "--trash") == ["bpm/nn@10", "bpm/nn@30", "bpm/nn@40", "bpm/nn@50"]
    assert own_cli("gc", "--now", "--yes").code == 0
    assert refs(own_cli, "--trash") == []
    assert own_cli("verify").code == 0
    assert refs(own_cli) == kept
    # What those alone had was a tenth of a pack, which is not worth a copy of the rest.
    assert own_cli("rm", "bpm/nn", "--yes").code == 0
    assert json.loads(own_cli("gc", "--now", "--yes", "--json").out)["freed_bytes"] > 100_000
    assert refs(own_cli) == ["bpm/xgboost@100", "bpm/xgboost@200"]


@pytest.mark.parametrize("words", [("--json",), ("-q",), ()])
def test_gc_tells_what_it_did_not_what_it_planned(own_cli, monkeypatch, capsys, words):
    real = Curation.plan_gc

    def planned_then_pinned(store, *args, **options):
        plan = real(store, *args, **options)
        with casckpt.open(own_cli.store) as other:
            other.pin(plan.drop[0])
        return plan

    monkeypatch.setattr(Curation, "plan_gc", planned_then_pinned)
    assert root.run(["gc", "bpm/nn", "--keep-last", "1", "--yes", "--store",
                     str(own_cli.store), *words]) == 0  # fmt: skip
    out = capsys.readouterr().out
    with casckpt.open(own_cli.store) as store:
        moved = [one.id for one in store.checkpoints(trash=True)]
    assert len(moved) == 3
    if words == ("--json",):
        assert [one["id"] for one in json.loads(out)["drop"]] == moved
    elif words == ("-q",):
        assert out.split() == [f"id:{one}" for one in moved]
    else:
        assert "moved 3 checkpoints to the trash" in out


def test_gc_frees_no_trash_of_this_hour_and_says_so(new_cli):
    with casckpt.open(new_cli.store) as store:
        for step in range(6):
            store.save("r", {"w": np.random.default_rng(step).bytes(500_000)}, step)
    assert new_cli("gc", "--keep-last", "2", "--yes").code == 0
    for words in (["gc", "-n"], ["gc", "--yes"]):
        answer = new_cli(*words)
        assert "frees at most " in answer.out
        assert ", since 4 checkpoints stay in the trash\n" in answer.out
    assert "4 checkpoints in the trash can still come back" in answer.err
    assert "`casckpt gc --now` frees them at once" in answer.err
    assert "disk needs room" not in answer.err
    now = new_cli("gc", "--now", "--yes")
    assert "at most" not in now.out
    assert now.err == ""


def test_gc_of_a_run_ends_the_grace_of_its_own_trash_only_and_asks(own_cli):
    assert own_cli("rm", "bpm/nn@20").code == 0
    assert own_cli("rm", "bpm/xgboost@200").code == 0
    for words in (["gc", "bpm/nn", "--now"], ["gc", "--now", "--json"]):
        asked = own_cli(*words)
        assert asked.code == 2
        assert "nobody to ask: Drop " in asked.err
    assert len(refs(own_cli, "--trash")) == 2
    plan = json.loads(own_cli("gc", "--now", "-n", "--json").out)
    assert [one["ref"] for one in plan["purge"]] == ["bpm/nn@20", "bpm/xgboost@200"]
    assert json.loads(own_cli("gc", "-n", "--json").out)["purge"] == []
    done = own_cli("gc", "bpm/nn", "--now", "--yes")
    assert "bpm/nn@20  in the trash, goes for good\n" in done.out
    assert ", since 1 checkpoint stays in the trash\n" in done.out
    assert refs(own_cli, "--trash") == ["bpm/xgboost@200"]
    assert own_cli("undelete", "bpm/xgboost@200").code == 0
    assert own_cli("gc", "--now").code == 0  # nothing goes, so nothing is asked
    assert own_cli("rm", "bpm/nn@10").code == 0
    done = json.loads(own_cli("gc", "--now", "--yes", "--json").out)
    assert [one["ref"] for one in done["purge"]] == ["bpm/nn@10"]


def test_gc_keeps_the_best_as_the_loop_declared(new_cli):
    with casckpt.open(new_cli.store) as store, store.run("net") as run:
        for epoch in run.epochs(4, {"v": 0}, save_every=1, monitor="score", mode="max"):
            run.log(score=[0, 9, 8, 1, 2][epoch], other=epoch)
    answer = new_cli("gc", "--keep-best", "score:2", "-n", "--json")
    assert [one["step"] for one in json.loads(answer.out)["keep"]] == [1, 2, 4]
    assert "--keep-best score: max, as declared by its loop" in answer.err
    ranked = new_cli("ls", "--best", "score", "--limit", "1", "--json")
    assert [one["step"] for one in json.loads(ranked.out)["checkpoints"]] == [1]
    assert "score: highest first, as declared by its loop" in ranked.err
    turned = json.loads(new_cli("ls", "--best", "score", "--mode", "min", "--json").out)
    assert [one["step"] for one in turned["checkpoints"]] == [3, 4, 2, 1]
    refused = new_cli("gc", "--keep-best", "other", "-n")
    assert refused.code == 2
    with casckpt.open(new_cli.store) as store, store.run("net2") as run:
        for epoch in run.epochs(2, {"v": 0}, save_every=1, monitor="score", mode="min"):
            run.log(score=epoch)
    assert new_cli("gc", "--keep-best", "score", "-n").code == 2
    assert "lowest first. Highest first" in new_cli("ls", "--best", "score").err
    assert new_cli("gc", "net", "--keep-best", "score", "-n").code == 0


def test_compact_says_what_it_won_and_every_checkpoint_stays_whole(own_cli):
    before = refs(own_cli)
    planned = json.loads(own_cli("compact", "-n", "--json").out)
    assert planned["dry_run"] is True
    done = json.loads(own_cli("compact", "--json").out)
    assert done["dry_run"] is False
    assert [run["run"] for run in done["runs"]] == ["bpm/nn", "bpm/xgboost"]
    assert all(run["after_bytes"] <= run["before_bytes"] for run in done["runs"])
    assert refs(own_cli) == before
    assert own_cli("verify").code == 0
    answer = own_cli("compact")
    assert "bpm/nn" in answer.out
    assert "the store took" in answer.out
    assert own_cli("compact", "--level", "fast").code == 2


def test_keep_best_of_a_metric_that_nothing_has_drops_nothing(own_cli):
    before = refs(own_cli)
    answer = own_cli("gc", "--keep-best", "2:val_loss:min", "--yes", "--now")
    assert answer.code == 12
    assert "no checkpoint has a metric '2:val_loss'" in answer.err
    assert "val_loss" in answer.err.splitlines()[1]
    assert refs(own_cli) == before


def test_keep_best_needs_a_mode(own_cli):
    mistyped = own_cli("gc", "--keep-best", "val_loss:mim", "-n")
    assert mistyped.code == 12
    assert "no checkpoint has a metric 'val_loss:mim'" in mistyped.err
    answer = own_cli("gc", "--keep-best", "val_loss", "-n")
    assert answer.code == 2
    assert "val_loss" in answer.err


def test_restore_and_import_bring_everything_back(own_cli, tmp_path):
    assert own_cli("restore", "bpm/nn@20", "-o", tmp_path / "out").code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "state.safetensors",
        "tree.json",
    ]
    made = json.loads(
        own_cli("import", tmp_path / "out", "--run", "back", "--step", "7", "--json").out
    )
    assert made["checkpoints"][0]["ref"] == "back@7"
    assert made["checkpoints"][0]["new_bytes"] == 0
    assert own_cli("diff", "bpm/nn@20", "back@7", "--exit-code").code == 0
    assert own_cli("diff", "bpm/nn@20", "bpm/nn@40", "--exit-code").code == 1


def test_export_npz(own_cli, tmp_path):
    answer = own_cli("export", "bpm/nn", "-o", tmp_path / "nn.npz", "-q")
    assert answer.out == f"{tmp_path / 'nn.npz'}\n"
    with casckpt.open(own_cli.store, mode="r") as store:
        state = store.restore("bpm/nn")
    with np.load(tmp_path / "nn.npz") as arrays:
        assert np.array_equal(arrays["model.weight"], state["model"]["weight"])


def test_the_json_of_an_export_names_the_format_that_the_suffix_gave(own_cli, tmp_path):
    answer = own_cli("export", "bpm/nn", "-o", tmp_path / "nn.npz", "--json")
    assert json.loads(answer.out)["format"] == "npz"


def test_files_are_restored_and_not_exported(own_cli, tmp_path):
    with casckpt.open(own_cli.store) as store:
        store.save_files("kept", own_cli.store / "format.json")
    answer = own_cli("export", "kept", "-o", tmp_path / "kept.npz")
    assert answer.code == 2
    assert "casckpt restore kept@0 -o" in answer.err
    assert not (tmp_path / "kept.npz").exists()


def test_export_replaces_a_file_only_if_told(own_cli, tmp_path):
    (tmp_path / "nn.json").write_text("mine")
    answer = own_cli("export", "bpm/nn", "-o", tmp_path / "nn.json")
    assert (answer.code, answer.out) == (2, "")
    assert "--force" in answer.err
    assert (tmp_path / "nn.json").read_text() == "mine"
    assert own_cli("export", "bpm/nn", "-o", tmp_path / "nn.json", "--force").code == 0
    assert json.loads((tmp_path / "nn.json").read_text())


def test_damage_is_a_finding_that_names_tensor_and_checkpoints(own_cli):
    packs = sorted(own_cli.store.glob("packs/*/*.pack"), key=lambda path: path.stat().st_size)
    data = bytearray(packs[-1].read_bytes())
    data[60_000] ^= 1  # in the first checkpoint's tensors, which the session wrote first
    packs[-1].write_bytes(data)
    answer = own_cli("verify", "--json")
    assert answer.code == 1
    found = json.loads(answer.out)
    assert found["damaged"]
    assert found["lost"]
    assert set(found["lost"]).isdisjoint(found["whole"])
    text = own_cli("verify")
    assert text.code == 1
    assert found["lost"][0] in text.out
    assert set(found["tensors"]) == set(found["lost"])
    answer = own_cli("restore", found["lost"][0], "-o", own_cli.folder / "out")
    assert answer.code == 13
    assert not (own_cli.folder / "out").exists()


def test_repair_puts_back_what_another_store_has(own_cli, tmp_path):
    shutil.copytree(own_cli.store, tmp_path / "backup")
    packs = sorted(own_cli.store.glob("packs/*/*.pack"), key=lambda path: path.stat().st_size)
    data = bytearray(packs[-1].read_bytes())
    data[60_000] ^= 1
    packs[-1].write_bytes(data)
    answer = own_cli("repair")
    assert answer.code == 1
    assert "CANNOT BE READ" in answer.out
    assert f"quarantine/{packs[-1].name}" in answer.out
    assert "in `quarantine`" in own_cli("du").err
    again = json.loads(own_cli("repair", "--from", tmp_path / "backup", "--json").out)
    assert again["refilled_count"] == 1
    assert again["verified"]["lost"] == []
    assert own_cli("verify").code == 0


def test_verify_goes_slowly_by_samples_and_goes_on(own_cli):
    text = own_cli("verify", "--sample", "50%", "--max-rate", "100MB/s")
    assert text.code == 0
    assert own_cli("verify", "--resume").code == 0
    assert own_cli("verify", "--sample", "0%").code == 2
    assert own_cli("verify", "--max-rate", "fast").code == 2
    assert own_cli("verify", "--level", "refs", "--resume").code == 2


def test_verify_reads_in_turns_what_was_not_read_for_long(own_cli):
    def read(age: str) -> int:
        answer = own_cli("verify", "--older-than", age, "--max-rate", "1GB/s", "--json")
        assert answer.code == 0
        return json.loads(answer.out)["checked_bytes"]

    everything = read("30d")
    assert everything == json.loads(own_cli("verify", "--json").out)["checked_bytes"]
    assert read("30d") == 0
    (file,) = own_cli.folder.glob(".local/state/casckpt/verify/*.turns.json")
    turns = json.loads(file.read_text())
    name, (end, at_s) = max(turns["read"].items(), key=lambda item: item[1][0])
    turns["read"][name] = (end, at_s - 31 * 86400)
    file.write_text(json.dumps(turns))
    assert read("30d") == everything
    assert own_cli("tag", "bpm/nn@30", "new").code == 0
    assert 0 < read("30d") < everything // 10
    (pack,) = own_cli.store.glob(f"packs/*/{name}.pack")
    data = bytearray(pack.read_bytes())
    data[60_000] ^= 1
    pack.write_bytes(data)
    assert own_cli("verify", "--older-than", "30d").code == 0
    time.sleep(0.7)
    damaged = own_cli("verify", "--older-than", "0.01m")
    assert damaged.code == 1
    assert name in damaged.out
    # What is damaged stays due.
    assert own_cli("verify", "--older-than", "30d").code == 1
    assert own_cli("verify", "--older-than", "30d", "--resume").code == 2
    assert own_cli("verify", "--older-than", "soon").code == 2


def test_a_lost_index_is_rebuilt_from_the_packs(own_cli):
    for path in own_cli.store.glob("index.*/data.mdb"):
        path.unlink()
    assert own_cli("ls").code == 13
    assert own_cli("repair").code == 13
    assert own_cli("repair", "--rebuild-index").code == 0
    assert len(refs(own_cli)) == 8
    assert json.loads(own_cli("repair", "--accept", "--json").out)["accepted"] is True
    assert own_cli("verify").code == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(cli, shell):
    answer = cli("completion", shell)
    assert answer.code == 0
    assert "_CASCKPT_COMPLETE" in answer.out


def complete(cli, *words):
    answer = cli(
        _CASCKPT_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(["casckpt", *words]),
        COMP_CWORD=str(len(words)),
    )
    return [line.partition(",")[2] for line in answer.out.splitlines()]


def test_completion_knows_commands_runs_refs_tags_and_metrics(cli):
    assert complete(cli, "ver") == ["verify", "verify-resume"]
    assert complete(cli, "ls", "b") == ["bpm/nn", "bpm/xgboost"]
    assert complete(cli, "show", "bpm/nn@p") == ["bpm/nn@paper-v1"]
    assert complete(cli, "ls", "--tag", "") == ["paper-v1"]
    assert complete(cli, "ls", "--best", "") == ["accuracy", "val_loss"]
    assert complete(cli, "ls", "--mode", "") == ["min", "max"]
