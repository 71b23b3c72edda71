"""The guard inside training frameworks: one file each, imported only by who uses that framework."""
