"""The architecture, held by a machine: floors, homes of third-party imports, sizes of files.

A module imports only from floors below its own, or from its own package. Third-party imports have
one home each. Nothing that the runtime requires may be Rust.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "casckpt"
LINES_MAX = 450

# docs/impl.md, Floors. A prefix of a module's name decides; the longest one that fits counts.
FLOORS = {
    "casckpt.errors": 0,
    "casckpt.ids": 0,
    "casckpt.hostnotes": 0,
    "casckpt.logs": 0,
    "casckpt.programs": 0,
    "casckpt.startup": 0,
    "casckpt.strictjson": 0,
    "casckpt.supervised": 0,
    "casckpt.native": 1,
    "casckpt.store": 2,
    "casckpt.checkpoint": 3,
    "casckpt.training": 4,
    # Faces by old names, over the public Store.
    "casckpt.training.manager": 5.75,
    "casckpt.adapters": 5,
    "casckpt.api": 5.5,
    "casckpt": 5.5,
    "casckpt.cli": 6,
    "casckpt.__main__": 6.5,
}
# Faces of adapters, so that `import casckpt.torch` works.
FACES = {f"casckpt.{path.stem}" for path in (PACKAGE / "adapters").glob("[a-z]*.py")}
# Adapters that may build on torch's.
ON_TORCH = ("lightning", "transformers", "accelerate", "ignite", "keras", "dcp", "torch")

THIRD_PARTY_HOMES = {
    "lmdb": ("casckpt.store.environment", "casckpt.store.transactions"),
    "zstandard": ("casckpt.store.codec",),
    "_cffi_backend": ("casckpt.native",),
    "cffi": ("casckpt.native",),
    "numpy": ("casckpt.checkpoint", "casckpt.adapters", "casckpt.cli.demo", "casckpt.cli.torture"),
    "ml_dtypes": ("casckpt.checkpoint",),
    "h5py": ("casckpt.checkpoint.containers",),
    "fsspec": ("casckpt.adapters.fsspec",),
    "lightning": ("casckpt.adapters.lightning",),
    "transformers": ("casckpt.adapters.transformers",),
    "accelerate": ("casckpt.adapters.accelerate",),
    "ignite": ("casckpt.adapters.ignite",),
    "keras": ("casckpt.adapters.keras",),
    "torch": ("casckpt.adapters.torch", "casckpt.adapters.dcp", "casckpt.cli.demo"),
    "xgboost": ("casckpt.adapters.xgboost", "casckpt.cli.demo"),
    "lightgbm": ("casckpt.adapters.lightgbm",),
    "optuna": ("casckpt.adapters.optuna", "casckpt.cli.demo"),
    "sklearn": ("casckpt.adapters.sklearn", "casckpt.cli.demo"),
    "click": ("casckpt.cli",),
    "rich": ("casckpt.cli",),
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


MODULES = modules()


def floor_of(module: str) -> float:
    if module in FACES:
        return FLOORS["casckpt"]
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        prefix = ".".join(parts[:end])
        # The bare package is the composition root, not a home for everything below it.
        if prefix in FLOORS and (prefix != "casckpt" or module == "casckpt"):
            return FLOORS[prefix]
    raise AssertionError(f"{module} has no floor: add it to the table of floors")


def package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def imports(path: Path, module: str) -> Iterator[tuple[int, str]]:
    """Yield (line, imported module) of every import that can run, functions included."""
    tree = ast.parse(path.read_text())
    typing_only: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            typing_only.update(id(inner) for part in node.body for inner in ast.walk(part))
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in MODULES else base


def framework_of(adapter: str) -> str:
    """Return xgboost of casckpt.adapters.xgboost_parts: an adapter may be several files."""
    return adapter.removeprefix("casckpt.adapters.").partition("_")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    own = floor_of(module)
    wrong = []
    for line, target in imports(MODULES[module], module):
        if target.partition(".")[0] != "casckpt":
            continue
        there = floor_of(target)
        sideways = there == own and package_of(target) != package_of(module)
        between_adapters = (
            module.startswith("casckpt.adapters.")
            and target.startswith("casckpt.adapters.")
            and not (
                module.removeprefix("casckpt.adapters.").startswith(ON_TORCH)
                and target.startswith("casckpt.adapters.torch")
            )
            and framework_of(module) != framework_of(target)
        )
        to_top = module.startswith("casckpt.cli") and target == "casckpt"
        if there > own or between_adapters or (sideways and not to_top and own != 0):
            wrong.append(f"{module}:{line} imports {target}")
    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_third_party_imports_are_at_home(module):
    wrong = []
    for line, target in imports(MODULES[module], module):
        root = target.partition(".")[0]
        if root == "casckpt" or root in sys.stdlib_module_names:
            continue
        homes = THIRD_PARTY_HOMES.get(root, ())
        # `torch` may spread over adapters/torch.py, torchfile.py, torch_state.py and so on.
        if not any(
            module.startswith(home if "adapters" in home else f"{home}.") or module == home
            for home in homes
        ):
            wrong.append(f"{module}:{line} imports {target}")
    assert wrong == []


def test_files_stay_small():
    long = {}
    for path in sorted([*PACKAGE.rglob("*.py"), *(ROOT / "bench").rglob("*.py")]):
        lines = len(path.read_text().splitlines())
        if lines > LINES_MAX:
            long[str(path.relative_to(ROOT))] = lines
    for pattern in ("src/*.c", "src/*.h", "include/*.h"):
        for path in sorted((ROOT / "native").glob(pattern)):
            lines = len(path.read_text().splitlines())
            if lines > LINES_MAX:
                long[str(path.relative_to(ROOT))] = lines
    assert long == {}


def test_nothing_below_the_command_line_prints():
    prints = []
    for module, path in MODULES.items():
        if module.startswith("casckpt.cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "sys.stdout.write",
                "sys.stdout.buffer.write",
            ):
                prints.append(f"{module}:{node.lineno}")
    assert prints == []


# What of `os` the store may use: it asks, or has nothing to do with files. Capitals are constants.
OS_HARMLESS = {"DirEntry", "access", "cpu_count", "dup2", "eventfd", "fsencode", "fstat", "getpid",
               "nice", "register_at_fork", "strerror", "uname", "urandom"}  # fmt: skip
# Methods of Path, and functions, that change what is on a disk.
CHANGES = {"chmod", "hardlink_to", "lchmod", "link_to", "mkdir", "rename", "rmdir", "symlink_to",
           "touch", "unlink", "write_bytes", "write_text"}  # fmt: skip
ROUND_THE_SEAM = {
    ("casckpt.store.aside", "shutil"): "a copy of the index, in a folder that the store is not in",
    ("casckpt.store.aside", "tempfile"): "makes that folder",
    ("casckpt.store.aside", ".open('wb')"): "writes that copy, in a child process",
    ("casckpt.store.effort", ".unlink"): "a verify's notes of where it was, in the user's folder",
}


def ways_round_the_seam(source: str) -> set[str]:
    """Return how a module reaches the file system without `casckpt.store.files`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & {"shutil", "tempfile", "io", "posix"}
        elif isinstance(node, ast.ImportFrom):
            if node.module in ("os", "shutil", "tempfile", "io", "posix"):
                found.add(f"from {node.module}")
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner == "os" and node.attr not in OS_HARMLESS and not node.attr.isupper():
                found.add(f"os.{node.attr}")
            elif owner not in ("files", "os") and node.attr in CHANGES:
                found.add(f".{node.attr}")
        elif isinstance(node, ast.Call):
            found |= _opened(node)
    return found


