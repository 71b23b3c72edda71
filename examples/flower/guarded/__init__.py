"""A Flower app with the guard; see README.md."""
