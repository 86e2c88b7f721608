"""What a job needs against what a cluster has: a job that fits is placed, one that does not says what is missing."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cluster.config import JobConfig
from headrace.cluster.members import Requirements
from headrace.cluster.placement import (
    Bundle,
    Node,
    bundles,
    check_fits,
    check_growth,
    custom_resources,
    free_nodes,
    member_resources,
    ray_nodes,
    with_released,
)
from headrace.cluster.run_records import Pool
from headrace.verifiers.errors import UserError


def job(**sections) -> JobConfig:
    values = {
        "model": {"base": "smollm2-135m"},
        "data": {"train": Path("train.jsonl")},
        "reward": {"verifier": "regex"},
        **sections,
    }
    return JobConfig.model_validate(values)


def bundle(name: str, **resources: float) -> Bundle:
    return Bundle(name, Pool.ROLLOUT, resources)


def test_every_member_of_the_three_pools_is_a_bundle_with_its_own_resources():
    wanted = bundles(
        job(
            rollout={"generators": 2, "cpus": 3, "gpus": 1, "memory_bytes": 4000},
            learner={"ranks": 2, "cpus": 2, "gpus": 1},
            verification={"workers": 3, "cpus": 0.5},
        ),
        frozenset(),
    )
    assert [each.member for each in wanted] == [
        *("learner-0", "learner-1", "rollout-0", "rollout-1"),
        *("verification-0", "verification-1", "verification-2"),
    ]
    assert wanted[0].resources == {"CPU": 2, "GPU": 1}
    assert wanted[2].resources == {"CPU": 3, "GPU": 1, "memory": 4000}
    assert wanted[4].resources == {"CPU": 0.5}


def test_a_pool_takes_the_nodes_that_carry_its_name_where_there_are_such_nodes():
    nodes = ray_nodes(
        [
            {"Alive": True, "NodeID": "1", "NodeManagerAddress": "a", "Resources": {"CPU": 8, "headrace_rollout": 1}},
            {"Alive": True, "NodeID": "2", "NodeManagerAddress": "b", "Resources": {"CPU": 8, "other": 1}},
            {
                "Alive": False,
                "NodeID": "3",
                "NodeManagerAddress": "c",
                "Resources": {"CPU": 800, "headrace_learner": 1},
            },
        ]
    )
    assert [node.name for node in nodes] == ["a", "b"]
    custom = custom_resources(nodes)
    assert custom == {"headrace_rollout"}
    assert "headrace_rollout" in member_resources(job(), Pool.ROLLOUT, custom)
    assert member_resources(job(), Pool.LEARNER, custom) == {"CPU": 1}
    check_fits(bundles(job(rollout={"generators": 8}), custom), nodes)
    with pytest.raises(UserError, match=r"no place for rollout-\d \(1 CPU, 0\.001 headrace_rollout\)"):
        check_fits(bundles(job(rollout={"generators": 9}), custom), nodes)


def test_resources_reach_ray_under_its_own_names():
    options = Requirements({"CPU": 2.0, "GPU": 1.0, "memory": 4096.0, "headrace_rollout": 0.001}).options()
    assert options == {"num_cpus": 2.0, "num_gpus": 1.0, "memory": 4096, "resources": {"headrace_rollout": 0.001}}
    # Without a number Ray would reserve one CPU for starting the actor.
    assert Requirements({}).options() == {"num_cpus": 0, "num_gpus": 0, "resources": {}}


def test_what_does_not_fit_is_one_line_with_the_bundle_what_is_left_and_the_key_to_lower():
    with pytest.raises(UserError) as error:
        check_fits(
            [bundle("rollout-0", CPU=2, GPU=1), bundle("rollout-1", CPU=2, GPU=1)], [Node("a", {"CPU": 8, "GPU": 1})]
        )
    message = str(error.value)
    assert "\n" not in message
    assert "no place for rollout-1 (2 CPU, 1 GPU)" in message
    assert "node a: 6 CPU, 0 GPU" in message
    assert "needs 4 CPU, 2 GPU" in message
    assert "[rollout]" in message


def test_growth_without_room_is_one_line_with_the_bundle_and_what_is_free():
    check_growth([bundle("rollout-1", CPU=2)], [Node("a", {"CPU": 1}), Node("b", {"CPU": 2})])
    with pytest.raises(UserError) as error:
        check_growth([bundle("rollout-1", CPU=2), bundle("rollout-2", CPU=2)], [Node("a", {"CPU": 3})])
    message = str(error.value)
    assert "\n" not in message
    assert "no place now for rollout-2 (2 CPU), of 2 new member(s)" in message
    assert "node a: 1 CPU" in message


def test_what_is_free_is_what_is_left_and_what_is_given_back_on_the_same_node():
    described = [
        {"Alive": True, "NodeID": "1", "NodeManagerAddress": "a", "Resources": {"CPU": 8}},
        {"Alive": True, "NodeID": "2", "NodeManagerAddress": "b", "Resources": {"CPU": 8}},
        {"Alive": False, "NodeID": "3", "NodeManagerAddress": "c", "Resources": {"CPU": 8}},
    ]
    available = {"1": {"CPU": 1.0}, "2": {"GPU": 1.0}}
    nodes = free_nodes(described, available)
    assert nodes == [Node("a", {"CPU": 1}, "1"), Node("b", {"GPU": 1}, "2")]
    released = [("1", {"CPU": 2.0}), ("2", {"CPU": 4.0}), ("1", {"CPU": 2.0}), ("3", {"CPU": 8.0})]
    assert with_released(nodes, released) == [Node("a", {"CPU": 5}, "1"), Node("b", {"CPU": 4, "GPU": 1}, "2")]


def test_what_is_given_back_is_given_to_the_node_that_had_it_and_not_to_another_of_its_address():
    nodes = [Node("a", {"CPU": 1}, "1"), Node("a", {"CPU": 1}, "2")]
    assert with_released(nodes, [("2", {"CPU": 3.0})]) == [Node("a", {"CPU": 1}, "1"), Node("a", {"CPU": 4}, "2")]


def test_nodes_of_one_address_are_two_nodes():
    nodes = [Node("a", {"CPU": 2}), Node("a", {"CPU": 1})]
    check_fits([bundle("x", CPU=2), bundle("y", CPU=1)], nodes)


def test_room_on_two_nodes_does_not_add_up_to_one_bundle():
    nodes = [Node("a", {"CPU": 2}), Node("b", {"CPU": 2})]
    check_fits([bundle("x", CPU=2), bundle("y", CPU=2)], nodes)
    with pytest.raises(UserError):
        check_fits([bundle("x", CPU=3)], nodes)


def test_a_large_bundle_is_placed_before_small_ones_take_its_room():
    nodes = [Node("small", {"CPU": 2}), Node("large", {"CPU": 8})]
    check_fits([*[bundle(f"s{i}", CPU=1) for i in range(2)], bundle("l", CPU=8)], nodes)


def test_a_cpu_bundle_leaves_the_gpu_nodes_to_those_that_need_them():
    nodes = [Node("gpu", {"CPU": 4, "GPU": 1}), Node("cpu", {"CPU": 4})]
    check_fits([bundle("c", CPU=4), bundle("g", CPU=4, GPU=1)], nodes)


@given(
    st.lists(st.tuples(st.sampled_from([0.5, 1, 2, 4]), st.integers(0, 2)), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), min_size=1, max_size=4),
)
def test_a_job_that_is_said_to_fit_does_not_need_more_than_there_is(wanted, available):
    nodes = [Node(str(i), {"CPU": cpus, "GPU": gpus}) for i, (cpus, gpus) in enumerate(available)]
    asked = [bundle(str(i), CPU=cpus, **({"GPU": gpus} if gpus else {})) for i, (cpus, gpus) in enumerate(wanted)]
    enough = all(
        sum(each.resources.get(name, 0) for each in asked) <= sum(node.resources[name] for node in nodes)
        for name in ("CPU", "GPU")
    )
    try:
        check_fits(asked, nodes)
    except UserError:
        # On one node there is no way to place bundles badly.
        assert len(nodes) > 1 or not enough
    else:
        assert enough


def test_engines_per_node_spreads_the_generators():
    nodes = [Node(name, {"CPU": 64, "headrace_rollout": 1}) for name in ("a", "b")]
    custom = custom_resources(nodes)
    check_fits(bundles(job(rollout={"generators": 4, "engines_per_node": 2}), custom), nodes)
    with pytest.raises(UserError, match="no place for rollout-"):
        check_fits(bundles(job(rollout={"generators": 5, "engines_per_node": 2}), custom), nodes)
    with pytest.raises(UserError, match="headrace_rollout"):
        check_fits(bundles(job(rollout={"engines_per_node": 2}), frozenset()), [Node("c", {"CPU": 64})])
