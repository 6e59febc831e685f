"""A tiny workdir whose files the tests replace."""

import pickle

import numpy as np
import torch
import yaml
from conftest import quiet

from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.workdir import open_workdir

BOX, ZDIM = 8, 3


def plain_config(ctf=None):
    """config.yaml of a small `cryodrgn train_vae`."""
    return {
        "cmd": ["cryodrgn", "train_vae", "particles.mrcs"],
        "dataset_args": {
            "ctf": ctf,
            "ind": None,
            "invert_data": True,
            "norm": [0.0, 1.5],
            "particles": "particles.mrcs",
            "poses": "poses.pkl",
        },
        "lattice_args": {"D": BOX + 1, "extent": 0.5, "ignore_DC": True},
        "model_args": {
            "activation": "relu",
            "domain": "fourier",
            "enc_mask": 4,
            "encode_mode": "resid",
            "feat_sigma": 0.5,
            "pdim": 6,
            "pe_dim": 2,
            "pe_type": "gaussian",
            "players": 1,
            "qdim": 5,
            "qlayers": 1,
            "tilt_params": {},
            "zdim": ZDIM,
        },
        "seed": 0,
        "version": "4.3.1",
    }


def plain_workdir(folder, ctf=None):
    """A train_vae workdir with random weights, epoch 1."""
    config = plain_config(ctf)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    z = np.random.default_rng(0).standard_normal((12, ZDIM)).astype(np.float32)
    (folder / "z.1.pkl").write_bytes(pickle.dumps(z) + pickle.dumps(-z))
    if ctf:
        (folder / ctf).write_bytes(pickle.dumps(np.tile([8.0, 2.0], (12, 1))))
    with quiet():
        from cryodrgn import models

        torch.manual_seed(0)
        model, _ = models.HetOnlyVAE.load(config, device=torch.device("cpu"))
    torch.save({"epoch": 1, "model_state_dict": model.state_dict()}, folder / "weights.1.pkl")
    return _decoded_once(folder)


def abinit_workdir(folder):
    """A workdir of `cryodrgn abinit` (DRGN-AI) with random weights, epoch 1."""
    config = {
        "data_norm_mean": 0.0,
        "data_norm_std": 1.5,
        "dataset_args": {"ctf": None, "ind": None, "particles": "particles.mrcs"},
        "lattice_args": {"D": BOX + 1, "extent": 0.5, "ignore_DC": True},
        "model_args": {"domain": "hartley", "zdim": ZDIM},
        "training": {},
        "version": "4.3.1",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    z = np.random.default_rng(0).standard_normal((12, ZDIM))
    (folder / "z.1.pkl").write_bytes(pickle.dumps(z))
    params = {"resolution": BOX + 1, "z_dim": ZDIM, "n_layers": 1, "hidden_dim": 5}
    params |= {"pe_type": "gaussian", "pe_dim": 2, "feat_sigma": 0.5, "domain": "hartley"}
    with quiet():
        from cryodrgn.models_ai import HyperVolume

        torch.manual_seed(0)
        state = HyperVolume(**params, pe_type_conf=None).state_dict()
    checkpoint = {
        "epoch": 1,
        "hypervolume_state_dict": state,
        "hypervolume_params": {**params, "pe_type_conf": None},
        "output_mask_radius": BOX // 2,
    }
    torch.save(checkpoint, folder / "weights.1.pkl")
    return _decoded_once(folder)


def _decoded_once(folder):
    """So that what is imported late has been imported."""
    workdir = open_workdir(folder)
    Decoder.from_workdir(workdir, "cpu").decode(workdir.latents[:1])
    return folder
