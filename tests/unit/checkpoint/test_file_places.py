"""Files of a run by name, and what happens when another process is faster."""

from __future__ import annotations

import pytest

from casckpt.checkpoint import file_places
from casckpt.checkpoint.file_places import FilePlaces, open_files
from casckpt.errors import BadRequest, NotFound, RunMoved


@pytest.fixture
def places(store):
    with open_files(store.path) as found:
        yield found


@pytest.fixture
def put(places, tmp_path):
    def put(text: str, name: str = "f", into: FilePlaces = places):
        (tmp_path / "source").write_text(text)
        return into.put_file("r", name, tmp_path / "source")

    return put


def content(places, name: str = "f") -> str | None:
    """Return what a file holds, None if it is not there."""
    placed = places.files_of("r").get(name)
    if placed is None:
        return None
    data = bytearray(placed.file.size)
    placed.file.read(0, memoryview(data))
    return data.decode()


def test_the_newest_file_of_a_name_is_the_file(store, places, put):
    put("other", "g")
    put("one")
    put("two")
    assert (content(places), content(places, "g")) == ("two", "other")
    assert [ck.step for ck in store.checkpoints("r")] == [0, 2]
    places.remove_file("r", "f")
    assert (content(places), content(places, "g")) == (None, "other")


@pytest.mark.parametrize("mark", ["tag", "pin"])
def test_a_version_that_is_marked_at_the_last_moment_stays(store, places, put, monkeypatch, mark):
    put("zero")
    one = put("one")
    real = places._remove

    def remove(checkpoints, guard):
        if not store.get(one).tags and not store.get(one).pinned:
            store.tag(one, "good") if mark == "tag" else store.pin(one)
        return real(checkpoints, guard)

    monkeypatch.setattr(places, "_remove", remove)
    two = put("two")
    assert content(places) == "two"
    assert store.checkpoints("r") == [one, two]


def test_what_is_not_there_or_kept_is_not_removed(store, places, put):
    with pytest.raises(NotFound):
        places.remove_file("r", "f")
    store.pin(put("one"))
    put("other", "g")
    with pytest.raises(NotFound, match="r has no file h"):
        places.remove_file("r", "h")
    put("two")
    with pytest.raises(BadRequest, match="is pinned"):
        places.remove_file("r", "f")
    assert content(places) == "two"


def test_a_link_to_no_file_is_no_file(store, places, tmp_path):
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    (folder / "f").write_text("x")
    (folder / "sub/to file").symlink_to("../f")
    (folder / "to folder").symlink_to("sub")
    (folder / "to nothing").symlink_to("gone")
    store.save_files("r", folder)
    assert sorted(places.files_of("r")) == ["f", "sub/to file"]
    assert content(places, "sub/to file") == "x"


def test_a_put_gives_way_to_others_until_it_has_its_turn(store, places, put, monkeypatch):
    monkeypatch.setattr(file_places, "_ATTEMPTS", 4)
    others = []

    class Slow(FilePlaces):
        """Others save between its look at the run and its save."""

        turns = 3

        def _place(self, request):
            place = super()._place(request)
            if len(others) < self.turns:
                others.append(store.save("r", {"a": len(others)}))
            return place

    put("old")
    with Slow(store.path, "a") as slow:
        put("new", into=slow)
        assert len(others) == 3
        assert content(places) == "new"
        slow.turns = 100
        with pytest.raises(RunMoved):
            put("never", into=slow)
        assert len(others) == 3 + 4
    assert content(places) == "new"


def test_what_another_process_removed_first_is_no_error(store, put):
    class Beaten(FilePlaces):
        """Another process removes the oldest right before it does."""

        def _remove(self, checkpoints, guard):
            if checkpoints[0] in store.checkpoints("r"):
                store.delete(checkpoints[0].ref)
            return super()._remove(checkpoints, guard)

    tagged = put("one")
    store.tag(tagged, "keep")
    put("two")
    put("other", "g")
    with Beaten(store.path, "a") as places:
        places.remove_file("r", "f")
        assert (content(places), content(places, "g")) == (None, "other")
