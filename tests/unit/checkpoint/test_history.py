from __future__ import annotations

import math

from casckpt.checkpoint.history import history_of


def test_a_series_per_metric_in_order_of_steps(make_checkpoint):
    line = [
        make_checkpoint(step=1, metrics={"loss": 3.0}),
        make_checkpoint(step=2, metrics={"loss": math.nan, "acc": 0.5}),
        make_checkpoint(step=3),
        make_checkpoint(step=4, batch=1, metrics={"acc": 0.6}),
        make_checkpoint(step=4, batch=9, metrics={"acc": 0.7}),
    ]
    found = history_of(line)
    assert list(found) == ["loss", "acc"]
    assert found["acc"] == [(2, 0.5), (4, 0.7)]
    assert found["loss"][0] == (1, 3.0)
    assert math.isnan(found["loss"][1][1])
    assert history_of([]) == {}
