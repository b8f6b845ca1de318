"""Search over options of `laser-hf train`: train every point, score its last layer, tell which is best.

`plan` says what is searched, `score` what a point is worth, `study` trains, `report` tells; `__main__` is the command.
"""
