"""casckpt for Optuna: studies that go on, and the runs of their trials."""

from casckpt.adapters.optuna import optimize as optimize
from casckpt.adapters.optuna import storage as storage
from casckpt.adapters.optuna import trial_run as trial_run
