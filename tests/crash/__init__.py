"""Crash, fault and power-loss tests of the store.

Every test here does the same three things: prepare a small store, run a *workload* in a child
process while a *fault* strikes, and let the *oracle* look at what is left.

    shim.c, shim.py   faults below the Python code and below LMDB, by LD_PRELOAD
    scale.py          a store in small: every limit that makes a file or a transaction end
    acks.py           what the workload was told, and so what must be there
    workloads.py      init, saves, delete, gc, rebuild, ... as children run them
    oracle.py         the invariants I1 to I8 of docs/format.md, checked after each fault
    batch.py          many looks in one child; threadless.py spares it threads of the store
    points.py         one fault at one operation: kill, kill again, errno, short write, lying flush
    replay.py         the disk that a log of operations allows after the power failed
    powerloss.py      which of those states are looked at
    blockdevice.py    a disk with a log of its writes; blocklog.py mounts what may be left
    damage.py         flipped bits and cut files
    bits.py           every bit, cut and sector of a small store
    attacks.py        stores made to harm; hostile.py uses them as a user would
    swarm.py          many processes, with kills, one store
    full.py           file systems without space or inodes
    hardship.py       no memory, stopped processes, forks, clocks
    fuzzing.py        libFuzzer on the C core
    models.py         the protocol model and the property machine, for long
    catching.py       which test notices which mutant
    mutants.py        the code without one of its rules; a test must notice
    campaign.py       single points and samples of them; repeats what was found
    rows.py           the campaign: rows that go on where they stopped, and their counts
    job.py, ledger.py what a row is given, and the file its counts are in

The tests are the short forms of the rows; `python -m tests.tasks campaign` runs the long ones and
adds its counts to bench/results/reliability. Every failure prints one line that repeats it.

What this cannot show: real power cuts, disks that lie about flushes, file systems other than the
one the tests run on, network file systems, macOS and Windows.
"""
