"""Programs that train, as processes: their options, kept running, started again, rehearsed."""
