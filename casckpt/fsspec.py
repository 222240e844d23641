"""casckpt for fsspec: a store as a file system, `casckpt://RUN/PATH`."""

from casckpt.adapters.fsspec import CasckptFileSystem as CasckptFileSystem
