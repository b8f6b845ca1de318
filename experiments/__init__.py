"""Evidence on real speech: what was run (`plan`), running it (`run`), its records (`collect`) and tables (`render`)."""
