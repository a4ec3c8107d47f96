"""Laws of the adaptive samplers, on exact denoisers with exact or scripted uncertainties, in float64."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from sampling_setup import MIXTURE, SHAPE, frames, random_images, run
from torch.distributions import MultivariateNormal, kl_divergence

from asyncdiff.denoising.oracles import GaussianOracle, MixtureOracle, random_gaussian, random_mixture
from asyncdiff.denoising.uncertainty import most_certain
from asyncdiff.noise.masks import Half
from asyncdiff.noise.orders import CustomOrder
from asyncdiff.noise.paths import Synchronous
from asyncdiff.randomness import RandomSource, normal, per_image, seeded
from asyncdiff.sampling.adaptive import Adaptive
from asyncdiff.sampling.look_ahead import LookAhead
from asyncdiff.sampling.samplers import Autoregressive, Sampler
from asyncdiff.sampling.solvers import DDIM, Heun, Multistep
from asyncdiff.sampling.step_rules import DualLoop, Sequential, StepRule, Tolerance
from asyncdiff.shapes import mean_per_patch, to_pixels

STEP_RULES = [
    Tolerance(0.05, max_stride=4),
    Tolerance(0.05, max_stride=4, lead=0.25),
    DualLoop(0.5, inner=3),
    Sequential(together=1, overlap=0.5),
]
SAMPLERS = [Adaptive(step_rule, DDIM(), 16) for step_rule in STEP_RULES]
SAMPLERS += [Adaptive(STEP_RULES[0], solver, 16) for solver in (DDIM(0.5), Multistep(), Heun())]
SAMPLERS += [Adaptive(STEP_RULES[0], Multistep(), 16, budget=5)]


class WithUncertainty:
    """An oracle that predicts its uncertainty, `logvar(prediction)`; evaluations are counted, also per image."""

    null_label = property(lambda self: self.oracle.null_label)
    process = property(lambda self: self.oracle.process)

    def __init__(self, oracle, logvar):
        self.oracle, self.logvar = oracle, logvar
        self.calls, self.rows, self.seen = 0, 0, []

    def grid(self, size):
        return self.oracle.grid(size)

    def __call__(self, x_t, t, label=None):
        self.calls += 1
        self.rows += len(t)
        self.seen.append(t)
        prediction = self.oracle(x_t, t, label)
        return replace(prediction, logvar=self.logvar(prediction))


def constant(logvar=0.0):
    return lambda prediction: torch.full_like(prediction.t, logvar)


def scripted(rows):
    return lambda prediction: torch.tensor(rows, dtype=torch.float64).expand_as(prediction.t)


def of_state(prediction):
    """A log-variance that differs between images, patches and levels, and is a smooth function of the state."""
    return mean_per_patch(prediction.x, tuple(prediction.t.shape[1:])) - 2 * (1 - prediction.t)


def exact(oracle):
    """Log of the exact posterior variance of the velocity, the mean over each patch.

    x - E x = -sigma (v - E v) and eps - E eps = alpha (v - E v), each used where it divides by no small number.
    """

    def logvar(prediction):
        process, x_t, t = prediction.process, prediction.x_t, prediction.t
        alpha, sigma = (to_pixels(k, SHAPE[1:]).expand_as(x_t).flatten(1) for k in (process.alpha(t), process.sigma(t)))
        y, log_prob = oracle._solve(x_t.flatten(1), alpha, sigma)
        share = (oracle.weights.log() + log_prob).softmax(1)[..., None]
        inner = alpha[:, None, :, None] * oracle.covs * alpha[:, None, None, :] + torch.diag_embed(sigma**2)[:, None]
        inverse = torch.linalg.inv(inner)
        x = oracle.means + torch.einsum("kij,bkj->bki", oracle.covs, alpha[:, None] * y)
        gain = oracle.covs * alpha[:, None, None, :]
        var_x = oracle.covs.diagonal(dim1=1, dim2=2) - torch.einsum("bkij,bkjl,bkil->bki", gain, inverse, gain)
        eps = sigma[:, None] * y
        var_eps = 1 - sigma[:, None] ** 2 * inverse.diagonal(dim1=2, dim2=3)
        var_x, var_eps = (
            (share * (v + m**2)).sum(1) - (share * m).sum(1) ** 2 for v, m in ((var_x, x), (var_eps, eps))
        )
        noisy = sigma > alpha
        var = torch.where(noisy, var_x / sigma.clamp(min=0.1) ** 2, var_eps / alpha.clamp(min=0.1) ** 2)
        return mean_per_patch(var.reshape(x_t.shape), tuple(t.shape[1:])).log()

    return logvar


@pytest.mark.parametrize("solver", [DDIM(), DDIM(0.4), Multistep(), Heun()])
@pytest.mark.parametrize("step_rule", [Tolerance(0.08, 4), Tolerance(0.08, 4, lead=0.0), DualLoop(0.7, 4)])
def test_constant_uncertainty_equals_the_uniform_sampler_bit_for_bit(step_rule, solver):
    uniform, denoiser = run(Sampler(Synchronous(), solver, 12), MIXTURE), WithUncertainty(MIXTURE, constant())
    assert torch.equal(run(Adaptive(step_rule, solver, 12), denoiser), uniform)
    assert denoiser.calls == (2 * 12 - 1 if solver.evaluations == 2 else 12)


def test_half_the_uncertainty_halves_the_evaluations():
    """Half the error gives twice the stride: the uniform grid with half the steps."""
    sure = WithUncertainty(MIXTURE, constant(2 * math.log(0.5)))
    for solver in (DDIM(), Multistep()):
        sure.calls = 0
        out = run(Adaptive(Tolerance(1 / 32), solver, 32), sure)
        assert sure.calls == 16
        assert torch.equal(out, run(Sampler(Synchronous(), solver, 16), MIXTURE))


def test_finished_images_are_removed_from_the_batch():
    """The denoiser evaluates an image as often as its own patches need, whatever else is in the batch."""
    sampler, together = Adaptive(Tolerance(0.1, 8), DDIM(), 32), WithUncertainty(MIXTURE, of_state)
    run(sampler, together, range(8))
    alone = []
    for seed in range(8):
        one = WithUncertainty(MIXTURE, of_state)
        run(sampler, one, [seed])
        alone.append(one.calls)
    assert len(set(alone)) > 2
    assert (together.calls, together.rows) == (max(alone), sum(alone))


def test_finished_images_no_longer_change():
    walk = frames(Adaptive(Tolerance(0.1, 8), DDIM(0.5), 32), WithUncertainty(MIXTURE, of_state), range(8))
    early = 0
    for before, after in pairwise(walk):
        done = (before.t == 0).flatten(1).all(1)
        early += int(done.sum())
        assert torch.equal(before.x_t[done], after.x_t[done])
    assert early > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("known", [None, Half("left")(4, 4)[None] | (torch.arange(16).reshape(1, 4, 4) == 7)])
def test_levels_lie_on_the_grid_and_never_rise(sampler, known):
    denoiser = WithUncertainty(MIXTURE, of_state)
    request = {} if known is None else {"image": random_images(3), "known": known.expand(3, 4, 4)}
    walk = frames(sampler, denoiser, **request)
    steps = [frame.t * sampler.steps for frame in walk]
    assert all(torch.allclose(k, k.round(), rtol=0, atol=1e-12) for k in steps)
    assert all((after <= before).all() for before, after in pairwise(steps))
    for before, after in pairwise(steps):
        assert (after < before).flatten(1).any(1)[(before > 0).flatten(1).any(1)].all()
    assert (steps[-1] == 0).all()
    assert [walk[0].s, walk[-1].s] == [1, 0]
    assert all(after.s < before.s for before, after in pairwise(walk))
    patches = 4 if known is None else int((steps[0][0] > 0).sum())
    most = sampler.budget or sampler.step_rule.max_predictions(sampler.steps, patches) * sampler.solver.evaluations
    assert denoiser.calls <= most


@pytest.mark.parametrize("budget", [1, 5, 11])
@pytest.mark.parametrize("lead", [1.0, 0.2])
def test_strides_grow_to_fit_a_budget(budget, lead):
    """This holds even for uncertainties so high that the rule would take every single step."""
    for logvar in (constant(), of_state, scripted([[9.0, 0.0], [-9.0, -1.0]])):
        denoiser = WithUncertainty(MIXTURE, logvar)
        run(Adaptive(Tolerance(0.01, 2, lead), DDIM(), 16, budget), denoiser)
        assert denoiser.calls <= budget
    heun = WithUncertainty(MIXTURE, constant())
    run(Adaptive(Tolerance(0.01), Heun(), 16, 2 * budget), heun)
    assert heun.calls == 2 * budget - 1  # the last step is Euler's


def test_too_small_a_budget_is_rejected_with_the_required_one():
    denoiser = WithUncertainty(MIXTURE, of_state)
    for step_rule, needed in ((DualLoop(inner=4), 20), (Sequential(overlap=0.5), 40)):
        with pytest.raises(
            ValueError, match=rf"budget must be at least {needed} for .* with 16 steps, got {needed - 1}"
        ):
            run(Adaptive(step_rule, DDIM(), 16, needed - 1), denoiser)
        run(Adaptive(step_rule, DDIM(), 16, needed), denoiser)


@pytest.mark.parametrize("lead", [0.0, 0.125, 0.5])
def test_no_patch_runs_further_ahead_than_the_lead(lead):
    denoiser = WithUncertainty(MIXTURE, scripted([[0.0, -9.0], [-9.0, -2.0]]))
    walk = frames(Adaptive(Tolerance(0.05, 8, lead), DDIM(), 16), denoiser, [0])
    spread = max(float(f.t.max() - f.t.min()) for f in walk)
    assert spread == pytest.approx(lead, abs=1e-12)


def test_certain_patches_of_the_dual_loop_are_ahead_of_the_others():
    """Two certain patches of four: an outer step of 3 takes one prediction, plus three that see those ahead."""
    denoiser = WithUncertainty(MIXTURE, scripted([[-2.0, 0.0], [-2.0, 0.0]]))
    run(Adaptive(DualLoop(0.5, inner=3), DDIM(), 5), denoiser, [0])
    columns = [(5 * t[0, 0]).round().int().tolist() for t in denoiser.seen]
    assert columns == [[5, 5], [2, 5], [2, 4], [2, 3], [2, 2], [0, 2], [0, 1]]


def test_dual_loop_without_certain_patches_equals_the_uniform_grid():
    uniform = run(Sampler(Synchronous(), Multistep(), 12), MIXTURE)
    for share, logvar in ((0.0, of_state), (0.2, of_state), (0.7, constant())):
        step_rule = DualLoop(share, 4)
        assert torch.equal(run(Adaptive(step_rule, Multistep(), 12), WithUncertainty(MIXTURE, logvar)), uniform)
    coarse = run(Sampler(Synchronous(), DDIM(), 4), MIXTURE)  # with certain patches only, the grid of outer steps
    assert torch.equal(run(Adaptive(DualLoop(1.0, 4), DDIM(), 16), WithUncertainty(MIXTURE, of_state)), coarse)


@pytest.mark.parametrize("solver", [DDIM(), Multistep()])
@pytest.mark.parametrize(("together", "overlap"), [(1, 0.0), (1, 0.5), (2, 0.0), (2, 0.75), (1, 0.875)])
def test_sequential_matches_the_sampler_with_the_scripted_order(together, overlap, solver):
    rows = [[2, 0], [3, 1]]
    order = CustomOrder([[rank // together for rank in row] for row in rows])
    expected = run(Autoregressive(order, overlap, solver, 8), MIXTURE)
    denoiser = WithUncertainty(MIXTURE, scripted(rows))
    out = run(Adaptive(Sequential(together, overlap), solver, 8), denoiser)
    assert torch.allclose(out, expected, rtol=0, atol=1e-9)
    assert denoiser.calls == Autoregressive(order, overlap, steps_per_patch=8).num_steps((2, 2))


def test_a_fractional_lag_follows_the_timing_of_the_order():
    """Three steps per patch, 1.2 between starts: at steps 0, 2, 3 and 4, as many in all as the path takes."""
    denoiser = WithUncertainty(MIXTURE, scripted([[0, 1], [2, 3]]))
    run(Adaptive(Sequential(overlap=0.6), DDIM(), 3), denoiser, [0])
    assert [int((t < 1).sum()) for t in denoiser.seen] == [0, 1, 1, 2, 3, 4, 4]
    assert denoiser.calls == Autoregressive(CustomOrder([[0, 1], [2, 3]]), 0.6, steps_per_patch=3).num_steps((2, 2))


def test_sequential_predicts_again_before_every_start():
    """A head that is certain next to clean patches: the order depends on what was generated before."""

    def next_to_clean(prediction):
        clean = (prediction.t == 0).double()
        return -clean - clean.roll(1, 2) - torch.tensor([[0.0, 0.0], [0.1, 0.0]], dtype=torch.float64)

    denoiser = WithUncertainty(MIXTURE, next_to_clean)
    run(Adaptive(Sequential(), DDIM(), 1), denoiser, [0])
    waiting = ["".join(str(int(v)) for v in (t[0] == 1).flatten()) for t in denoiser.seen]
    assert waiting == ["1111", "1101", "1100", "0100"]


def test_look_ahead_predicts_uncertain_patches_with_the_certain_ones_ahead():
    """Computed by hand for one call: the certain column goes from t to 1 - 1.5 (1 - t) along its own velocity."""
    denoiser = WithUncertainty(MIXTURE, scripted([[-1.0, 0.0], [-1.0, 0.0]]))
    x_t, t = torch.randn(2, *SHAPE, dtype=torch.float64), torch.full((2, 2, 2), 0.6, dtype=torch.float64)
    t[1] = 0.2
    guided = LookAhead(0.5, 1.5).begin(denoiser, RandomSource(2, (2, 2)), SHAPE)
    v = guided(x_t, t).v
    first = MIXTURE(x_t, t)
    t_ahead = t.clone()
    t_ahead[0, :, 0], t_ahead[1, :, 0] = 0.4, 0.0
    x_ahead = x_t + to_pixels(t_ahead - t, (4, 4)) * first.v
    second = MIXTURE(x_ahead, t_ahead)
    assert torch.allclose(v[..., :2], first.v[..., :2], rtol=0, atol=1e-12)
    assert torch.allclose(v[..., 2:], second.v[..., 2:], rtol=0, atol=1e-12)
    assert not torch.allclose(first.v[..., 2:], second.v[..., 2:], atol=1e-3)


def test_look_ahead_takes_two_evaluations_in_every_step_except_the_first():
    denoiser = WithUncertainty(MIXTURE, of_state)
    run(Sampler(Synchronous(), DDIM(), 20, [LookAhead(0.5)]), denoiser)
    assert denoiser.calls == 2 * 20 - 1  # no look-ahead at t = 1, but at 0.95
    for off in (LookAhead(0.0), LookAhead(0.5, 1.0), LookAhead(0.5, skipped=1.0)):
        out = run(Sampler(Synchronous(), Multistep(), 8, [off]), WithUncertainty(MIXTURE, of_state))
        assert torch.equal(out, run(Sampler(Synchronous(), Multistep(), 8), MIXTURE))
    same = WithUncertainty(MIXTURE, constant())
    run(Sampler(Synchronous(), DDIM(), 20, [LookAhead(0.5)]), same)
    assert same.calls == 20


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["log-variance", "velocity"])
def test_non_finite_predictions_stop_sampling_and_name_the_patch(what, wrong):
    """The error gives the image's index in the entire batch, even after others were removed from it."""

    def certain_if_dark(prediction):
        return -12.0 * (prediction.x_t.flatten(1).sum(1) < 0)[:, None, None] * torch.ones_like(prediction.t)

    class Spoiled(WithUncertainty):
        def __call__(self, x_t, t, label=None):
            prediction = super().__call__(x_t, t)
            at = (t.flatten(1).amax(1) == 0.5)[:, None, None] & (torch.arange(4).reshape(2, 2) == 2)
            if what == "velocity":
                return replace(prediction, v=prediction.v.masked_fill(to_pixels(at, (4, 4)), wrong))
            return replace(prediction, logvar=prediction.logvar.masked_fill(at, wrong))

    message = rf"{what} must be finite.* image \d of the batch at row 1, column 0, level 0.5"
    with pytest.raises(FloatingPointError, match=message):
        run(Adaptive(Tolerance(0.01), DDIM(), 4), Spoiled(MIXTURE, certain_if_dark))


