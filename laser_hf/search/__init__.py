"""Search over options of `train.py`: train every point, score its last layer, tell which is best.

`plan` says what is searched, `score` what a point is worth, `study` trains, `report` tells; `__main__` is the command.
"""
