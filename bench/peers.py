"""What casckpt is compared with: other ways to put the same state on the same disk."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import zstandard

from bench.contenders import Contender
from bench.harness import fsync_path, fsync_tree
from bench.trees import as_bytes, assert_equal, leaves, tensors


class TorchSave(Contender):
    """torch.save and fsync of file and folder; torch.load, which verifies nothing."""

    name = "torch.save"

    def path(self, step: int) -> Path:
        """Return the file of a step."""
        return self.folder / f"step-{step:06d}.pt"

    def save(self, step: int, state: Any) -> None:
        """Write one file and make it durable."""
        with self.path(step).open("wb") as file:
            dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        fsync_path(self.folder)

    def load(self, step: int) -> Any:
        """Read one file."""
        with self.path(step).open("rb") as file:
            return undump(file)


class PlainFile(TorchSave):
    """States without tensors, boosters and studies: their bytes in a file, fsynced."""

    name = "plain file"


class ZstdFile(TorchSave):
    """The torch file through `zstd -3`, as people do by hand."""

    name = "zstd -3 per file"

    def path(self, step: int) -> Path:
        """Return the file of a step."""
        return self.folder / f"step-{step:06d}.pt.zst"

    def save(self, step: int, state: Any) -> None:
        """Compress in memory, one thread as the program does, and write durably."""
        buffer = io.BytesIO()
        dump(state, buffer)
        packed = zstandard.ZstdCompressor(level=3).compress(buffer.getbuffer())
        with self.path(step).open("wb") as file:
            file.write(packed)
            file.flush()
            os.fsync(file.fileno())
        fsync_path(self.folder)

    def load(self, step: int) -> Any:
        """Decompress and read one file."""
        raw = zstandard.ZstdDecompressor().decompress(self.path(step).read_bytes())
        return undump(io.BytesIO(raw))


class ZipNn(TorchSave):
    """ZipNN for every floating tensor, in one pickle: byte groups and Huffman, no parent."""

    name = "ZipNN"
    module = "zipnn"

    def save(self, step: int, state: Any) -> None:
        """Write one file of compressed tensors and make it durable."""
        # A plain pickle: torch.save's swells byte strings by a fifth.
        with self.path(step).open("wb") as file:
            pickle.dump(_mapped(state, self._packed), file, protocol=5)
            file.flush()
            os.fsync(file.fileno())
        fsync_path(self.folder)

    def load(self, step: int) -> Any:
        """Read one file and unpack its tensors."""
        with self.path(step).open("rb") as file:
            return _mapped(pickle.load(file), self._unpacked)

    def _packed(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point() or not leaf.dim():
            return leaf
        # It changes the memory that it is given.
        return _Packed(self._codec().compress(leaf.detach().clone()))

    def _unpacked(self, leaf: Any) -> Any:
        return self._codec().decompress(leaf.data) if isinstance(leaf, _Packed) else leaf

    @staticmethod
    def _codec() -> Any:
        from zipnn import ZipNN

        return ZipNN(input_format="torch")


@dataclass(frozen=True)
class _Packed:
    data: bytes


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(value, change) for value in tree)
    return change(tree)


class Safetensors(Contender):
    """The tensors as one safetensors file, everything else as text beside it (types are lost)."""

    name = "safetensors"
    module = "safetensors"
    imports = ("safetensors.torch",)

    def save(self, step: int, state: Any) -> None:
        """Write both files and make them durable."""
        from safetensors.torch import save_file

        path = self.folder / f"step-{step:06d}.safetensors"
        save_file({name: leaf.detach() for name, leaf in tensors(state).items()}, path)
        rest = {name: leaf for name, leaf in leaves(state) if not isinstance(leaf, torch.Tensor)}
        text = path.with_suffix(".json")
        text.write_text(json.dumps(rest, default=str))
        for written in (path, text, self.folder):
            fsync_path(written)

    def load(self, step: int) -> Any:
        """Return the tensors; they are copied, because the file is only mapped."""
        from safetensors.torch import load_file

        mapped = load_file(self.folder / f"step-{step:06d}.safetensors")
        return {name: tensor.clone() for name, tensor in mapped.items()}

    def check(self, step: int, state: Any) -> None:
        """Compare the tensors, by name; nothing else comes back."""
        assert_equal(tensors(state), self.load(step), self.name)


class Dcp(Contender):
    """torch.distributed.checkpoint in one process, with its default file writer (it fsyncs)."""

    name = "DCP"
    module = "torch.distributed.checkpoint"

    def open(self, folder: Path) -> None:
        """Remember the shape of what is saved: DCP loads in place."""
        super().open(folder)
        self.template: Any = None

    def save(self, step: int, state: Any) -> None:
        """Save one checkpoint folder."""
        import torch.distributed.checkpoint as dcp

        self.template = state
        path = self.folder / f"step-{step:06d}"
        dcp.save(state, checkpoint_id=path, no_dist=True)
        fsync_tree(path)
        fsync_path(self.folder)

    def load(self, step: int) -> Any:
        """Load into newly allocated tensors of the last saved state's shape."""
        import torch.distributed.checkpoint as dcp

        into = _empty_like(self.template)
        dcp.load(into, checkpoint_id=self.folder / f"step-{step:06d}", no_dist=True)
        return into


