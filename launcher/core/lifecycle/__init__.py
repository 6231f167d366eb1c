"""The state machines of served instances and of the programs of ``launch run``."""
