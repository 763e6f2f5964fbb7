"""Fuzzing of the whole way from a file to a map.

``mutants`` makes hostile models out of honest ones, ``examine`` runs one and judges what comes back, ``pool`` does so
in processes that may die, hang or grow without harm.

Everything about a mutant follows from the name of a model and a number. One of them again, in this process:

    python tests/fuzzing/worker.py vgg 1234
"""
