"""What can be said exactly of an upload, and what a received model shows: no spectrum, no attack."""
