"""Named scenarios, and for each rule the scenario that shows why it is there."""

from __future__ import annotations

from dataclasses import replace

from .rules import PLAIN_LAYOUT, Bounds

# Two saves of the same new chunk Z: the second keeps the first one's row.
SAME_CHUNK = (("M0", ("X",)), ("M1", ("Y",)), ("s0", ("W", "Z")), ("s1", ("Z",)))
# A list L names Y; L and Y lie in different packs, so that Y can go and L stay as garbage.
LISTS = (("L", ("Y",)), ("M0", ("X",)), ("M1", ("L",)), ("s0", ("L",)), ("s1", ("Z",)))
LISTS_LAYOUT = ((("X", ""), ("L", ""), ("M0", "")), (("Y", ""), ("M1", "")))
# Manifests and chunks in packs of their own: a manifest can outlive what it names.
APART_LAYOUT = ((("M0", ""),), (("X", ""), ("Y", ""), ("M1", "")))
# X on W, and two more chunks that W may be moved on.
CHAINED = (("M0", ("V", "W", "Y")), ("M1", ("X",)), ("s0", ("Y",)), ("s1", ("Z",)))
CHAINED_LAYOUT = ((("V", ""), ("W", ""), ("Y", ""), ("M0", "")), (("X", "W"), ("M1", "")))

SCENARIOS: dict[str, Bounds] = {
    # Two savers, each hit, miss and base choice, rm of everything, one gc, deaths.
    "savers": Bounds(savers=(0, 1), removable=("M0", "M1"), seal=True),
    # One saver beside two gc runs that also move and re-base.
    "compaction": Bounds(
        savers=(1,), removable=("M0",), cycles=2, copies=1, seal=True, rebuild_check=False
    ),
    # A restore and an undelete beside two compacting runs.
    "reader": Bounds(removable=("M0", "M1"), undelete=True, reader="M1", cycles=2, copies=1),
    # Session locks vanish: the floor and the open-pack rule no longer protect the saver.
    "lost locks": Bounds(savers=(0,), removable=("M0", "M1"), cycles=2, lost_locks=True),
    "lost locks, new chunk": Bounds(savers=(1,), removable=("M0",), cycles=2, lost_locks=True),
    # The index transactions of large saves come in batches.
    "batches": Bounds(refs=SAME_CHUNK, savers=(0, 1), bases=(), batch=True, seal=True),
    "purge in batches": Bounds(savers=(0,), removable=("M0", "M1"), batch=True),
    # Two saves in one process share a session.
    "one process": Bounds(savers=(0, 1), removable=("M1",), one_process=True, seal=True),
    # gc.lock is lost: two collectors run beside a saver, or both compact.
    "two collectors": Bounds(
        savers=(0,), removable=("M0", "M1"), collectors=2, kills=False, rebuild_check=False
    ),
    "two compactors": Bounds(
        layout=PLAIN_LAYOUT, removable=("M0",), collectors=2, copies=1, rebuild_check=False
    ),
    # One run plans two moves before it repoints the first.
    "planned moves": Bounds(layout=PLAIN_LAYOUT, removable=("M0",), cycles=2, copies=2),
    # `compact` turns a chain round: it plans on its own earlier moves, and marks again after them.
    "turned chains": Bounds(
        removable=("M0", "M1"),
        reader="M1",
        cycles=2,
        copies=2,
        turns=True,
        remarks=True,
        kills=False,
        rebuild_check=False,
    ),
    "turned beside a save": Bounds(
        savers=(1,), removable=("M1",), copies=2, turns=True, remarks=True, seal=True
    ),
    # Chains have an end: one link under a save's delta, two after a move.
    "long chains": Bounds(
        refs=CHAINED,
        layout=CHAINED_LAYOUT,
        savers=(1,),
        bases=("V", "W", "X", "Y"),
        cycles=2,
        copies=1,
        turns=True,
        remarks=True,
        links=(1, 2),
        kills=False,
        rebuild_check=False,
    ),
    # A chunk moves again whenever a reader has looked it up.
    "chased reader": Bounds(
        layout=(((("X", ""), ("M0", ""), ("M1", ""))), (("Y", ""),)),
        reader="M1",
        bases=(),
        cycles=4,
        copies=1,
        kills=False,
    ),
    # A row is repointed at another copy of its record.
    "repair": Bounds(removable=("M0",), cycles=2, copies=1, repair=True),
    # A saver takes a chunk that it has found damaged for missing, and replaces its row.
    "stored anew": Bounds(
        savers=(0, 1), removable=("M1",), bases=("X",), distrust=True, seal=True, kills=False
    ),
    "stored anew beside moves": Bounds(
        savers=(0,), removable=("M0",), cycles=2, copies=1, distrust=True, rebuild_check=False
    ),
    # Blobs of more than one chunk.
    "lists": Bounds(
        refs=LISTS,
        layout=LISTS_LAYOUT,
        savers=(0,),
        removable=("M0", "M1"),
        cycles=2,
        lost_locks=True,
    ),
    # Replaced checkpoints leave no trash; their facts lie in packs that die; files go one by one.
    "facts": Bounds(
        layout=APART_LAYOUT,
        savers=(0,),
        removable=("s0", "M1"),
        rolling=("M0",),
        facts=True,
        cycles=2,
        unlink_each=True,
    ),
    # Bytes above the last fdatasync vanish with every process.
    "power loss": Bounds(
        savers=(0, 1), removable=("M0", "M1"), seal=True, facts=True, power_loss=True, kills=False
    ),
    # The index is lost and rebuilt while things are half done; saves and gc go on after it.
    "rebuild": Bounds(savers=(0, 1), removable=("M1",), facts=True, unlink_each=True, rebuilds=1),
    # One saver with its locks: what the floor and the open-pack rule are good for.
    "lone saver": Bounds(savers=(0,), removable=("M0", "M1"), cycles=2, seal=True),
}


def _small(name: str, **changes: object) -> Bounds:
    """Give a scenario with less in it; for the short form."""
    return replace(SCENARIOS[name], **changes)  # type: ignore[arg-type]


SHORT: dict[str, Bounds] = {
    "savers": _small("savers", kills=False, seal=False, removable=("M1",)),
    "reader": _small("reader", removable=("M0",), kills=False),
    "lost locks": _small("lost locks", cycles=1),
    "batches": SCENARIOS["batches"],
    "two compactors": _small("two compactors", kills=False),
    "stored anew": _small("stored anew", savers=(0,)),
    "lists": _small("lists", lost_locks=False),
    "facts": _small("facts", cycles=1),
    "power loss": _small("power loss", savers=(0,)),
    "turned chains": _small("turned chains", removable=(), cycles=1),
    "long chains": _small("long chains", cycles=1),
    "rebuild": _small("rebuild", savers=(0,), cycles=1, unlink_each=False),
}