def test_solvers_that_decide_by_levels_do_so_in_every_step():
    """Own ones, too, with one evaluation; the host knows both maps."""

    class Deciding(DDIM):
        def between(self, t, to):
            steps.append((float(t.host.amax()), float(to.host.amax())))
            return super().between(t, to)

    steps = []
    denoiser = WithUncertainty(GaussianOracle(*random_gaussian(16), patches=(2, 2)), constant(-30.0))
    sampler = Adaptive(Tolerance(0.5, max_stride=2), Deciding(), steps=4)
    result = sampler(denoiser, seeds=[0], shape=(1, 4, 4), dtype=torch.float64)
    assert steps == [(1.0, 0.5), (0.5, 0.0)]
    same = sampler.replace(solver=DDIM())(denoiser, seeds=[0], shape=(1, 4, 4), dtype=torch.float64)
    assert torch.equal(result, same)


def test_a_network_without_uncertainty_head_is_refused():
    for sampler in (Adaptive(), Adaptive(DualLoop()), Adaptive(Sequential()), Sampler(guidance=[LookAhead()])):
        with pytest.raises(ValueError, match=r"needs a network that predicts its uncertainty.* uncertainty: true"):
            run(sampler, MIXTURE)


class Fixed(StepRule):
    """The same stride for every patch."""

    def __init__(self, stride):
        self.stride = stride

    def __call__(self, state, uncertainty):
        return torch.full_like(state.level, self.stride)


