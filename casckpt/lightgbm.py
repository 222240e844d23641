"""casckpt for LightGBM: exact training."""

from casckpt.adapters.lightgbm import train as train
