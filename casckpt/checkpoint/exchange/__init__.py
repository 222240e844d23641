"""Foreign file formats: state trees from files, and to files.

`read_file` and `read_tree` believe nothing a file says about itself and run nothing in it;
`write_file` and `write_tree` write whole files or none. Nothing here knows the store.
"""

from __future__ import annotations

from casckpt.checkpoint.exchange.files import FORMATS, SUFFIXES, is_known, read_file, write_file
from casckpt.checkpoint.exchange.safetensors_tree import read_tree, write_tree
from casckpt.checkpoint.exchange.tensors import NumpyTensors, Tensors

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "NumpyTensors",
    "Tensors",
    "is_known",
    "read_file",
    "read_tree",
    "write_file",
    "write_tree",
]
