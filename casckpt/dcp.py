"""casckpt for torch.distributed.checkpoint: a writer and a reader, tensor by tensor."""

from casckpt.adapters.dcp import Reader as Reader
from casckpt.adapters.dcp import Writer as Writer