def _opened(call: ast.Call) -> set[str]:
    """Return what is wrong with a call of `open`, or of a method `open` or `replace`."""
    if isinstance(call.func, ast.Name):
        return {"open"} if call.func.id == "open" else set()
    if not isinstance(call.func, ast.Attribute):
        return set()
    if call.func.attr == "replace" and len(call.args) == 1 and not call.keywords:
        return {".replace"}  # of a string takes two, of dataclasses names
    modes = [ast.unparse(one) for one in (*call.args, *(one.value for one in call.keywords))]
    writes = [mode for mode in modes if re.fullmatch(r"'[rb]*[wax+][wxab+t]*'", mode)]
    return {f".open({writes[0]})"} if call.func.attr == "open" and writes else set()


def test_file_system_calls_of_the_store_are_in_one_module():
    """Faults are injected at one seam, so no other module of the store may go round it."""
    found = {
        (module, way)
        for module, path in MODULES.items()
        if module.startswith("casckpt.store.") and module != "casckpt.store.files"
        for way in ways_round_the_seam(path.read_text())
    }
    assert found == ROUND_THE_SEAM.keys()


@pytest.mark.parametrize(
    "line",
    ["os.unlink(p)", "os.link(p, q)", "os.makedirs(p)", "p.unlink()", "p.rename(q)", "f = p.rmdir",
     "p.replace(q)", "p.write_bytes(b)", "open(p)", "p.open('r+b')", "p.open(mode='a')",
     "import shutil", "from os import unlink", "self._path.touch()"],
)  # fmt: skip
def test_a_way_round_the_seam_is_seen(line):
    assert ways_round_the_seam(line)


