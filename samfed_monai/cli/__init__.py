"""One file per ``samfed`` command: ``add_<name>_parser`` says what it takes, ``run`` does it and returns an exit code.

These files import torch, MONAI and the rooms of the package only inside ``run``, so that ``samfed --help`` is quick.
"""
