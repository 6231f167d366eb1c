"""Post-processing of results that needs no tensors: the entities of taggers."""
