"""casckpt for torch: the state of a training loop."""

from casckpt.adapters.torch_state import State as State
