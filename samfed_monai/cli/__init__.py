"""The ``samfed`` commands, mostly one per file: ``add_<name>_parser`` adds the command, ``run`` executes it.

Torch, MONAI and most of the package are imported only inside ``run``, so that ``samfed --help`` is fast.
"""