class Turns(StepRule):
    """Stateful rule that alternates between the two columns, separately for each image."""

    turn = None

    def begin(self):
        return Turns()

    def select(self, rows):
        self.turn = self.turn[rows]
        return self

    def max_predictions(self, steps, patches):
        return 2 * steps

    def __call__(self, state, uncertainty):
        self.turn = torch.zeros(len(state.level), dtype=torch.int64) if self.turn is None else 1 - self.turn
        column = torch.arange(2).expand(2, 2)
        return ((column == self.turn[:, None, None]) * (1 + (uncertainty < 1))).minimum(state.level)


def test_custom_rules_are_checked():
    denoiser = WithUncertainty(MIXTURE, of_state)
    for stride, message in (
        (0, "Fixed left noise after its maximum of 8"),
        (-1, "Fixed must return strides from 0 to"),
    ):
        with pytest.raises(ValueError, match=message):
            run(Adaptive(Fixed(stride), steps=8), denoiser)
    rule = Adaptive(Turns(), DDIM(), 8)
    together = run(rule, denoiser, range(6))
    assert torch.allclose(together, torch.cat([run(rule, denoiser, [k]) for k in range(6)]), rtol=0, atol=1e-12)
    assert rule.step_rule.turn is None


def test_exact_uncertainty_matches_the_mean_squared_error():
    """The log-variance of the next tests predicts the mean squared error of the oracle's velocity."""
    g = torch.Generator().manual_seed(0)
    x = MIXTURE.sample(20000, SHAPE, g)
    eps = torch.randn(x.shape, generator=g, dtype=x.dtype)
    t = torch.tensor([[0.05, 0.4], [0.7, 0.95]], dtype=x.dtype).expand(len(x), 2, 2)
    prediction = MIXTURE(MIXTURE.process.noised(x, eps, t), t)
    error = mean_per_patch((eps - x - prediction.v) ** 2, (2, 2))
    ratio = error.mean(0) / exact(MIXTURE)(prediction).exp().mean(0)
    assert torch.allclose(ratio, torch.ones_like(ratio), rtol=0, atol=0.03)


