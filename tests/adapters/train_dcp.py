"""Two processes that save with torch.distributed.checkpoint; started by torchrun.

    train_dcp.py STORE FOLDER

Each has half of a sharded tensor. They save through the writer twice and through the file system,
load again, and write what was loaded to FOLDER.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed.checkpoint as dcp
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import casckpt
import casckpt.dcp


def state(step: int, rank: int) -> dict:
    mesh = init_device_mesh("cpu", (2,))
    rows = torch.arange(40400.0).reshape(101, 400) + step + 1000000 * rank
    local = rows[:51] if rank == 0 else rows[51:]
    sharded = DTensor.from_local(local, mesh, [Shard(0)], shape=(101, 400), stride=(400, 1))
    return {
        "sharded": sharded,
        "replicated": torch.full((30, 3), float(step)),
        "nested": {"half": torch.ones(4, dtype=torch.bfloat16) * step, "count": step},
        f"rng/{rank}": torch.tensor([rank, step]),
    }


def main(path: str, folder: str) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    os.environ["CASCKPT_STORE"] = path
    with casckpt.open(path) as store:
        writer = casckpt.dcp.Writer(store, "big", metrics={"loss": 1.0})
        dcp.save(state(1, rank), storage_writer=writer)
        dcp.save(state(2, rank), storage_writer=casckpt.dcp.Writer(store, "big", 7))
        assert (writer.checkpoint is not None) == (rank == 0)
        loaded = state(0, rank)
        dcp.load(loaded, storage_reader=casckpt.dcp.Reader(store, "big@0"))
        assert torch.equal(loaded["sharded"].to_local(), state(1, rank)["sharded"].to_local())
        assert loaded["nested"]["count"] == 1
        torch.save(loaded[f"rng/{rank}"], f"{folder}/rng-{rank}.pt")
        # No adapter: DCP finds the file system by the name of its protocol.
        dcp.save(state(3, rank), checkpoint_id="casckpt://files/step3")
        other = state(0, rank)
        dcp.load(other, checkpoint_id="casckpt://files/step3")
        assert torch.equal(other["sharded"].to_local(), state(3, rank)["sharded"].to_local())
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
