"""The guard inside training frameworks: one file each, which imports its framework and nobody else's.

``pip install "riskaudit[flower]"`` for riskaudit.integrations.flower, ``pip install "riskaudit[nvflare]"`` for
riskaudit.integrations.nvflare.
"""
