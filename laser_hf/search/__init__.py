"""Search over options of `train.py`: train every point, score its last layer, tell which is best.

`python -m laser_hf.search` is the command. `space` reads what is varied, `options` checks it against `train.py`,
`score` defines what a point is worth, `plan` ties these together and tells a changed search from the same one,
`study` shares the points among processes, `owner` tells which of these are alive, `run` is the loop, `worker` the
process that trains and scores one run, `report` and `figure` write what came out.
"""

from .errors import SearchError

__all__ = ["SearchError"]
