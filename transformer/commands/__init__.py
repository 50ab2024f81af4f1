"""A file for each command of the table in `__main__.py`, and what they share.

`arguments.py` has parsers and their errors, `keys.py` the keys of recipes, `recipes.py` their files
and lines, `text.py` lines in and out. Nothing else in the project imports this room.
"""