def unequal_patches() -> GaussianOracle:
    """A Gaussian whose four patches have different variances: with the exact uncertainty their strides differ."""
    mean, cov = random_gaussian(16)
    scale = to_pixels(torch.tensor([[[0.15, 0.4], [0.7, 1.0]]], dtype=torch.float64), (4, 4)).flatten()
    return GaussianOracle(mean, scale[:, None] * cov * scale, (2, 2))


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "order"), [(DDIM(), 1), (Multistep(), 2), (Heun(), 2)])
def test_varying_strides_keep_the_order_of_convergence(solver, order):
    """To the solution along the levels that the step rule has chosen, at twice the steps and half the tolerance.

    Along another path the same noise ends in another image of the same distribution: that is no error.
    """
    oracle = unequal_patches()

    def solution_along(walk):
        x_t = walk[0].x_t
        for a, b in pairwise(walk):
            for k in range(4):
                x_t = Heun()(oracle, x_t, torch.lerp(a.t, b.t, k / 4), torch.lerp(a.t, b.t, (k + 1) / 4), None)
        return x_t

    def error(steps):
        sampler = Adaptive(Tolerance(1.5 / steps, 4), solver, steps)
        walk = frames(sampler, WithUncertainty(oracle, exact(oracle)), [0, 1])
        strides = torch.stack([(a.t - b.t) * steps for a, b in pairwise(walk)]).round()
        assert strides.unique().tolist() == [0, 1, 2, 3, 4]  # 0 once a patch is done
        return float((walk[-1].x_t - solution_along(walk)).square().mean().sqrt())

    assert math.log2(error(64) / error(128)) == pytest.approx(order, abs=0.2)