@pytest.mark.parametrize(
    "line",
    ["files.unlink(p)", "text.replace('a', 'b')", "dataclasses.replace(row, state=1)",
     "p.open('rb')", "os.getpid()", "os.O_RDONLY",
     "lmdb.open(str(p))"],
)  # fmt: skip
def test_what_changes_no_file_is_no_way_round(line):
    assert not ways_round_the_seam(line)


def test_the_generator_of_the_user_is_never_drawn_from():
    # A wait that draws changes what a training draws next. The command line is its own process.
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not path.is_relative_to(PACKAGE / "cli")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
        and node.attr not in ("Random", "SystemRandom", "getstate", "setstate")
    ]
    assert found == []


def test_pickle_is_loaded_in_one_place_only():
    """Only what `allow_pickle=True` guards may unpickle; torch files go through our own machine."""
    places = set()
    for module, path in MODULES.items():
        if module.startswith("casckpt.cli.demo"):
            continue  # what casckpt is compared with reads its own files with pickle
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name.endswith(("pickle.load", "pickle.loads", "Unpickler")):
                    places.add(module)
    assert places == {"casckpt.checkpoint.leaves"}


# ---- what is loaded when


def loaded_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nsys.stderr.write(' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


FRAMEWORKS = {"torch", "xgboost", "lightgbm", "optuna", "lightning", "transformers", "sklearn",
              "keras", "accelerate", "ignite", "fsspec"}  # fmt: skip


def test_importing_casckpt_loads_nothing_heavy():
    loaded = loaded_after("import casckpt")
    assert not loaded & (FRAMEWORKS | {"numpy", "lmdb", "zstandard", "click", "rich"})
    assert {name for name in loaded if name.startswith("casckpt")} == {"casckpt", "casckpt.startup"}


def test_the_public_names_load_no_framework():
    loaded = loaded_after("import casckpt\nfor name in casckpt.__all__: getattr(casckpt, name)")
    assert not loaded & (FRAMEWORKS | {"numpy", "click", "rich"})


def test_ls_loads_neither_numpy_nor_rich(tmp_path):
    import casckpt

    with casckpt.open(tmp_path / "s") as store:
        store.save("r", {"v": 1}, metrics={"loss": 1.0})
    loaded = loaded_after(
        "import sys\n"
        f"sys.argv = ['casckpt', 'ls', '--store', {str(tmp_path / 's')!r}]\n"
        "from casckpt.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    )
    assert not loaded & (FRAMEWORKS | {"numpy", "rich"})
    assert "casckpt.checkpoint.queries" in loaded


# ---- what is required


def requirement_name(requirement: str) -> str:
    return re.split(r"[\s\[;<>=!~(]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def runtime_requirements() -> set[str]:
    """Return the core's requirements and theirs, as installed here; extras are not followed."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    waiting = [requirement_name(line) for line in document["project"]["dependencies"]]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            marker = line.partition(";")[2]
            if "extra ==" not in marker and "win32" not in marker and "Windows" not in marker:
                waiting.append(requirement_name(line))
    return found


def test_the_runtime_holds_no_rust():
    rust = []
    for name in sorted(runtime_requirements()):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a requirement of another platform
        for file in distribution.files or ():
            if re.search(r"\.so(\.\d+)*$", file.name):
                data = Path(str(file.locate())).read_bytes()
                if b"rustc" in data or b"/rust/" in data or b"cargo/registry" in data:
                    rust.append(f"{name}: {file}")
    assert rust == []


def test_the_core_requires_what_the_design_names():
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = {requirement_name(line) for line in document["project"]["dependencies"]}
    assert names == {"numpy", "lmdb", "zstandard", "cffi", "click", "rich"}


def test_the_version_is_one():
    import casckpt

    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert casckpt.__version__ == document["project"]["version"]
