"""The report of a run: figures, one html page, a notebook; all from saved results."""
