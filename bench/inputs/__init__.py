"""What the benchmarks store: a trained transformer, a growing booster, a study, synthetic."""
