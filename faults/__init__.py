"""The fault campaign: damaged files, kills and wrong input against the real commands. `make faults` runs it."""
