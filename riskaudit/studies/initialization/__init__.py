"""``riskaudit study initialization``: which first weights leak least."""
