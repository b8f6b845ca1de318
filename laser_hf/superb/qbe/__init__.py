"""Query by example: rank spoken documents by how well a spoken word aligns with some part of them.

The matching is SUPERB's (S3PRL `quesst14_dtw`, as LASER and SCORE report it): frames of one hidden layer, normalised
over all frames of all queries and documents; exponential cosine distance; every query frame's distances to a document
scaled to [0, 1]; asymmetric dynamic time warping with open begin and open end. Nothing is trained.
"""
