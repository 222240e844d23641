"""A store that changes under an open process: no permission, no descriptors, files for folders."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from casckpt.errors import CasckptError, NewerFormat
from casckpt.store import Repository, files, layout, opening
from tests.unit.store.stores import check, save

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*")


def save_more(repository: Repository) -> None:
    save(repository, [os.urandom(3000)], step=9)


def free(repository: Repository) -> None:
    repository.gc(now=True)


def look(repository: Repository) -> None:
    report = repository.verify("bytes")
    if report.damaged:
        raise AssertionError(f"called damage: {report.damaged}")


def use_all(repository: Repository) -> None:
    """Do everything once, so that no module is left that another user could not import."""
    for step in range(2):
        save(repository, [os.urandom(3000)], step=step)
    free(repository)
    look(repository)


def as_nobody(path: Path, work: Callable[[Repository], None], change: Callable[[], None]) -> str:
    """Open a store of another user as that user, change something, and say what `work` raises."""
    for place in (path, *path.rglob("*")):
        os.chown(place, NOBODY, NOBODY)
    opening.write_stamp(path / "index.0", 0)  # to look anew takes an interpreter of its own
    os.chown(path / "index.0" / "clean", NOBODY, NOBODY)
    for folder in path.parents:
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o011)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        words = "the child failed"
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            repository = Repository.open(path)
            save_more(repository)
            words = outcome(lambda: work(repository), change)
        except BaseException as exc:
            words = f"the child failed: {exc!r}"
        finally:
            os.write(tell, words.encode())
            os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        words = pipe.read().decode()
    os.waitpid(child, 0)
    return words


def outcome(work: Callable[[], None], change: Callable[[], None]) -> str:
    change()
    try:
        work()
    except CasckptError as exc:
        return f"{type(exc).__name__}: {exc}"
    except BaseException as exc:
        return f"not ours: {exc!r}"
    return "done"


@needs_root
@pytest.mark.parametrize(
    ("folder", "work"),
    [("sessions", free), (".", save_more), (".", free), ("packs", free), ("packs", look),
     ("index.0", save_more), ("index.0", free)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)  # fmt: skip
def test_a_folder_that_was_closed_meanwhile_is_no_permission_and_no_damage(
    path, make_store, folder, work
):
    with Repository.open(make_store("other")) as other:
        use_all(other)
    said = as_nobody(path, work, lambda: (path / folder).chmod(0))
    assert said.startswith("PermissionRefused: "), said
    assert len(said.splitlines()) == 3
    (path / folder).chmod(0o700)
    with Repository.open(path) as repository:
        save_more_at(repository, 10)


@needs_root
def test_packs_that_may_not_be_looked_at_are_not_left_out_of_a_rebuild(path, make_store):
    with Repository.open(make_store("other")) as other:
        use_all(other)
    with Repository.open(path) as repository:
        saved = save(repository, [b"kept"], step=1)
    Repository.rebuild_index(make_store("another"))
    inner = next((path / "packs").iterdir())

    def rebuild(repository: Repository) -> None:
        repository.close()
        Repository.rebuild_index(path)

    said = as_nobody(path, rebuild, lambda: inner.chmod(0))
    assert said.startswith("PermissionRefused: cannot look into"), said
    inner.chmod(0o700)
    with Repository.open(path) as repository:
        check(repository, saved)


def save_more_at(repository: Repository, step: int) -> None:
    check(repository, save(repository, [os.urandom(3000)], step=step))


@pytest.mark.parametrize("name", ["reserve", "packs", "sessions"])
@pytest.mark.parametrize("work", [save_more, free], ids=["save", "gc"])
def test_a_file_that_was_put_where_a_folder_was_is_told(path, tmp_path, name, work):
    with Repository.open(path) as repository:
        save(repository, [os.urandom(3000)])

        def change() -> None:
            (path / name).rename(tmp_path / "aside")
            (path / name).write_bytes(b"")

        said = outcome(lambda: work(repository), change)
        assert said == "done" or said.startswith(("NoStore: ", "Corrupt: ")), said
        (path / name).unlink()
        (tmp_path / "aside").rename(path / name)
        save_more_at(repository, 10)


@pytest.mark.parametrize("work", [save_more, free, look], ids=["save", "gc", "verify"])
def test_without_descriptors_it_says_so_and_goes_on_when_there_are(path, make_store, work):
    with Repository.open(make_store("other")) as other:
        use_all(other)
    with Repository.open(path) as repository:
        saved = save(repository, [os.urandom(3000)])
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken: list[int] = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            said = outcome(lambda: work(repository), lambda: None)
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert said == "done" or said.startswith("OperationFailed: "), said
        work(repository)
        check(repository, saved)


# ---- format.json while the store is open


def test_features_that_a_newer_program_names_are_seen_by_who_has_the_store_open(path):
    with Repository.open(path) as repository:
        save(repository, [b"x"])
        document = json.loads((path / layout.FORMAT_FILE).read_text())

        def name(**changed: list[str]) -> None:
            (path / layout.FORMAT_FILE).write_text(json.dumps(document | changed))

        name(collect=[*document["collect"], "remote-1"])
        save(repository, [b"y"], step=2)
        for work in (repository.gc, lambda: repository.repair(None)):
            with pytest.raises(NewerFormat, match="remote-1"):
                work()
        name(write=[*document["write"], "facts-2"])
        with pytest.raises(NewerFormat, match="facts-2"):
            save(repository, [b"z"], step=3)
        name(read=[*document["read"], "wavelets-1"])
        with pytest.raises(NewerFormat, match="wavelets-1"):
            save(repository, [b"z"], step=3)
        name()
        save(repository, [b"z"], step=3)


@pytest.mark.parametrize("is_first", [True, False])
def test_saves_go_on_without_format_json_and_say_that_nobody_can_open_the_store(
    path, tmp_path, caplog, is_first
):
    with Repository.open(path) as repository:
        saved = [] if is_first else [save(repository, [b"x"], step=0)]
        (path / layout.FORMAT_FILE).unlink()
        saved += [save(repository, [bytes([step])], step=step) for step in (1, 2, 3)]
        assert caplog.text.count("casckpt repair --rebuild-index") == 1
        with pytest.raises(CasckptError, match=r"lost its format\.json"):
            Repository.init(path)
    assert Repository.rebuild_index(path).described
    with Repository.open(path) as repository:
        for each in saved:
            check(repository, each)


def test_a_store_that_another_makes_meanwhile_is_not_made_twice(tmp_path, monkeypatch):
    """Between the look for format.json and the lock another may make it, save, and close it."""
    place = tmp_path / "s"
    code = (
        "import sys\nfrom pathlib import Path\nfrom casckpt.store import Repository\n"
        "from tests.unit.store.stores import save\n"
        "Repository.init(Path(sys.argv[1]))\n"
        "with Repository.open(Path(sys.argv[1])) as repository:\n    save(repository, [b'x'])\n"
    )
    real = files.try_lock

    def lock(descriptor, **options):
        monkeypatch.setattr(files, "try_lock", real)
        subprocess.run([sys.executable, "-c", code, str(place)], check=True)
        return real(descriptor, **options)

    monkeypatch.setattr(files, "try_lock", lock)
    with pytest.raises(CasckptError, match="there is a store at"):
        Repository.init(place)
    with Repository.open(place) as repository:
        assert len(repository.checkpoint_rows()) == 1
