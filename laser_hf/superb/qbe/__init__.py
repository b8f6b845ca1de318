"""Query by example, SUPERB's as S3PRL's `quesst14_dtw` has it: rank documents by how well a part of them aligns."""
