"""Search over options of `laser-hf train`: `plan` what is searched, `score` a point, `study` trains, `report` tells."""
