"""Questions asked of a model by experiment: a folder each, whose ``run`` makes a record of model, data and settings."""
