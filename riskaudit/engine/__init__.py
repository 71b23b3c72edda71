"""Where trials run, and the journal of those that are finished."""
