"""``riskaudit verify``: predictions against attacks."""
