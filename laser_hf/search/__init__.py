"""Search over options of `train.py`: train every point, score its last layer, tell which is best.

`python -m laser_hf.search` is the command. `space` reads what is varied, `plan` ties it to what is fixed and checks
both against `train.py`, `score` defines what a point is worth, `study` shares the points among processes, `worker` is
the process that trains and scores one point, `report` writes table, record and picture.
"""
