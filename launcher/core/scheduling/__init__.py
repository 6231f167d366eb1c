"""Which item goes to which instance, in which batch, and when."""
