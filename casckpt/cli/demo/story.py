"""What the demo does, step by step, and what it says meanwhile."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import casckpt
from casckpt.cli import formatting
from casckpt.cli.demo import equality, measures, peer, text
from casckpt.cli.demo.child import Event, Training
from casckpt.cli.output import Output
from casckpt.programs import command_of, environment_of

KILL_AFTER_EPOCH = 4
"""The kill falls somewhere into the epoch after this one, at a time drawn by chance."""


@dataclass
class Facts:
    """What was measured, in the order it came."""

    saves: list[Event] = field(default_factory=list)
    resumed_at: dict[str, int] = field(default_factory=dict)
    killed_pid: int = 0
    survived: int = 0
    differences: list[str] = field(default_factory=list)


class Story:
    """Runs the steps; says each on stdout, or on stderr where stdout is for JSON."""

    def __init__(self, output: Output, folder: Path) -> None:
        """Make the folders."""
        self.output = output
        self.store_path = folder / "store"
        self.files = folder / "files"
        self.files.mkdir()
        self.facts = Facts()
        self._chapter = 0

    def chapter(self, title: str) -> None:
        """Begin a step."""
        self._chapter += 1
        self.say()
        self.say(self.output.style(f"{self._chapter}. {title}", bold=True))

    def say(self, line: str = "") -> None:
        """Say one line."""
        if self.output.json or self.output.quiet:
            self.output.note(line)
        else:
            self.output.line(line)
            sys.stdout.flush()

    def show(self, event: Event) -> None:
        """Say what the training process tells."""
        run, step, total = event["run"], event["step"], event["total"]
        if event["event"] == "starts":
            self.facts.resumed_at[run] = step
            if step == 0:
                what = "starts from nothing"
            elif step == total:
                what = f"finished before, at {step} of {total}: skipped"
            else:
                what = f"goes on after {step} of {total}"
            parameters = event.get("parameters")
            weights = f" ({parameters:,} weights)" if parameters else ""
            self.say(f"   {run:<13} {what}{weights}")
            return
        self.facts.saves.append(event)
        place = f"{step} of {total}" if run != "demo/release" else f"from epoch {step}"
        self.say(
            f"   {run:<13} {place:<8}  val_loss {event['val_loss']:.4f}   saved "
            f"{formatting.size(event['logical_bytes'])} "
            f"({formatting.size(event['new_bytes'])} new) in {formatting.duration(event['save_s'])}"
        )

    def train_and_kill(self) -> None:
        """Start the training, and kill it in the middle of an epoch."""
        self.chapter("Train")
        epoch_s = last_s = 0.0
        with Training(self.store_path, self.files) as training:
            self.facts.killed_pid = training.pid
            events = training.events()
            for event in events:
                self.show(event)
                if event["run"] != "demo/network":
                    continue
                now_s = time.monotonic()
                epoch_s, last_s = now_s - last_s, now_s
                if event["event"] == "saved" and event["step"] == KILL_AFTER_EPOCH:
                    time.sleep(random.uniform(0.1, 0.9) * epoch_s)
                    break
            training.kill()
            for event in events:  # what it told while the demo slept was acknowledged too
                self.show(event)
        last = self.facts.saves[-1]["step"]
        self.chapter(f"kill -9 {training.pid}, while it worked on epoch {last + 1}")

    def look_at_what_survived(self) -> None:
        """Check that every acknowledged save is there, whole and equal bit for bit."""
        with casckpt.open(self.store_path, mode="r") as store:
            report = store.verify(level="bytes")
            there = {checkpoint.ref for checkpoint in store.checkpoints()}
            acknowledged = {f"{event['run']}@{event['step']}" for event in self.facts.saves}
            lost = acknowledged - there
            self.facts.survived = len(acknowledged) - len(lost)
            self.say(
                f"   acknowledged before the kill: {len(acknowledged)} checkpoints; in the store: "
                f"{len(there)}, lost: {len(lost)}"
            )
            self.say(
                f"   verify: {formatting.size(report.checked_bytes)} read and hashed, "
                f"{len(report.damaged)} damaged"
            )
            last = store.latest("demo/network")
            assert last is not None
            restored = store.restore(last)
        killed = peer.read(peer.file_of(self.files, "demo/network", last.step))
        self.facts.differences = equality.differences(restored, killed)
        tensors, size = equality.count_leaves(restored)
        same = "equal bit for bit" if not self.facts.differences else "NOT EQUAL"
        self.say(
            f"   {last.ref} against the file that the killed process wrote of the same state: "
            f"{tensors} tensors, {formatting.size(size)}, {same}"
        )
        for path in self.facts.differences:
            self.say(f"      differs: {path}")

    def go_on(self) -> None:
        """Run the same command again until it ends."""
        self.chapter("The same command again, in a new process")
        with Training(self.store_path, self.files) as training:
            for event in training.events():
                self.show(event)

    def command(self, *words: str) -> None:
        """Run casckpt itself on the store, as a user would, and show what it prints."""
        self.chapter(f"casckpt {' '.join(words)}")
        color = "always" if self.output.color else "never"
        run = subprocess.run(
            command_of("casckpt", *words, "--color", color),
            env=environment_of(CASCKPT_STORE=str(self.store_path)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        for line in run.stdout.splitlines():
            self.say(f"   {line}" if line else "")


def tell_story(output: Output, folder: Path) -> None:
    """Run the demo in an empty folder, and print what came out."""
    began_s = time.monotonic()
    story = Story(output, folder)
    _introduce(story)
    story.train_and_kill()
    story.look_at_what_survived()
    story.go_on()
    story.command("ls", "demo/network", "--best", "val_loss", "--limit", "5")
    sizes = measures.sizes(story.store_path, story.files)
    speeds = measures.speeds(story.store_path, story.files, story.facts.saves)
    story.command("gc", "--keep-last", "2", "--keep-best", "val_loss:min", "--now", "--yes")
    after = measures.store_bytes(story.store_path)
    story.chapter("What it comes to")
    for line in measures.table(sizes, speeds, after):
        story.say(f"   {line}")
    elapsed_s = time.monotonic() - began_s
    story.say()
    story.say(f"Everything above was measured in this run, in {formatting.duration(elapsed_s)}.")
    if output.json:
        output.document("demo", **_document(story.facts, sizes, speeds, after, elapsed_s))


def _introduce(story: Story) -> None:
    """Say what this machine has."""
    names = ["numpy " + _version("numpy")]
    if peer.HAS_TORCH:
        names.insert(0, "torch " + _version("torch"))
    if peer.HAS_XGBOOST:
        names.append("xgboost " + _version("xgboost"))
    story.say(
        f"{len(os.sched_getaffinity(0))} cores, {', '.join(names)}; works in "
        f"{story.store_path.parent}"
    )
    story.say(
        f"data: {formatting.size(text.TEXT_BYTES)} of the sources of Python's standard library"
    )
    if not peer.HAS_TORCH:
        story.say(
            "torch is not installed: the network is a small one in numpy, and the files "
            "beside it are pickles"
        )
    if not peer.HAS_XGBOOST:
        story.say("xgboost is not installed: no booster is trained")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version("xgboost-cpu" if package == "xgboost" and not _has(package) else package)


def _has(distribution: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _document(
    facts: Facts,
    sizes: measures.Sizes,
    speeds: measures.Speeds,
    after_bytes: int,
    elapsed_s: float,
) -> dict[str, Any]:
    """Return what was measured, for --json."""
    return {
        "elapsed_s": round(elapsed_s, 3),
        "acknowledged_before_kill": facts.survived,
        "resumed_at": facts.resumed_at,
        "restored_equals_killed": not facts.differences,
        "logical_bytes": sizes.logical_bytes,
        "stored_bytes": sizes.stored_bytes,
        "stored_after_gc_bytes": after_bytes,
        "peer": peer.NAME,
        "peer_stored_bytes": sizes.peer_bytes,
        "save_bytes_per_s": round(speeds.save_bytes_per_s),
        "peer_save_bytes_per_s": round(speeds.peer_save_bytes_per_s),
        "restore_bytes_per_s": round(speeds.restore_bytes_per_s),
        "peer_restore_bytes_per_s": round(speeds.peer_restore_bytes_per_s),
    }
