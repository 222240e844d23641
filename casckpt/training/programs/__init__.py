"""Programs that train, as processes: how they are called, kept running, started again and rehearsed."""
