"""casckpt for ignite: a handler that saves and resumes an Engine."""

from casckpt.adapters.ignite import Handler as Handler
