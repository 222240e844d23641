"""casckpt for accelerate: the state of what an Accelerator has prepared."""

from casckpt.adapters.accelerate import State as State
