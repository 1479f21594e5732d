"""Learners: a model with the way it learns, one batch at a time, behind one small protocol."""
