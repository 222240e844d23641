"""casckpt for transformers: a callback that saves, and the folder to resume from."""

from casckpt.adapters.transformers import Callback as Callback
from casckpt.adapters.transformers import resume_dir as resume_dir
