"""FID: the Fréchet distance of samples and data in the features of the Inception network everybody uses, read from its file."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from mim_jax.errors import InputError
from mim_jax.evals.features import gather, put
from mim_jax.evals.fidelity import drawn, frechet, moments
from mim_jax.evals.reconstruction import display
from mim_jax.objectives.token_model import TokenModel


def fid(
    objective,
    data,
    *,
    sampler: Mapping,
    network: str,
    reference: str = '',
    samples: int = 50_000,
    batch_size: int = 100,
    seed: int = 0,
) -> Callable:
    """`params -> {'eval/fid', 'fid_reference'}` (arXiv 1706.08500) of samples of every class in turn; the latter names all it depends on.

    Args:
        sampler: see `make_sampler`, of images `make_image_sampler`.
        network: TorchScript file that gives features f32[B, D] of uint8[B, 3, H, W] when called with `return_features=True`, as
            'inception-2015-12-05.pt' of StyleGAN 3 does, which resizes by itself. It is run by torch, on the CPU.
        reference: .npz with the mean 'mu' f[D] and covariance 'sigma' f[D, D] of the features of the data. '' = those of the images
            of the validation records, of tokens and latents as they decode, which hides what they lose.
        samples: of the model.
        batch_size: of samples.
        seed: of them.

    Raises:
        InputError: no such file, not one of the kind said, no torch, or tokens that are not of images.
    """
    show = data.decode or (None if isinstance(objective, TokenModel) else display(data.mean, data.std))
    if show is None:
        raise InputError('evals.fid needs tokens that decode to images')
    field, draw = drawn(objective, data, sampler, samples, batch_size, seed)
    features, known = inception(network), None
    if reference:
        known = statistics_of(reference)

    def of_data():
        batches = []
        for batch in data.val(batch_size):
            view = data.augment(jax.random.key(0), on := put(batch, batch_size), train=False)[field]
            image, valid = gather((view, on['valid']), batch, batch_size)
            batches.append(features(show(image[valid])))
        return moments(np.concatenate(batches)), f'{sum(map(len, batches))} validation records as the model sees them'

    def evaluate(params: dict) -> dict:
        nonlocal known
        known = known or of_data()
        made, _ = draw(params, next(iter(data.val(1))))
        found = [features(show(made[i : i + batch_size])) for i in range(0, samples, batch_size)]
        told = f'{samples} samples against {known[1]}, in the features of {network}\n'
        return {'eval/fid': frechet(moments(np.concatenate(found)), known[0]), 'fid_reference': told}

    return evaluate


def inception(path: str) -> Callable:
    """`uint8[B, H, W, C] -> f64[B, D]` by the TorchScript file at `path`; grey images become three equal channels."""
    try:
        import torch
    except ImportError as error:
        raise InputError(f"evals.fid runs {path} by torch: pip install 'mim_jax[fid]'") from error
    if not Path(path).is_file():
        raise InputError(
            f'evals.fid.network={path!r} is not a file: it is to be a TorchScript of Inception, as inception-2015-12-05.pt'
        )
    try:
        network = torch.jit.load(path).eval()
    except RuntimeError as error:
        raise InputError(f'{path}: not a TorchScript file ({str(error).splitlines()[0]})') from error

    def features(images: np.ndarray) -> np.ndarray:
        images = np.broadcast_to(images, (*images.shape[:3], 3)).transpose(0, 3, 1, 2)
        with torch.inference_mode():
            return network(torch.from_numpy(images.copy()), return_features=True).numpy().astype(np.float64)

    return features


def statistics_of(path: str) -> tuple[tuple[np.ndarray, np.ndarray], str]:
    """((mean, covariance), name) from an .npz file."""
    try:
        with np.load(path) as file:
            return (file['mu'].astype(np.float64), file['sigma'].astype(np.float64)), path
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f'evals.fid.reference={path!r} is not an .npz file with mu and sigma: {error}') from error
