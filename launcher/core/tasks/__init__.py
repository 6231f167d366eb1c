"""Task results that need no tensor: entities of taggers."""
