"""One audit as shards over processes, machines and schedulers, which share nothing but a folder.

A run's folder holds ``run.json`` (what is audited and how, decided once), ``shards/`` (one file of rows per finished
shard) and ``leases/`` (who works on what). Whoever has the folder and the inputs can work; nobody talks to anybody.
What is merged in the end doesn't depend on who worked, nor on what was killed on the way.
"""
