"""Search over options of `train.py`: train every point, score its last layer, tell which is best.

`python -m laser_hf.search` is the command. `plan` says what is varied and what holds for every point, `score` what a
point is worth, `study` shares the points among processes and trains them, `report` makes table, record and picture.
"""
