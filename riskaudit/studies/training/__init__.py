"""``riskaudit study training``: the leak over the checkpoints of a run."""
