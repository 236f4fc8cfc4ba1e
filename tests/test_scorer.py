"""The frozen scorer on made-up features: ranking, held-out scores, priors, devices; and fine-tuning's statistics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from configs import quickstart
from pujax.config import FinetunedScorerConfig, FrozenScorerConfig
from pujax.data.embedded import embedded_path
from pujax.data.sources import open_source
from pujax.data.styles import STYLES
from pujax.errors import UserError
from pujax.metrics import auc
from pujax.networks import Preprocessing, abstract_network, init_network, load_network
from pujax.pu import scorer
from pujax.pu.distance import relative_distance
from pujax.pu.heads import fit_heads, in_styles, score
from pujax.pu.losses import make_pu_loss
from pujax.sharding import make_mesh
from pujax.stages.scorer import make_finetune_loss, split_off

CONFIG = FrozenScorerConfig(
    num_steps=200, batch_size=64, positives_per_batch=16, learning_rate=0.05, weight_decay=0.05, folds=4
)


class NoLog:
    def write(self, step, metrics):
        pass


def problem(num_pool=2000, rate=0.1, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.random(num_pool) < rate
    direction = rng.normal(size=12)
    shift = lambda is_positive: 0.9 * np.where(is_positive, 1.0, -1.0)[:, None] * direction  # noqa: E731
    pool = rng.normal(size=(num_pool, 12)) + shift(truth)
    positives = rng.normal(size=(60, 12)) + shift(np.ones(60, bool))
    return positives.astype(np.float32), pool.astype(np.float32), truth


def loss_of(config, class_prior=None):
    return make_pu_loss(
        config.loss, class_prior=class_prior, beta=config.beta, gamma=config.gamma, surrogate=config.surrogate
    )


def fit(config, positives, pool, mesh, *, class_prior=None, seed=1):
    """Fit heads on positives [P, D], or on several views of them, [V, P, D]; return plain held-out scores as [P]."""
    views = positives.reshape(-1, *positives.shape[-2:])
    views, pool = ({"features": x, "energy": (x @ views.mean((0, 1))).astype(np.float32)} for x in (views, pool))
    weights, held_out, pool_scores = fit_heads(
        config,
        loss_of(config, class_prior),
        views,
        pool,
        labels=np.arange(positives.shape[-2]) % 3,
        num_classes=4,
        seed=seed,
        mesh=mesh,
        log=NoLog(),
    )
    return weights, held_out if positives.ndim == 3 else held_out[0], pool_scores


def test_it_ranks_the_pool_and_held_out_positives_look_like_the_pools_own():
    positives, pool, truth = problem()
    _, positive_logits, pool_logits = fit(CONFIG, positives, pool, make_mesh(jax.devices()[:1]))
    assert auc(pool_logits[truth], pool_logits[~truth]) > 0.98
    assert 0.4 < auc(positive_logits, pool_logits[truth]) < 0.6


@pytest.mark.parametrize("part", ["distance", "energy"])
def test_parts_beside_the_logit_help_a_head_that_learnt_nothing(part):
    positives, pool, truth = problem()
    aucs = []
    for weight in (0.0, 1.0):
        config = dataclasses.replace(CONFIG, num_steps=1, learning_rate=1e-6, **{part: weight})
        _, positive_scores, scores = fit(config, positives, pool, make_mesh(jax.devices()[:1]))
        aucs.append(auc(scores[truth], scores[~truth]))
        assert len(positive_scores) == len(positives)
    assert aucs[0] < 0.9 < aucs[1]


def test_the_score_is_the_weighted_sum_of_parts_standardised_over_the_pool():
    positives, pool, _ = problem()
    both, plain = (dataclasses.replace(CONFIG, distance=d, energy=e) for d, e in ((2.0, 0.5), (0.0, 0.0)))
    inputs = {"features": pool, "energy": (pool @ positives.mean(0)).astype(np.float32)}
    weights, _, _ = fit(both, positives, pool, make_mesh(jax.devices()[:1]))
    scores, logits = score(both, weights, inputs), score(plain, weights, inputs)
    for k in range(CONFIG.folds):
        gaussians = jax.tree.map(lambda x, k=k: x[k], weights["gaussians"])
        parts = [logits[k], relative_distance(gaussians, pool), inputs["energy"]]
        expected = sum(w * (x - np.mean(x)) / np.std(x) for w, x in zip((1.0, 2.0, 0.5), parts))
        np.testing.assert_allclose(scores[k], expected, atol=2e-4)


def test_views_of_an_image_share_its_fold():
    """Labelled images that a head could learn by heart score no higher in any view than images that it never saw."""
    rng = np.random.default_rng(0)
    positives = np.repeat(rng.normal(size=(1, 40, 200)), 3, axis=0) + 0.01 * rng.normal(size=(3, 40, 200))
    pool = rng.normal(size=(2000, 200))
    config = dataclasses.replace(CONFIG, feature_noise=0.0, weight_decay=0.0)
    _, held_out, scores = fit(
        config, positives.astype(np.float32), pool.astype(np.float32), make_mesh(jax.devices()[:1])
    )
    assert held_out.shape == (3, 40)
    assert all(0.3 < auc(view, scores) < 0.7 for view in held_out)


def test_heads_that_see_two_styles_find_positives_of_either():
    """The pool's positives are all of another style than the labelled images; a plain head takes style for kind."""
    rng = np.random.default_rng(0)
    kind, style = np.eye(12)[:2] * 3
    plain = kind + style + rng.normal(size=(60, 12))
    pool, truth = rng.normal(size=(2000, 12)), np.arange(2000) < 200
    pool[truth] += kind - 2 * style
    pool[~truth] += style * rng.choice((-1, 1), (1800, 1)) - kind
    mesh, found = make_mesh(jax.devices()[:1]), {}
    for options, views in ((CONFIG, plain[None]), (in_styles(CONFIG), np.stack([plain, plain - 3 * style]))):
        _, _, scores = fit(options, views.astype(np.float32), pool.astype(np.float32), mesh)
        found[len(views)] = auc(scores[truth], scores[~truth])
    assert found[2] > 0.995 and found[1] < 0.97


