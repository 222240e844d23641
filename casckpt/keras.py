"""casckpt for Keras 3 on torch: a callback that saves and resumes `fit`."""

from casckpt.adapters.keras import Callback as Callback
