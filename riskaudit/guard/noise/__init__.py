"""The noise on updates: how it is drawn, whether it has its law, is fresh in every entry, and new in every round."""
