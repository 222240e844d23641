"""Each rule switched off, where to look for the harm, and whether there is any.

A model that finds nothing proves nothing until it is shown to find what is there. So every rule
has a mutant here, those included whose loss the model cannot punish, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .rules import Model, Rules
from .scenarios import SCENARIOS


@dataclass(frozen=True)
class Mutant:
    """The protocol without some rules, in the scenario where that shows."""

    off: tuple[str, ...]
    scenario: str
    violated: bool = True
    why_not: str = ""

    @property
    def name(self) -> str:
        """The rules that are off."""
        return " + ".join(self.off)

    def model(self) -> Model:
        """Give the model without these rules."""
        rules = replace(Rules(), **dict.fromkeys(self.off, False))
        return Model(rules, SCENARIOS[self.scenario])


PROGRESS = "costs work, not data: late misses, packs condemned and brought back"
FENCED = "the fence keeps out whoever could move the row in between"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(("whole_chain_usable",), "savers"),
    Mutant(("pack_state_decides",), "purge in batches"),
    Mutant(("revive_rechecks",), "savers"),
    Mutant(("list_hit_alone",), "lists"),
    Mutant(("row_before_file",), "lost locks"),
    Mutant(("sync_before_index",), "power loss"),
    Mutant(("own_pack_checked",), "lost locks"),
    Mutant(("own_pack_set_live", "kept_rows_set_live"), "batches"),
    Mutant(("own_pack_set_live",), "batches", False, "kept_rows_set_live does the same"),
    Mutant(("kept_rows_set_live",), "batches", False, "own_pack_set_live does the same"),
    Mutant(("replace_unusable",), "savers"),
    Mutant(
        ("base_checked_at_index",),
        "lost locks, new chunk",
        False,
        "the commit check finds the hole; the rule saves the late miss and bounds the depth",
    ),
    Mutant(("anew_fences",), "stored anew beside moves"),
    Mutant(("commit_check",), "savers"),
    Mutant(("commit_epoch_again",), "lost locks"),
    Mutant(("commit_sets_live",), "savers"),
    Mutant(("commit_checks_manifest",), "savers"),
    Mutant(("own_lease",), "one process"),
    Mutant(("reader_retries",), "reader"),
    Mutant(("reader_from_top",), "reader"),
    Mutant(("corrupt_needs_same_place",), "chased reader"),
    Mutant(("undelete_needs_trash",), "reader"),
    Mutant(("fence",), "two compactors"),
    Mutant(("repair_is_collector",), "repair"),
    Mutant(("expire_before_mark",), "reader"),
    Mutant(("manifests_are_objects",), "savers"),
    Mutant(("known_at_mark",), "compaction"),
    Mutant(("extend_mark",), "savers"),
    Mutant(("skip_open_packs",), "lone saver", False, PROGRESS),
    Mutant(("floor",), "lone saver", False, PROGRESS),
    Mutant(("drop_before_unlink",), "savers"),
    Mutant(("base_marked",), "compaction"),
    Mutant(("repoint_checks_chain",), "planned moves"),
    Mutant(("repoint_compares",), "two compactors", False, FENCED),
    Mutant(("repoint_checks_pack",), "two compactors", False, FENCED),
    Mutant(("repoint_sets_live",), "planned moves", False, "marked packs and new ones stay live"),
    Mutant(("repoint_bounds_chain",), "long chains"),
    Mutant(("repoint_bounds_above",), "long chains"),
    Mutant(("marks_again",), "turned chains", False, "what was a base only goes one run later"),
    Mutant(("tombstone_facts",), "facts"),
    Mutant(("facts_survive",), "facts"),
    Mutant(("decode_order",), "reader"),
    Mutant(("recovered",), "facts"),
    Mutant(("recovered_whole",), "rebuild"),
    Mutant(("rebuild_exclusive",), "rebuild"),
)