def kl(oracle: GaussianOracle, sampler) -> tuple[float, int]:
    """KL divergence of a deterministic sampler's images, which are affine in their noise, and its evaluations."""
    denoiser, seeds = WithUncertainty(oracle, exact(oracle)), range(20)
    out = run(sampler, denoiser, seeds).flatten(1)
    noise = normal((20, *SHAPE), generator=per_image(seeds), dtype=torch.float64).flatten(1)
    noise = torch.cat([noise, torch.ones_like(noise[:, :1])], dim=1)
    linear = torch.linalg.lstsq(noise, out).solution
    assert torch.allclose(noise @ linear, out, rtol=0, atol=1e-9)
    found = MultivariateNormal(linear[-1], linear[:-1].T @ linear[:-1])
    return float(kl_divergence(found, MultivariateNormal(oracle.mean, oracle.cov))), denoiser.calls


@pytest.mark.parametrize(
    ("solver", "tolerance", "steps", "gain"),
    [
        (DDIM(), 1 / 64, 64, 0.75),
        (DDIM(), 1 / 16, 22, 0.85),
        (Multistep(), 1 / 64, 64, 0.35),
        (Multistep(), 1 / 16, 22, 0.6),
    ],
)
def test_moving_certain_patches_ahead_improves_images_at_equal_cost(solver, tolerance, steps, gain):
    """Three patches of four are small, and certain in the noise: they run ahead, and the fourth one sees them clean."""
    uniform, evaluations = kl(unequal_patches(), Sampler(Synchronous(), solver, steps))
    adaptive, adaptive_evaluations = kl(unequal_patches(), Adaptive(Tolerance(tolerance, 8, lead=0.5), solver, 64))
    assert adaptive_evaluations == evaluations == steps
    assert adaptive < gain * uniform


