"""Training over a mesh of ranks: the weights, gate and statistics of one process."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sae_lens_sparsemax import SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.attention import selection
from sae_lens_sparsemax.sae import dictionaries
from tests.support.ranks import ALL_MEMBERS, on_ranks
from tests.support.small_sae import step_input

WIDTH, N_CONCEPTS, BATCH = 12, 101, 48
STEPS = 30 if "TRIAL_RANKS" in os.environ else 12
VARIANTS = {
    "default": {},
    "floors of concepts": {"floor_of": "concept"},
    "sparsemax": {"alpha": 2.0, "passes": 1, "refinements": 0, "activation_floor": 0.0},
    "top k": {"alpha": float("inf"), "gate_scale": 0.1},
    "three passes": {"passes": 3, "activation_floor": 0.0},
    "mlp": {"structure": "mlp", "query_projection": False, "apply_b_dec_to_input": False},
    "probabilities": {"activations": "probabilities", "target_l0": None, "l1_coefficient": 0.1},
    "biases": {"encoder_bias": True},
    "raw queries": {"unit_norm_query": False, "loss_weighting": "inverse_norm"},
}
MESHES, LONG = ["2x2"], ["default", "mlp", "biases", "probabilities"]
if ALL_MEMBERS:
    MESHES, LONG = [*MESHES, "2x1", "1x2", "1x3", "1x4", "3x1"], list(VARIANTS)


def batches():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(150, WIDTH, generator=draw, dtype=torch.float64)
    while True:
        active = torch.rand(BATCH, 150, generator=draw, dtype=torch.float64)
        yield torch.where(active < 0.03, 30 * active, 0) @ features + 0.3


def new_sae(variant: str) -> SparsemaxTrainingSAE:
    settings = {"d_in": WIDTH, "d_sae": N_CONCEPTS, "dtype": "float64", "target_l0": 6.0, "target_l0_rate": 0.1}
    torch.manual_seed(0)
    return SparsemaxTrainingSAE(SparsemaxTrainingSAEConfig(**settings | VARIANTS[variant]))


def trainer_of(sae: SparsemaxTrainingSAE, size: int) -> SAETrainer:
    cfg = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=BATCH * STEPS,
        device="cpu",
        autocast=False,
        lr=3e-3,
        lr_end=3e-4,
        lr_scheduler_name="cosineannealing",
        lr_warm_up_steps=5,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=BATCH,
        dead_feature_window=5,
        feature_sampling_window=1000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    rank = dist.get_rank() if size > 1 else 0
    own = (batch[rank * BATCH // size :][: BATCH // size] for batch in batches())
    trainer = SAETrainer(cfg=cfg, sae=sae, data_provider=own)
    for group in trainer.optimizer.param_groups:
        group["fused"], group["foreach"] = True, False
    return trainer


def advance(trainer: SAETrainer) -> list:
    outputs = []
    for _ in range(STEPS):
        output = trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
        outputs.append(replace(output, sae_in=output.sae_in.detach(), sae_out=output.sae_out.detach()))
    return outputs


def train_like_one_process(shape: tuple[int, int], variants: list[str]) -> None:
    selection.MAX_SPARSE_DENSITY["cpu"] = 1.0
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "concepts"))
    for variant in variants:
        one, many = trainer_of(new_sae(variant), 1), trainer_of(new_sae(variant), dist.get_world_size())
        many.sae.shard(mesh)
        many = trainer_of(many.sae, dist.get_world_size())  # whose optimizer has the sharded parameters
        expected, found = advance(one), advance(many)
        for step, (of_one, of_many) in enumerate(zip(expected, found, strict=True)):
            where = f"{variant}, step {step}"
            torch.testing.assert_close(of_many.loss, of_one.loss, rtol=1e-6, atol=1e-6, msg=where)
            for name in ("l0_p5", "l0_p95"):
                assert of_many.metrics[name]() == of_one.metrics[name](), where
        assert many.sae.gate_scale == pytest.approx(one.sae.gate_scale, rel=1e-12)
        whole = many.sae.whole()
        weights = one.sae.state_dict()
        for name, tensor in whole.state_dict().items():
            torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-10, msg=f"{variant}: {name}")
        fired, since = many.act_freq_scores.clone(), many.n_forward_passes_since_fired.clone()
        dist.all_reduce(fired)
        dist.all_reduce(since, dist.ReduceOp.MIN)
        assert torch.equal(fired, one.act_freq_scores), variant
        assert torch.equal(since, one.n_forward_passes_since_fired), variant
        x = next(batches())
        with torch.no_grad():
            torch.testing.assert_close(whole.eval()(x), one.sae.eval()(x), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("mesh", ["1x2"])
def test_steps_end_with_the_weights_of_one_process(mesh):
    shape = tuple(map(int, mesh.split("x")))
    on_ranks(shape[0] * shape[1], train_like_one_process, shape, ["default"])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_steps_of_variants_end_with_the_weights_of_one_process(mesh):
    shape = tuple(map(int, mesh.split("x")))
    on_ranks(shape[0] * shape[1], train_like_one_process, shape, LONG)


def made_like_one_process(shape: tuple[int, int], folder: Path) -> int:
    """Compares SAEs drawn over ranks, in many pieces, or read, with whole ones; returns the rows that this rank has."""
    mesh, most = init_device_mesh("cpu", shape, mesh_dim_names=("data", "concepts")), 0
    dictionaries._NUMBERS_OF_A_PIECE = 64
    for settings in ({}, {"structure": "mlp"}, {"dtype": "bfloat16", "decoder_init_norm": 0.5}):
        for width, n_concepts in ((12, 101), (1, 17), (3, 4)):
            cfg = SparsemaxTrainingSAEConfig(d_in=width, d_sae=n_concepts, target_l0=1.0, **settings)
            torch.manual_seed(3)
            one, state = SparsemaxTrainingSAE(cfg), torch.get_rng_state()
            torch.manual_seed(3)
            with mesh:
                many = SparsemaxTrainingSAE(cfg)
            assert torch.equal(torch.get_rng_state(), state)
            most = max(most, *(len(p.to_local()) for p in many.parameters() if p.shape[0] == 101), 0)
            with mesh:
                one.save_model(folder / str(dist.get_rank()))
                read = TrainingSAE.load_from_disk(folder / str(dist.get_rank()))
            read.divide(mesh)
            for each in (many, read):
                each.shard(mesh)
            for again in (many.whole(), many.assembled(), read.assembled()):
                if again.mesh is None:
                    assert again.cfg.to_dict() == one.cfg.to_dict()
                    for name, tensor in again.state_dict().items():
                        expected = one.state_dict()[name]
                        assert torch.equal(tensor, expected) and tensor.stride() == expected.stride(), (cfg, name)
    return most


@pytest.mark.parametrize("mesh", ["2x2"])
def test_ranks_draw_or_read_their_rows_of_the_sae_of_one_process_and_the_first_one_gets_all_back(mesh, tmp_path):
    assert on_ranks(4, made_like_one_process, tuple(map(int, mesh.split("x"))), tmp_path) == [51, 50, 51, 50]


@pytest.mark.parametrize("element", [4, 8])
def test_an_accelerator_draws_as_many_numbers_at_once_as_32_bits_index(element):
    """As TensorIterator does: halves, until the last byte of one is within a signed number of 32 bits."""
    like = torch.empty(0, dtype={4: torch.float32, 8: torch.float64}[element], device="meta")
    n = 2**31 // element
    assert dictionaries._pieces(n, like) == [n]
    assert dictionaries._pieces(2 * n + 1, like) == [n, (n + 1) // 2, n + 1 - (n + 1) // 2]


def folded_over_ranks(settings: dict) -> dict[str, np.ndarray]:
    """On the first rank, inference weights after the normalisation of an SAE that is spread over ranks is folded."""
    torch.manual_seed(0)
    sae = SparsemaxTrainingSAE(SparsemaxTrainingSAEConfig(d_in=WIDTH, d_sae=N_CONCEPTS, **settings))
    if dist.is_initialized():
        sae.shard(init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "concepts")))
    if sae.cfg.normalize_activations == "covariance_whitening":
        matrix = torch.eye(WIDTH) + 0.1
        sae.fold_activation_whitening(torch.ones(WIDTH), matrix, matrix.inverse())
    else:
        sae.fold_activation_norm_scaling_factor(0.3)
    assert all(isinstance(parameter, DTensor) for parameter in sae.parameters()) == dist.is_initialized()
    weights = sae.assembled().state_dict()
    if dist.is_initialized() and dist.get_rank() > 0:
        return {}
    sae.process_state_dict_for_saving_inference(weights)
    return {name: tensor.numpy() for name, tensor in weights.items()}


@pytest.mark.parametrize("structure", ["cross_attention", "mlp"])
def test_normalisations_are_folded_on_the_ranks_own_rows(structure):
    for norm in ("covariance_whitening", "expected_average_only_in"):
        settings = {"structure": structure, "unit_norm_query": False, "normalize_activations": norm}
        expected = folded_over_ranks(settings)
        for name, tensor in on_ranks(2, folded_over_ranks, settings)[0].items():
            np.testing.assert_allclose(tensor, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def refusals() -> list[str]:
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "concepts"))
    errors = []
    relu = SparsemaxTrainingSAEConfig(d_in=4, d_sae=8, gate="relu", target_l0=None)
    for cause in ("gate", "hook"):
        sae = SparsemaxTrainingSAE(relu if cause == "gate" else SparsemaxTrainingSAEConfig(d_in=4, d_sae=8))
        try:
            sae.shard(mesh)
            sae.hook_sae_acts_post.add_hook(lambda acts, hook: acts)
            sae.training_forward_pass(step_input(torch.randn(6, 4)))
        except ValueError as error:
            errors.append(str(error))
    return errors


def test_what_needs_whole_rows_of_scores_is_refused_by_name():
    for gate, hook in on_ranks(2, refusals):
        assert gate.startswith("gate must be 'sparsemax'") and hook.startswith("hooks on activations must be removed")


class Traffic(TorchDispatchMode):
    """Collects the collectives in a block: their names, and the numbers in each tensor they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.__name__:
            sizes = [leaf.numel() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            self.calls.append((func.__name__.split(".")[0], max(sizes)))
        return func(*args, **kwargs or {})


def collectives_of_a_step(settings: dict) -> list[tuple[str, int]]:
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "concepts"))
    torch.manual_seed(0)
    sae = SparsemaxTrainingSAE(SparsemaxTrainingSAEConfig(d_in=WIDTH, d_sae=9001, target_l0=6.0, **settings))
    sae.shard(mesh)
    own = next(batches()).float().chunk(2)[dist.get_rank()]
    sae.training_forward_pass(step_input(own)).loss.backward()
    with Traffic() as traffic:
        sae.training_forward_pass(step_input(own)).loss.backward()
    return traffic.calls


@pytest.mark.parametrize("passes", [1, 2])
def test_tokens_travel_and_concepts_do_not(passes):
    """Nothing of the size of the dictionary crosses ranks that share it; of a token, queries, contexts and sums."""
    settings = {"passes": passes, "refinements": 0, "activation_floor": 0.0}
    of_ranks = on_ranks(2, collectives_of_a_step, settings)
    assert of_ranks[0] == of_ranks[1]
    calls = of_ranks[0]
    assert max(size for _, size in calls) <= BATCH * (WIDTH + 1) < 9001
    gathers = [size for name, size in calls if "gather" in name]
    scatters = [size for name, size in calls if "scatter" in name]
    # Forwards the queries with their norms and the contexts of each pass; backwards the same the other way.
    assert sorted(gathers) == sorted(scatters) == sorted(passes * [BATCH * WIDTH, BATCH * (WIDTH + 1)])
    rounds = [size for name, size in calls if "allreduce" in name and size == 7 * BATCH]
    assert passes <= len(rounds) <= 12 * passes
