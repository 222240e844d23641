from __future__ import annotations

import gc
import hashlib
from pathlib import Path

import pytest

from casckpt.checkpoint.lines import LineView
from casckpt.checkpoint.payloads import RowFacts, encode_payload
from casckpt.checkpoint.queries import Catalog, with_monitor
from casckpt.checkpoint.refs import parse_ref
from casckpt.errors import BadRef, BadRequest, NotFound
from casckpt.store import CheckpointRow


class Rows:
    """A repository that has rows and nothing else."""

    path = Path("here/store")

    def __init__(self, rows: list[CheckpointRow]) -> None:
        self.rows = rows

    def checkpoint_rows(self, run=None, *, states=("live",)):
        found = [row for row in self.rows if run in (None, row.run) and row.state in states]
        return sorted(found, key=lambda row: (row.run, row.seq))

    def run_row(self, run):
        return None

    def head(self, run, line):
        places = {(row.line, row.step, row.batch, row.seq) for row in self.rows if row.run == run}
        return max((place for place in places if line in (None, place[0])), default=(None,))[-1]

    def commit_at(self, run, *place):
        rows = [row for row in self.rows if row.run == run]
        return max((r.seq for r in rows if (r.line, r.step, r.batch) == place), default=None)

    def checkpoint_row(self, run, seq):
        return next(row for row in self.rows if (row.run, row.seq) == (run, seq))


def a_row(run, seq, step, line=0, batch=0, state="live", parent=None, tags=(), **metrics):
    facts = RowFacts(seq * 1_000_000, metrics, tags, (), parent, 10, 1, 1, 0.0, 0.0)
    return CheckpointRow(run, seq, an_id(seq), line, step, batch, state, 0, encode_payload(facts))


def an_id(seq: int) -> bytes:
    return hashlib.sha256(str(seq).encode()).digest()


@pytest.fixture
def branched():
    """Line 1 of `r` leaves line 0 at step 2; `plain` has one line."""
    return Catalog(
        Rows(
            [
                a_row("r", 1, 1, loss=3.0),
                a_row("r", 2, 2, loss=1.0),
                a_row("r", 3, 3, loss=0.5, tags=("t",)),
                a_row("r", 4, 3, line=1, parent=an_id(2).hex(), loss=2.0),
                a_row("r", 5, 4, line=1, loss=4.0),
                a_row("plain", 6, 7),
                a_row("r", 7, 9, state="trash"),
                a_row("gone", 8, 1, state="trash"),
            ]
        )
    )


def refs(checkpoints):
    return [ck.ref for ck in checkpoints]


def test_the_bare_name_means_the_newest_line(branched):
    assert refs(branched.checkpoints("r")) == ["r~0@1", "r~0@2", "r~1@3", "r~1@4"]
    assert branched.resolve(parse_ref("r")).ref == "r~1@4"
    assert branched.resolve(parse_ref("r@3")).ref == "r~1@3"
    assert branched.resolve(parse_ref("r@2")).ref == "r~0@2"
    assert branched.resolve(parse_ref("r@best:loss:min")).ref == "r~0@2"


def test_lines_by_number_and_all(branched):
    assert refs(branched.checkpoints("r~0")) == ["r~0@1", "r~0@2", "r~0@3"]
    assert refs(branched.checkpoints("r~*")) == ["r~0@1", "r~0@2", "r~0@3", "r~1@3", "r~1@4"]
    assert branched.resolve(parse_ref("r~0")).ref == "r~0@3"
    assert branched.resolve(parse_ref("r~*@best:loss:min")).ref == "r~0@3"
    with pytest.raises(NotFound, match="no line r~5"):
        branched.checkpoints("r~5")
    with pytest.raises(NotFound, match=r"no line r~5.*\n.* on r~1, r~0\n"):
        branched.resolve(parse_ref("r~5@1"))


def test_a_list_is_of_no_single_checkpoint(branched):
    for one in ("r@2", "id:0123"):
        with pytest.raises(BadRef, match="names a checkpoint"):
            branched.checkpoints(one)


def test_every_ref_that_is_shown_resolves_to_its_checkpoint(branched):
    for checkpoint in branched.checkpoints():
        assert branched.resolve(parse_ref(checkpoint.ref)) == checkpoint
        assert branched.resolve(parse_ref(f"id:{checkpoint.id[:16]}")) == checkpoint


def test_globs_see_all_lines(branched):
    assert len(branched.checkpoints("*")) == 6
    assert refs(branched.checkpoints("p*")) == ["plain@7"]
    assert [info.name for info in branched.runs()] == ["plain", "r"]
    info = branched.runs("r")[0]
    assert (info.line, info.lines, info.checkpoint_count) == (1, 2, 5)
    assert info.last.ref == "r~1@4"


def test_the_trash_is_apart(branched):
    assert refs(branched.checkpoints("r", trash=True)) == ["r@9"]
    assert branched.resolve_trash(parse_ref("r@9")).step == 9
    with pytest.raises(NotFound, match="no run gone"):
        branched.checkpoints("gone")
    with pytest.raises(NotFound, match="nothing of plain is in the trash"):
        branched.checkpoints("plain", trash=True)


