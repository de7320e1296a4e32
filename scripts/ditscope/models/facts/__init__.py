"""What cannot be found of a transformer or a pipeline of diffusers: a module for each class, with a `FACTS`.

`models.structure` finds the rest. A class without a module here has nothing that must be told.
"""
