"""``torch.export`` programs (``.pt2``), read without torch's own loader and run operator by operator."""
