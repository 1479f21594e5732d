"""Data sets: MNIST, Fashion-MNIST, CIFAR-10 and 8x8 digits from their official files, folders of image files, and
tensors of the user's own; and what is done to images before a net sees them."""

from __future__ import annotations

from reclra_graph.data.cifar import CIFAR_FILES, cifar10
from reclra_graph.data.digits import digits
from reclra_graph.data.folder import ImageFolder, image_folder
from reclra_graph.data.idx import CLASSES, FILES, SIDE, either, fashion_mnist, mnist, read_idx
from reclra_graph.data.images import ImageSet
from reclra_graph.data.sets import NAMED, Data, open_data
from reclra_graph.data.tensors import tensors

__all__ = [
    "CIFAR_FILES",
    "CLASSES",
    "FILES",
    "NAMED",
    "SIDE",
    "Data",
    "ImageFolder",
    "ImageSet",
    "cifar10",
    "digits",
    "either",
    "fashion_mnist",
    "image_folder",
    "mnist",
    "open_data",
    "read_idx",
    "tensors",
]
