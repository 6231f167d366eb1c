"""The state machines of served instances (`worker`) and of the copies of ``launch run`` (`program`)."""
