"""The rules of the protocol, each a switch, and the bounds of one exploration.

A rule is on in the protocol. Switching one off gives a mutant; the model earns trust by finding
the harm that each mutant does.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rules:
    """Every switch on is the protocol as specified; the comment says where it applies."""

    # SAVE 2 and 3: look up, revive
    whole_chain_usable: bool = True  # a hit counts only if every link of its base chain is there
    pack_state_decides: bool = True  # a row in a dropped or unknown pack does not exist
    revive_rechecks: bool = True  # the reviving transaction looks at the chain again
    list_hit_alone: bool = True  # a hit on a list says nothing about its members
    # PACK and SAVE 4: write
    row_before_file: bool = True  # a pack is a row before it is a file
    sync_before_index: bool = True  # rows name only bytes below the last fdatasync
    # SAVE 5: index
    own_pack_checked: bool = True  # own pack dropped: store again in a new one
    own_pack_set_live: bool = True  # index transactions set the own pack live
    kept_rows_set_live: bool = True  # a kept row's whole chain is set live
    replace_unusable: bool = True  # an existing row wins only if it is usable
    base_checked_at_index: bool = True  # base chain whole, and without the own id
    anew_fences: bool = True  # a save that replaces a usable row takes gc_run from who has it
    # SAVE 6: commit
    commit_check: bool = True  # gc_epoch moved: every chain is looked at again
    commit_epoch_again: bool = True  # the write transaction compares the epoch of the check
    commit_sets_live: bool = True  # condemned packs that the check noted are set live
    commit_checks_manifest: bool = True  # the check covers the manifest's own row
    own_lease: bool = True  # each save compares its own lease, not its session's epoch
    # READ
    reader_retries: bool = True  # a missing file means: resolve again
    reader_from_top: bool = True  # resolve the chunk again, not only the missing link
    corrupt_needs_same_place: bool = True  # a moved chunk is looked for again, however often
    # TRASH
    undelete_needs_trash: bool = True  # a tombstone cannot be undeleted
    # GC
    fence: bool = True  # every transaction of a collector checks meta.gc_run
    repair_is_collector: bool = True  # repair takes gc.lock and gc_run
    expire_before_mark: bool = True  # trash is a root until its row is a tombstone
    manifests_are_objects: bool = True  # manifests are marked like chunks
    known_at_mark: bool = True  # packs registered after the mark are not condemned
    extend_mark: bool = True  # roots newer than the mark are marked before condemn
    skip_open_packs: bool = True  # a live session's open pack is not condemned
    floor: bool = True  # sweep only what was condemned at or before the oldest lease
    drop_before_unlink: bool = True  # a durable `dropped` precedes every unlink
    # GC 3: compaction
    base_marked: bool = True  # a new base was marked in this run
    repoint_compares: bool = True  # a row moves only if it still has the old place
    repoint_checks_pack: bool = True  # and only into a pack that was not dropped
    repoint_checks_chain: bool = True  # and only on a usable base, without a cycle
    repoint_sets_live: bool = True  # the packs of the new place are set live
    repoint_bounds_chain: bool = True  # and only if its own new chain is not too long
    repoint_bounds_above: bool = True  # ... nor that of a row built on it when the run marked
    marks_again: bool = True  # what re-encoding left without use is not taken for needed
    # GC 4 and REBUILD
    tombstone_facts: bool = True  # tombstones are durable facts before condemn
    facts_survive: bool = True  # facts are copied out of a pack before it is condemned
    decode_order: bool = True  # rebuild indexes bases first
    recovered: bool = True  # a whole manifest without a commit fact is a root
    recovered_whole: bool = True  # ... and only with everything it names
    rebuild_exclusive: bool = True  # nobody has the store open during a rebuild


Refs = tuple[tuple[str, tuple[str, ...]], ...]
Layout = tuple[tuple[tuple[str, str], ...], ...]

# M0 -> X, M1 -> Y with Y stored as a delta on X; saver 0 saves Y again, saver 1 saves a new Z.
COMMON_REFS: Refs = (("M0", ("X",)), ("M1", ("Y",)), ("s0", ("Y",)), ("s1", ("Z",)))
DELTA_LAYOUT: Layout = ((("X", ""), ("M0", "")), (("Y", "X"), ("M1", "")))
PLAIN_LAYOUT: Layout = ((("X", ""), ("M0", "")), (("Y", ""), ("M1", "")))


@dataclass(frozen=True)
class Bounds:
    """What takes part in one exploration, and how often; all that makes it finite."""

    refs: Refs = COMMON_REFS  # manifests and lists -> ids they name
    layout: Layout = DELTA_LAYOUT  # packs at the start: records as (id, base id or "")
    savers: tuple[int, ...] = ()  # savers that take part, each one save
    bases: tuple[str, ...] = ("X", "Y")  # chunks that may serve as a base of a new delta
    distrust: bool = False  # a saver may have found a chunk that it hits damaged, and store it anew
    removable: tuple[str, ...] = ()  # checkpoints that the user may remove, once each
    undelete: bool = False  # ... and undelete, once each
    reader: str = ""  # checkpoint that a reader restores
    collectors: int = 1  # more than one: gc.lock was lost
    cycles: int = 1  # gc runs (or kills) per collector
    copies: int = 0  # records that one run may move or re-base, planned before the first repoint
    turns: bool = False  # a plan may count on its own earlier moves: chains are turned round
    remarks: bool = False  # the run marks again after its moves, as `compact` does
    links: tuple[int, int] = (0, 0)  # longest chain under a save's delta, and after a move; 0: any
    repair: bool = False  # a row may be repointed at another copy, once
    kills: bool = True  # savers and collectors die at every step
    lost_locks: bool = False  # a saver's session lock may vanish
    seal: bool = False  # a saver may seal its pack after a write (else the pack stays open)
    batch: bool = False  # index and purge transactions take one row at a time
    one_process: bool = False  # the savers share one session
    rolling: tuple[str, ...] = ()  # checkpoints that saver 0's commit replaces without trash
    facts: bool = False  # SAVE 7 is a step of its own
    power_loss: bool = False  # unsynced bytes may vanish, with every process, once
    unlink_each: bool = False  # files of one run go one by one, in any order
    rebuild_check: bool = True  # what a rebuild would give is checked in every state
    rebuilds: int = 0  # rebuilds that happen as a step
    reader_tries: int = 2  # only without corrupt_needs_same_place: give up after that many


@dataclass(frozen=True, eq=False)
class Model:
    """One exploration's rules and bounds, with what follows from them computed once.

    Compared and hashed by identity, so that caches keyed by a model stay cheap.
    """

    rules: Rules = field(default_factory=Rules)
    bounds: Bounds = field(default_factory=Bounds)

    def __post_init__(self) -> None:
        """Flatten what each manifest names, members before the list that names them."""
        named = dict(self.bounds.refs)

        def below(object_id: str) -> tuple[str, ...]:
            found: list[str] = []
            for member in named.get(object_id, ()):
                found += [*below(member), member]
            return tuple(dict.fromkeys(found))

        object.__setattr__(self, "_below", {name: below(name) for name in named})
        object.__setattr__(self, "_named", named)

    def below(self, object_id: str) -> tuple[str, ...]:
        """Everything that a manifest or list names, directly or through lists."""
        members: dict[str, tuple[str, ...]] = self.__dict__["_below"]
        return members.get(object_id, ())

    def is_chunk(self, object_id: str) -> bool:
        """Only chunks are stored as deltas in this model."""
        return object_id not in self.__dict__["_named"]
