"""``riskaudit study directions``: which directions of the gradient leak."""