class Orbax(Contender):
    """Orbax's PyTree checkpointer with its default layout (OCDBT, zstd), one folder a step."""

    name = "Orbax"
    module = "orbax.checkpoint"
    imports = ("orbax.checkpoint",)

    def missing(self) -> str | None:
        """Return why Orbax cannot run here, or None; its root package is looked for first."""
        if importlib.util.find_spec("orbax") is None:
            return "the Python package orbax-checkpoint (with jax, 600 MB) is not installed"
        return super().missing()

    def save(self, step: int, state: Any) -> None:
        """Save the tensors as a flat tree of arrays: Orbax knows no torch tensors."""
        import ml_dtypes
        import orbax.checkpoint as ocp

        tree = {}
        for name, leaf in tensors(state).items():
            flat = leaf.detach()
            if leaf.dtype is torch.bfloat16:
                tree[name] = flat.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
            else:
                tree[name] = flat.numpy()
        path = self.folder / f"step-{step:06d}"
        ocp.PyTreeCheckpointer().save(path.absolute(), tree)
        fsync_tree(path)

    def load(self, step: int) -> Any:
        """Return the flat tree as numpy arrays."""
        import orbax.checkpoint as ocp

        path = (self.folder / f"step-{step:06d}").absolute()
        return ocp.PyTreeCheckpointer().restore(path)

    def check(self, step: int, state: Any) -> None:
        """Compare the tensors with the arrays that come back in their place."""
        saved, loaded = tensors(state), self.load(step)
        assert saved.keys() == loaded.keys(), f"{self.name}: other names"
        for name, tensor in saved.items():
            array = np.asarray(loaded[name])
            assert array.shape == tuple(tensor.shape), f"{self.name}: {name} has another shape"
            assert np.array_equal(as_bytes(tensor), as_bytes(array)), f"{self.name}: {name}"


class Restic(TorchSave):
    """restic: every checkpoint a snapshot of its torch file; deduplicates and compresses (auto)."""

    name = "restic"
    program = "restic"

    def open(self, folder: Path) -> None:
        """Create the repository, or find it again."""
        super().open(folder)
        self.repository = folder / "repository"
        self.staging = folder / "staging"
        self.staging.mkdir(exist_ok=True)
        if not self.repository.exists():
            self.call("init")

    @property
    def kept(self) -> Path:
        """The repository; the staging area and the program's cache are not kept."""
        return self.repository

    def path(self, step: int) -> Path:
        """Return the one staged file: the same name in each snapshot, as a training job has it."""
        return self.staging / "checkpoint.pt"

    def save(self, step: int, state: Any) -> None:
        """Write the file, back it up, and drop it: only the repository counts as disk used."""
        with self.path(step).open("wb") as file:
            dump(state, file)
        self.call("backup", "--tag", str(step), "checkpoint.pt")
        self.path(step).unlink()
        fsync_tree(self.repository)

    def load(self, step: int) -> Any:
        """Restore the snapshot's file and read it."""
        target = self.folder / "restored"
        self.call("restore", "latest", "--tag", str(step), "--target", str(target))
        with (target / "checkpoint.pt").open("rb") as file:
            return undump(file)

    def call(self, *arguments: str) -> None:
        """Run one restic command on the repository."""
        command = ["restic", "--quiet", "--no-cache", "--repo", str(self.repository), *arguments]
        environment = {**os.environ, "RESTIC_PASSWORD": "benchmark"}
        _run(command, self.staging, environment)


class Borg(Restic):
    """borg with zstd,1 and no encryption: every checkpoint an archive of its torch file."""

    name = "borg zstd,1"
    program = "borg"

    def save(self, step: int, state: Any) -> None:
        """Write the file, archive it, and drop it."""
        with self.path(step).open("wb") as file:
            dump(state, file)
        archive = f"{self.repository}::{step}"
        self.call("create", "--compression", "zstd,1", archive, "checkpoint.pt")
        self.path(step).unlink()
        fsync_tree(self.repository)

    def load(self, step: int) -> Any:
        """Extract the archive and read it."""
        self.call("extract", f"{self.repository}::{step}")
        with self.path(step).open("rb") as file:
            return undump(file)

    def call(self, *arguments: str) -> None:
        """Run one borg command; the repository is part of its arguments."""
        if arguments[0] == "init":
            arguments = ("init", "--encryption", "none", str(self.repository))
        home = str(self.folder / "borg")
        _run(["borg", *arguments], self.staging, {**os.environ, "BORG_BASE_DIR": home})


def dump(state: Any, file: IO[bytes]) -> None:
    """Write a torch file, or a plain pickle if there is no tensor.

    torch.save pickles with protocol 2, which swells byte strings by a fifth: unfair to peers that
    keep a booster's bytes.
    """
    if tensors(state):
        torch.save(state, file)
    else:
        pickle.dump(state, file, protocol=5)


def undump(file: IO[bytes]) -> Any:
    """Read what `dump` wrote; the files are the benchmark's own."""
    is_zip = file.read(2) == b"PK"
    file.seek(0)
    return torch.load(file, weights_only=False) if is_zip else pickle.load(file)


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed: {done.stderr.strip()}")


def _empty_like(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return torch.empty_like(tree)
    if isinstance(tree, dict):
        return {key: _empty_like(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_empty_like(value) for value in tree)
    return tree
