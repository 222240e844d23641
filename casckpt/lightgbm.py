"""casckpt for LightGBM: exact training, and a callback."""

from casckpt.adapters.lightgbm import Callback as Callback
from casckpt.adapters.lightgbm import model as model
from casckpt.adapters.lightgbm import rounds as rounds
from casckpt.adapters.lightgbm import train as train
