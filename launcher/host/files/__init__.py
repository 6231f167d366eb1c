"""Files that outlive a run: cost tables and length histograms."""
