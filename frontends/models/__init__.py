"""From a PyTorch model to elidir's IR: loading, capture, raising.

The only packages that import torch are this one and the backends.
"""
