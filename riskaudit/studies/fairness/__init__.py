"""``riskaudit study fairness``: on whom the leak falls."""
