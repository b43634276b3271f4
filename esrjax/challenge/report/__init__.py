"""HTML report of a ranking: table, plots and image comparison in one self-contained page."""
