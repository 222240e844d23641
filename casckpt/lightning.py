"""casckpt for Lightning: a callback that resumes to the bit, and the path to resume from."""

from casckpt.adapters.lightning import Callback as Callback
from casckpt.adapters.lightning import resume_path as resume_path
