"""Where a run's workers come from; each finds its shards by the run's folder."""
