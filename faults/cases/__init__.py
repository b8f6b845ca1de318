"""One module a kind of fault; each has `FAULTS`, and `KILLS` where commands are killed."""