def test_images_that_are_certain_early_need_fewer_evaluations():
    """Narrow components: once an image has chosen one, its velocity is certain, and larger strides cost little.

    Too few steps make images that are too likely, too near the means: the mean of log p measures it.
    """
    weights, means, covs = random_mixture(4, 16)
    narrow = MixtureOracle(weights, 0.45 * means, 0.02 * covs, (2, 2))
    expected = narrow.log_prob(narrow.sample(20000, SHAPE, seeded(0))).mean()

    def mean_excess(sampler):
        denoiser = WithUncertainty(narrow, exact(narrow))
        log_prob = narrow.log_prob(run(sampler, denoiser, range(100)))
        return denoiser.rows / 100, float(log_prob.mean() - expected)

    evaluations, excess = mean_excess(Adaptive(Tolerance(1 / 32, 8), DDIM(), 64))
    _, uniform_excess = mean_excess(Sampler(Synchronous(), DDIM(), 26))
    assert evaluations < 20
    assert 0 < excess < uniform_excess


def test_most_certain_selects_a_share_of_the_candidates():
    assert (most_certain(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.ones(1, 2, 2).bool(), 0.5)).sum() == 2
    many = torch.rand(5, 10, 10, dtype=torch.float64)
    among = torch.rand(5, 10, 10) < 0.6
    for share in (0.0, 0.3, 0.7, 1.0):
        sure = most_certain(many, among, share)
        assert (sure.flatten(1).sum(1) == (share * among.flatten(1).sum(1) + 1e-9).long()).all()
        assert not (sure & ~among).any()


@pytest.mark.parametrize(
    ("kind", "arguments", "rule"),
    [
        (Tolerance, {"tolerance": 0.0}, "be positive, got 0.0"),
        (Tolerance, {"tolerance": math.nan}, "be positive, got nan"),
        (Tolerance, {"max_stride": 0}, "be at least 1, got 0"),
        (Tolerance, {"lead": 1.5}, r"lie in \[0, 1\], got 1.5"),
        (DualLoop, {"share": 2}, r"lie in \[0, 1\], got 2"),
        (DualLoop, {"inner": 0}, "be at least 1, got 0"),
        (Sequential, {"together": 0}, "be at least 1, got 0"),
        (Sequential, {"overlap": 1.0}, r"lie in \[0, 1\), got 1.0"),
        (LookAhead, {"share": -1}, r"lie in \[0, 1\], got -1"),
        (LookAhead, {"ratio": 0.5}, "be at least 1, got 0.5"),
        (LookAhead, {"skipped": 2}, r"lie in \[0, 1\], got 2"),
        (Adaptive, {"steps": 0}, "be at least 1, got 0"),
        (Adaptive, {"refresh": 0}, "be at least 1, got 0"),
        (Adaptive, {"budget": 0}, "be at least 1, got 0"),
        (Adaptive, {"budget": 1, "solver": Heun()}, "be at least 2, got 1"),
    ],
)
def test_invalid_arguments_raise_one_line_errors(kind, arguments, rule):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must {rule}"):
        kind(**arguments)
