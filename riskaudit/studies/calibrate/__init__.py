"""``riskaudit calibrate``: intervals of stated coverage from attacks."""
