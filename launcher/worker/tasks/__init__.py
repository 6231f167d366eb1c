"""How a task reduces what the encoder gives to the result of each item, in fp32, so that no hidden state leaves
the worker."""