def test_a_second_training_leaves_the_likely_positives_out():
    positives, pool, truth = problem(rate=0.4)
    mesh, logits = make_mesh(jax.devices()[:1]), []
    for share in (0.0, 0.5):
        _, positive_logits, pool_logits = fit(
            dataclasses.replace(CONFIG, reliable_negatives=share), positives, pool, mesh
        )
        assert 0.35 < auc(positive_logits, pool_logits[truth]) < 0.65  # still held out
        logits.append(np.median(positive_logits))
    # Against the whole pool no density ratio is above 1 / 0.4; against its negatives there is no such bound.
    assert logits[0] < np.log(1 / 0.4) + 0.2 and logits[1] > 2
    with pytest.raises(UserError, match="reliable_negatives"):
        fit(dataclasses.replace(CONFIG, reliable_negatives=1e-9), positives, pool, mesh)


def new_network(model, channels):
    options = {"num_classes": 10, "class_names": None, "dtype": jnp.dtype(jnp.float32)}
    options["preprocessing"] = Preprocessing(32, channels, (0.4,), (0.3,))
    return init_network(abstract_network(model, **options), jax.random.key(0))


def test_a_quarter_turn_puts_the_features_of_the_turned_image_behind_those_of_the_image():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)
    images = (pixels / np.float32(255) - np.float32(0.4)) / np.float32(0.3)
    network = new_network("lenet5", channels=1)
    model, variables = network.module, network.variables

    def outputs(*views):
        logits, features = zip(*(model.apply(variables, view, train=False) for view in views))
        return np.mean(logits, 0), np.mean([np.concatenate(parts, -1) for parts in features], 0)

    config = FrozenScorerConfig(flip=True, quarter_turn=True)
    logits, inputs = scorer.frozen_inputs(config, network, variables, pixels)
    sides = images, images[:, :, ::-1]
    upright_logits, upright = outputs(*sides)
    expected = np.concatenate([upright, outputs(*(np.rot90(side, axes=(1, 2)) for side in sides))[1]], -1)
    np.testing.assert_allclose(inputs["features"], expected, atol=1e-5)
    np.testing.assert_allclose(inputs["energy"], np.log(np.exp(upright_logits).sum(-1)), atol=1e-5)
    np.testing.assert_allclose(logits, outputs(images)[0], atol=1e-5)  # the class is that of the image as it is


def test_one_device_equals_eight(meshes):
    positives, pool, _ = problem()
    config = dataclasses.replace(
        CONFIG, num_steps=10, gate=True, hidden=8, loss="nnpu", distance=1.0, energy=0.5, reliable_negatives=0.6
    )
    one, eight = (fit(config, positives, pool, mesh, class_prior=0.1) for mesh in meshes)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight)):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_held_out_scores_come_from_heads_that_did_not_see_the_image():
    positives, pool, _ = problem()
    noise = np.random.default_rng(1).normal(size=positives.shape).astype(np.float32)  # labels say nothing
    config = dataclasses.replace(CONFIG, weight_decay=0.0, hidden=64, num_steps=600)
    _, positive_logits, pool_logits = fit(config, noise, np.random.default_rng(2).normal(size=pool.shape), make_mesh())
    assert auc(positive_logits, pool_logits) < 0.65  # memorised scores would reach 1


@pytest.mark.parametrize("loss", ["labelled_vs_unlabelled", "balanced_nnpu"])
def test_the_ranking_hardly_depends_on_the_prior(loss):
    positives, pool, truth = problem(rate=0.05)
    mesh, aucs = make_mesh(jax.devices()[:1]), []
    for prior in (0.02, 0.1, 0.3):
        _, _, logits = fit(dataclasses.replace(CONFIG, loss=loss), positives, pool, mesh, class_prior=prior)
        aucs.append(auc(logits[truth], logits[~truth]))
    assert max(aucs) - min(aucs) < 0.01