def test_tags_are_free_for_their_holder_only(branched):
    holder = branched.resolve(parse_ref("r~0@3"))
    branched.check_tags_free("r", ["t", "u"], holder)
    branched.check_tags_free("plain", ["t"], None)
    with pytest.raises(BadRequest, match="is taken"):
        branched.check_tags_free("r", ["u", "t"], None)


def test_around_a_step(branched):
    def around(step):
        return [ck and ck.step for ck in branched.around("r", 0, step)]

    assert around(None) == [3, None, 3]
    assert around(2) == [3, 2, 1]
    assert around(1) == [3, 1, None]
    assert around(8) == [3, None, 3]
    assert branched.around("new", 0, None) == (None, None, None)


@pytest.mark.bench
def test_the_newest_of_one_line_is_found_without_the_others():
    class OneRow(Rows):
        def checkpoint_rows(self, run=None, *, states=("live",)):
            raise AssertionError("all rows were read")

    catalog = Catalog(OneRow([a_row("long", seq, step=seq) for seq in range(50)]))
    assert catalog.resolve(parse_ref("long")) == catalog.resolve(parse_ref("long@latest"))
    assert catalog.newest("long").step == 49
    assert catalog.newest("long", 0).ref == "long@49"
    assert catalog.has_run("long")
    assert catalog.resolve(parse_ref("long@7")).step == 7


def test_the_newest_is_found_where_the_last_commit_is_in_the_trash():
    rows = [
        a_row("long", seq, step=seq, state="trash" if seq > 40 else "live") for seq in range(50)
    ]
    assert Catalog(Rows(rows)).newest("long").step == 40
    assert Catalog(Rows(rows)).resolve(parse_ref("long")).step == 40
    assert Catalog(Rows(rows)).resolve(parse_ref("long@7")).step == 7
    with pytest.raises(NotFound, match="long@45"):
        Catalog(Rows(rows)).resolve(parse_ref("long@45"))
    assert not Catalog(Rows(rows[41:])).has_run("long")


def test_ten_thousand_rows_are_listed_without_the_collector():
    catalog = Catalog(Rows([a_row("r", i, i, loss=1.0 / (i + 1), acc=0.5) for i in range(10_000)]))
    gc.collect()
    before = gc.get_stats()[0]["collections"]
    assert len(catalog.checkpoints()) == 10_000
    assert gc.get_stats()[0]["collections"] - before < 45  # 27; 66 where it is not paused
    assert gc.isenabled()


def test_a_list_turns_no_collector_on():
    gc.disable()
    try:
        assert len(Catalog(Rows([a_row("r", 1, 1)])).checkpoints("r")) == 1
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("ref", "shown"),
    [
        ("r@best", ("loss", "min")),
        ("r@best:loss", ("loss", "min")),
        ("r~1@best", ("acc", "max")),
        ("r~*@best", ("loss", "min")),
        ("r@best:acc", ("acc", None)),
        ("r@best:loss:max", ("loss", "max")),
        ("r~3@best", (None, None)),
        ("r~2@best", (None, None)),
    ],
)
def test_best_is_by_the_monitor_of_the_line_where_it_does_not_say(ref, shown):
    monitors = {0: ("loss", "min"), 1: ("acc", "max"), 2: ("loss", "sideways")}
    selector = with_monitor(parse_ref(ref), LineView(0, {}, monitors)).selector
    assert (selector.metric, selector.mode) == shown


def test_a_ref_that_is_no_best_needs_no_monitor():
    for text in ("r", "r@3", "r@latest"):
        ref = parse_ref(text)
        assert with_monitor(ref, LineView(0, {}, {0: ("loss", "min")})) is ref


def test_a_glob_that_fits_no_run_says_how_many_there_are(branched):
    error = branched.no_run("x*")
    assert error.what == "no run matches x*"
    assert error.why == "the store here/store has 2 runs"


def test_a_mode_that_is_mistyped_is_named(store):
    store.save("r", {"v": 1}, metrics={"loss": 1, "a:b": 2})
    with pytest.raises(BadRef, match=r"'mni' is neither min nor max\n.*\n.*r@best:loss:min"):
        store.get("r@best:loss:mni")
    with pytest.raises(BadRef, match="is the smallest or the largest a:b best"):
        store.get("r@best:a:b")


def test_what_is_live_is_not_in_the_trash(store):
    store.save("r", {"v": 1}, 1)
    with pytest.raises(NotFound, match=r"r@1 is not in the trash\n.*it is live"):
        store.undelete("r@1")
    with pytest.raises(NotFound, match="nothing of r is in the trash"):
        store.undelete("r@2")


def test_an_id_without_its_mark_is_told_how_to_be_written(store):
    saved = store.save("r", {"v": 1})
    with pytest.raises(NotFound, match=rf"did you mean id:{saved.id[:10]}\?"):
        store.get(saved.id[:10])
    with pytest.raises(NotFound) as caught:
        store.get("0123456789")
    assert "id:" not in str(caught.value)
