"""What many samples say together: groups compared, inequality, resampling. Knows nothing of models."""
