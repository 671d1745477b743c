"""Self-configuring medical image segmentation with Mamba networks.

Importing the package is cheap: neither torch nor nnunetv2 is loaded until a step needs it.
"""

__version__ = "0.1.0"
