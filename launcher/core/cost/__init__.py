"""The cost of batches: the model, its tables, and histograms of the lengths that arrive."""
