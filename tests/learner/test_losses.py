from math import exp, log

import pytest
import torch

from headrace.learner.losses import LossInputs, LossOptions, LossSums, grpo_loss, k3


def inputs(new, old, advantages, **more) -> LossInputs:
    tensors = {name: torch.tensor(value) for name, value in more.items()}
    return LossInputs(
        new_logprobs=torch.tensor(new, requires_grad=True),
        old_logprobs=torch.tensor(old),
        advantages=torch.tensor(advantages),
        entropies=torch.full((len(new),), 0.5),
        **tensors,
    )


def test_on_policy_loss_is_minus_the_advantage_and_its_gradient_too():
    record = inputs([-1.0, -2.0], [-1.0, -2.0], [1.0, -0.5])
    loss, _ = grpo_loss(record, LossOptions())
    loss.backward()
    assert loss.item() == pytest.approx(-0.5)
    assert record.new_logprobs.grad.tolist() == pytest.approx([-1.0, 0.5])


def test_importance_weight_scales_the_gradient_and_is_capped():
    # weights: exp(log 1.5) = 1.5, and exp(log 5) = 5, capped to 2
    record = inputs([log(0.3), log(0.5)], [log(0.2), log(0.1)], [1.0, 1.0])
    loss, sums = grpo_loss(record, LossOptions(tis_cap=2.0))
    loss.backward()
    assert record.new_logprobs.grad.tolist() == pytest.approx([-1.5, -2.0])
    assert sums.tis_truncated == 1
    assert sums.weights.item() == pytest.approx(3.5)
    assert sums.weights_squared.item() == pytest.approx(1.5**2 + 2.0**2)


def test_infinite_cap_truncates_nothing():
    record = inputs([log(0.5)], [log(0.1)], [1.0])
    loss, sums = grpo_loss(record, LossOptions(tis_cap=float("inf")))
    assert loss.item() == pytest.approx(-5.0)
    assert sums.tis_truncated == 0


def test_ratio_to_the_generators_policy_is_clipped_on_the_side_that_the_advantage_pushes_to():
    # ratios 1.5, 1.5, 0.5, 0.5 against bounds 0.8 and 1.3
    new = [log(0.3), log(0.3), log(0.1), log(0.1)]
    near = [log(0.2)] * 4
    record = inputs(new, near, [1.0, -1.0, 1.0, -1.0])
    loss, sums = grpo_loss(record, LossOptions(clip_low=0.2, clip_high=0.3, old_policy="generator"))
    loss.backward()
    assert loss.item() == pytest.approx(-(1.3 - 1.5 + 0.5 - 0.8))
    assert record.new_logprobs.grad.tolist() == pytest.approx([0.0, 1.5, -0.5, 0.0])
    assert sums.clipped == 2


@pytest.mark.parametrize(("new", "advantage", "clipped_ratio"), [(0.3, 1.0, 1.4), (0.1, -1.0, 0.9)])
def test_clip_low_bounds_the_ratio_from_below_and_clip_high_from_above(new, advantage, clipped_ratio):
    record = inputs([log(new)], [log(0.2)], [advantage])
    loss, _ = grpo_loss(record, LossOptions(clip_low=0.1, clip_high=0.4, old_policy="generator"))
    assert loss.item() == pytest.approx(-clipped_ratio * advantage)


def test_kl_term_pulls_towards_the_reference():
    record = inputs([log(0.5)], [log(0.5)], [0.0], reference_logprobs=[log(0.25)])
    loss, sums = grpo_loss(record, LossOptions(kl_coef=0.1))
    loss.backward()
    expected = 0.5 - log(0.5) - 1
    assert loss.item() == pytest.approx(0.1 * expected)
    assert sums.kl.item() == pytest.approx(expected)
    assert record.new_logprobs.grad.item() == pytest.approx(0.1 * (1 - 0.5))


def test_kl_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="reference_logprobs"):
        grpo_loss(inputs([-1.0], [-1.0], [1.0]), LossOptions(kl_coef=0.1))


def test_mismatch_is_the_k3_distance_between_generator_and_learner():
    _, sums = grpo_loss(inputs([-1.0, -2.0], [-1.2, -2.0], [1.0, 1.0]), LossOptions())
    assert sums.mismatch_kl.item() == pytest.approx(exp(0.2) - 0.2 - 1, rel=1e-5)
    assert sums.tokens == 2
    assert sums.entropy == 1.0


def test_k3_averages_to_the_kl_divergence():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    assert (p * k3((q / p).log())).sum().item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)


def test_sums_add_up_over_chunks():
    whole = inputs([-1.0, -2.0, -0.5], [-1.1, -1.0, -0.5], [1.0, -1.0, 0.3])
    _, expected = grpo_loss(whole, LossOptions())
    total = LossSums.zero()
    for rows in (slice(0, 1), slice(1, 3)):
        part = LossInputs(
            whole.new_logprobs[rows], whole.old_logprobs[rows], whole.advantages[rows], whole.entropies[rows]
        )
        total = total + grpo_loss(part, LossOptions())[1]
    assert total.as_vector().tolist() == pytest.approx(expected.as_vector().tolist())
    assert LossSums.from_vector(total.as_vector()) == total
