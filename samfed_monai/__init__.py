"""SAM-guided federated segmentation for MONAI: a re-implementation of SAM-Fed (arXiv 2511.14302).

Importing the package is cheap on purpose: torch, MONAI and SAM are imported by the modules that use them.
"""

__version__ = "0.2.0"
