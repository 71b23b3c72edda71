"""How attacks search: starts, objectives, regularisers and minimisers."""