@pytest.mark.slow
def test_on_the_quickstart_pool_the_ranking_is_good_at_any_prior():
    config, mesh = quickstart.get_config(), make_mesh(jax.devices()[:1])
    frozen = config.scorer.frozen
    teacher = load_network(epath.Path(embedded_path("teacher_lenet5.safetensors")), dtype=jnp.dtype(jnp.float32))
    sources = [open_source(part, config.data, labelled=False) for part in (config.data.labelled, config.data.pool)]
    features = [
        scorer.extract_inputs(frozen, teacher, lambda i, s=s: s.read(i)[0], len(s), mesh=mesh, batch_size=512)[
            "features"
        ]
        for s in sources
    ]
    truth, aucs = sources[1].truth, []
    for loss, prior in (("labelled_vs_unlabelled", None), ("balanced_nnpu", 0.02), ("balanced_nnpu", 0.3)):
        _, _, logits = fit(dataclasses.replace(frozen, loss=loss), *features, mesh, class_prior=prior)
        aucs.append(auc(logits[truth], logits[~truth]))
    assert min(aucs) > 0.99
    assert abs(aucs[1] - aucs[2]) < 0.01


def test_images_in_styles_are_the_plain_ones_first_and_each_in_styles_of_its_own(meshes, monkeypatch):
    config = quickstart.get_config()
    teacher = load_network(epath.Path(embedded_path("teacher_lenet5.safetensors")), dtype=jnp.dtype(jnp.float32))
    source = open_source(config.data.labelled, config.data, labelled=True)
    read, frozen = lambda i: source.read(i)[0], config.scorer.frozen
    common = {"batch_size": 64, "seed": 3}
    one, eight = (scorer.extract_in_styles(frozen, teacher, read, 20, mesh=mesh, **common) for mesh in meshes)
    plain = scorer.extract_inputs(frozen, teacher, read, 20, mesh=meshes[0], batch_size=20)
    for name, column in plain.items():
        assert one[name].shape == (len(STYLES), *column.shape)
        np.testing.assert_allclose(one[name][0], column, atol=1e-5)
        np.testing.assert_allclose(one[name], eight[name], atol=1e-4)
        assert (np.abs(one[name][1:] - column[None]).reshape(len(STYLES) - 1, 20, -1).max(-1) > 1e-3).all()
    monkeypatch.setattr(scorer, "_MOST_VIEWS", 70)  # three views of each of 20 images
    few = scorer.extract_in_styles(frozen, teacher, read, 20, mesh=meshes[0], **common)["features"]
    assert few.shape[:2] == (3, 20)
    for image in range(20):  # the styles go round
        for view in (1, 2):
            style = 1 + (image + view - 1) % (len(STYLES) - 1)
            place = 1 + (style - 1 - image) % (len(STYLES) - 1)  # where all styles of this image have it
            np.testing.assert_allclose(few[view, image], one["features"][place, image], atol=1e-4)


def test_folds_follow_the_seed():
    positives, pool, _ = problem(num_pool=200)
    config = dataclasses.replace(CONFIG, num_steps=1, learning_rate=1e-9)  # all heads are as they were made
    scores = [fit(config, positives, pool, make_mesh(jax.devices()[:1]), seed=seed)[2] for seed in (1, 1, 2)]
    assert (scores[0] == scores[1]).all() and (scores[0] != scores[2]).any()


def test_a_split_holds_every_image_once_and_at_least_one_on_either_side():
    held, kept = split_off(np.arange(10, 60), 0.2, seed=3)
    assert len(held) == 10 and sorted([*held, *kept]) == list(range(10, 60))
    assert [len(part) for part in split_off(np.arange(4), 0.01, seed=0)] == [1, 3]
    assert [len(part) for part in split_off(np.arange(4), 0.99, seed=0)] == [3, 1]


def test_too_few_images_and_broken_losses_are_refused():
    positives, pool, _ = problem()
    mesh = make_mesh(jax.devices()[:1])
    with pytest.raises(UserError, match=r"3 labelled and 2000 pool images are too few for scorer.frozen.folds=4"):
        fit(CONFIG, positives[:3], pool, mesh)
    positives[0] = np.nan
    with pytest.raises(FloatingPointError, match="scorer: the loss is not finite at step 1"):
        fit(CONFIG, positives, pool, mesh)


@pytest.mark.parametrize(("share", "moves"), [(0, True), (2, False)], ids=["uniform", "fixed shares"])
def test_statistics_move_only_when_batches_look_like_the_pool(share, moves):
    config = FinetunedScorerConfig(batch_size=8, positives_per_batch=share)
    teacher = new_network("cifar_resnet10_w8", channels=3)
    net = scorer.make_pu_net(config, teacher)
    variables = scorer.init_pu_net(net, teacher, teacher.variables, jax.random.key(0))
    loss_fn = make_finetune_loss(config, loss_of(config, 0.1), net, teacher, num_labelled=3)
    images = jax.random.randint(jax.random.key(1), (8, 32, 32, 3), 0, 256).astype(jnp.uint8)
    batch = {"image": images, "index": jnp.arange(8)}
    loss, (stats, _) = loss_fn(variables["params"], variables["batch_stats"], {}, batch, jax.random.key(2))
    assert np.isfinite(loss)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), stats, variables["batch_stats"])
    assert all(jax.tree.leaves(same)) != moves
