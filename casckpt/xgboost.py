"""casckpt for xgboost: exact training, and a callback."""

from casckpt.adapters.xgboost import Callback as Callback
from casckpt.adapters.xgboost import model as model
from casckpt.adapters.xgboost import rounds as rounds
from casckpt.adapters.xgboost import train as train
