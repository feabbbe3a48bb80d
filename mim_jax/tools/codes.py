"""Images as the codes that a trained autoencoder makes of them."""

import numpy as np

from mim_jax.autoencoder import Autoencoder
from mim_jax.data import Source, one_pass
from mim_jax.data.sources import Record


class Codes(Source):
    """The codes of all images of another source, made at once and kept; what cannot be read is `skipped`.

    Args:
        source: images, with their labels.
        codec: makes the codes.
        flips: after each image comes its mirror image.
        batch_size: images that are encoded at once.
    """

    def __init__(self, source: Source, codec: Autoencoder, flips: bool = False, batch_size: int = 256):
        self.source, self.num_classes, self.class_names = source, source.num_classes, source.class_names
        ids, labels, valid, self.skipped = [], [], [], []
        for batch, report in one_pass(source, codec.reader, batch_size=batch_size):
            views = [np.asarray(codec.encode(batch, flip=flip)) for flip in (False, True)[: 1 + flips]]
            ids.append(np.stack(views, 1)[batch['valid']])
            labels.append(batch['label'][batch['valid']])
            valid.append(batch['valid'])
            self.skipped.extend(report.bad)
        self.ids = np.concatenate(ids).astype(np.min_scalar_type(codec.vocab - 1))  # [n, views, h, w]
        self.labels, self.rows = np.concatenate(labels), np.flatnonzero(np.concatenate(valid))

    def __len__(self) -> int:
        return self.ids.shape[0] * self.ids.shape[1]

    def __getitem__(self, index: int) -> Record:
        image, view = divmod(index, self.ids.shape[1])
        return Record(self.name(index), self.ids[image, view], int(self.labels[image]))

    def name(self, index: int) -> str:
        image, view = divmod(index, self.ids.shape[1])
        return self.source.name(int(self.rows[image])) + ' mirrored' * view
