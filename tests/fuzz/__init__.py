"""Fuzzing of everything that reads a file or a text of unknown origin.

targets    a function a parser, bytes -> None, that raises if the parser breaks its word
shared     which errors may pass, files in memory, checksums made right
mutations  how an input is changed: its bytes, its JSON, its parts
make_seeds writes seeds/TARGET/, small sound inputs; beside them, broke-*, which once broke a parser
run        atheris on one target: python tests/fuzz/run.py npz --seconds 600
"""
