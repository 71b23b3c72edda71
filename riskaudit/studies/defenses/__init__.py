"""``riskaudit study defenses``: what a defence costs in training, and what it protects."""
