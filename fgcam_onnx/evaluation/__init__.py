"""Metrics over a folder of pictures: which are read, what is measured, where the rows go, what they say together."""
