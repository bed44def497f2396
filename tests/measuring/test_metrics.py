"""What was removed, against the formulas in numpy."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from lightning_gc import GradientMeans, centralize

TOTALS = {"mean_pre", "mean_post", "removed_norm"}


def step(seed: int, shapes=((3, 4), (5, 7), (2, 6)), dtype=torch.float32) -> dict[str, torch.Tensor]:
    """The arguments of an update for gradients of these shapes, whose means were not quite removed."""
    generator = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(shape, generator=generator, dtype=dtype) + 0.5 for shape in shapes]
    return {
        "before": torch.cat([g.mean(1) for g in gradients]),
        "after": torch.cat([(centralize(g) + 1e-3).mean(1) for g in gradients]),
        "fan_in": torch.cat([torch.full((len(g),), g.shape[1]) for g in gradients]),
        "squared_norm": torch.stack([g.abs().square().sum() for g in gradients]),
        "parameter": torch.cat([torch.full((len(g),), i) for i, g in enumerate(gradients)]),
    }


def formulas(*steps: dict[str, torch.Tensor], only: int | None = None) -> dict[str, float]:
    """The definitions, over the steps: of all parameters or of one."""
    pre, post, removed, norm = [], [], 0.0, 0.0
    for s in steps:
        mine = slice(None) if only is None else (s["parameter"] == only).numpy()
        mu = np.abs(s["before"].numpy()[mine].astype(complex))
        pre.extend(mu)
        post.extend(np.abs(s["after"].numpy()[mine]))
        removed += float((s["fan_in"].numpy()[mine] * mu**2).sum())
        norm += float(s["squared_norm"].sum() if only is None else s["squared_norm"][only])
    return {"mean_pre": np.mean(pre), "mean_post": np.mean(post), "removed_norm": math.sqrt(removed / norm)}


def check(metric: GradientMeans, expected: dict[str, float]) -> None:
    actual = metric.compute()
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name].item(), value, rtol=1e-5, err_msg=name)


def check_per_parameter(metric: GradientMeans, *steps: dict[str, torch.Tensor]) -> None:
    expected = dict(formulas(*steps))
    for index, name in enumerate(metric.names):
        expected |= {f"{quantity}/{name}": v for quantity, v in formulas(*steps, only=index).items()}
    check(metric, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
class TestFormulas:
    def test_totals(self, dtype):
        metric = GradientMeans()
        metric.update(**step(0, dtype=dtype))
        check(metric, formulas(step(0, dtype=dtype)))
        assert all(value.dtype == torch.float32 for value in metric.compute().values())

    def test_totals_over_several_updates(self, dtype):
        metric = GradientMeans()
        for seed in range(3):
            metric.update(**step(seed, dtype=dtype))
        check(metric, formulas(*(step(seed, dtype=dtype) for seed in range(3))))

    def test_per_parameter(self, dtype):
        metric = GradientMeans(["a", "b.weight", "c"])
        for seed in range(2):
            metric.update(**step(seed, dtype=dtype))
        check_per_parameter(metric, step(0, dtype=dtype), step(1, dtype=dtype))


class TestMeaning:
    def test_removed_norm_is_the_share_of_the_norm(self):
        gradient = torch.randn(5, 7, dtype=torch.float64) + 1
        left = centralize(gradient)
        metric = GradientMeans()
        metric.update(gradient.mean(1), left.mean(1), 7, gradient.square().sum())
        expected = (gradient - left).norm() / gradient.norm()
        torch.testing.assert_close(metric.compute()["removed_norm"], expected.float())

    def test_all_of_a_constant_gradient_is_removed(self):
        metric = GradientMeans()
        metric.update(torch.full((3,), -2.0), torch.zeros(3), 4, torch.tensor(3 * 4 * 4.0))
        assert metric.compute() == {"mean_pre": 2.0, "mean_post": 0.0, "removed_norm": 1.0}

    def test_a_zero_gradient_removes_nothing(self):
        metric = GradientMeans()
        metric.update(torch.zeros(3), torch.zeros(3), 4, torch.zeros(()))
        assert metric.compute() == {"mean_pre": 0.0, "mean_post": 0.0, "removed_norm": 0.0}

    def test_signed_means_do_not_cancel(self):
        metric = GradientMeans()
        metric.update(torch.tensor([1.0, -1.0]), torch.zeros(2), 4)
        assert metric.compute()["mean_pre"] == 1

    def test_without_norms(self):
        metric = GradientMeans(["a"])
        metric.update(torch.ones(2), torch.zeros(2), 4)
        assert set(metric.compute()) == {"mean_pre", "mean_post", "mean_pre/a", "mean_post/a"}

    def test_inf_and_nan_are_seen_and_forgotten(self):
        metric = GradientMeans()
        metric.update(torch.tensor([math.inf, 1.0]), torch.tensor([math.nan, 0.0]), 4, torch.tensor(math.inf))
        values = metric.compute()
        assert values["mean_pre"].isinf()
        assert values["mean_post"].isnan()
        metric.reset()
        metric.update(**step(0))
        check(metric, formulas(step(0)))

    def test_a_parameter_that_was_absent(self):
        metric = GradientMeans(["a", "b"])
        metric.update(torch.ones(2), torch.zeros(2), 4, torch.tensor([8.0, 0.0]), torch.tensor([0, 0]))
        values = metric.compute()
        assert values["mean_pre/b"] == values["mean_post/b"] == values["removed_norm/b"] == 0
        assert values["mean_pre"] == values["mean_pre/a"] == 1

    def test_one_name_needs_no_indices(self):
        metric = GradientMeans(["a"])
        metric.update(torch.ones(2), torch.zeros(2), 4, torch.tensor(16.0))
        assert metric.compute()["removed_norm/a"] == metric.compute()["removed_norm"]


class TestState:
    def test_reset(self):
        metric = GradientMeans()
        metric.update(**step(0))
        metric.reset()
        metric.update(torch.ones(2), torch.zeros(2), 4)
        check(metric, {"mean_pre": 1.0, "mean_post": 0.0})

    def test_forward_gives_the_step_and_keeps_the_sum(self):
        metric = GradientMeans()
        metric(**step(0))
        of_step = metric(**step(1))
        np.testing.assert_allclose(of_step["removed_norm"].item(), formulas(step(1))["removed_norm"], rtol=1e-5)
        check(metric, formulas(step(0), step(1)))

    @pytest.mark.parametrize(
        "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
    )
    def test_copies(self, copied):
        metric = GradientMeans(["a", "b", "c"])
        metric.update(**step(0))
        twin = copied(metric)
        twin.update(**step(1))
        check_per_parameter(twin, step(0), step(1))
        check_per_parameter(metric, step(0))

    @pytest.mark.filterwarnings("ignore:The ``compute`` method of metric GradientMeans was called before")
    @pytest.mark.parametrize("names", [(), ("a", "b", "c")])
    def test_merge(self, names):
        one, other, empty = GradientMeans(names), GradientMeans(names), GradientMeans(names)
        one.update(**step(0))
        other.update(**step(1))
        one.merge_state(other)
        empty.merge_state(one)
        for metric in (one, empty):
            assert {k: v for k, v in metric.compute().items() if k in TOTALS}.keys() == TOTALS
            np.testing.assert_allclose(
                metric.compute()["removed_norm"].item(), formulas(step(0), step(1))["removed_norm"], rtol=1e-5
            )

    def test_merge_a_state(self):
        """Into a metric that has been computed already, of updates without norms."""
        one, other = GradientMeans(), GradientMeans()
        one.update(**step(0))
        other.update(torch.zeros(0), torch.zeros(0), 4)
        assert "removed_norm" not in other.compute()
        other.merge_state(one.metric_state)
        check(other, formulas(step(0)))

    def test_nothing_is_read_on_the_host(self):
        """The meta device has no values to read."""
        metric = GradientMeans(["a", "b", "c"]).to("meta")
        metric.update(**{name: value.to("meta") for name, value in step(0).items()})
        assert all(value.device.type == "meta" for value in metric.compute().values())


class TestErrors:
    def test_repeated_names(self):
        with pytest.raises(ValueError, match=r"names=\['a', 'a'\] must be distinct"):
            GradientMeans(["a", "a"])

    def test_missing_indices(self):
        with pytest.raises(ValueError, match=r"2 names.*needs `parameter`"):
            GradientMeans(["a", "b"]).update(torch.ones(2), torch.zeros(2), 4)

    @pytest.mark.parametrize("norm", [torch.tensor(1.0), torch.ones(1), torch.ones(3)])
    def test_norms_of_another_number_of_parameters(self, norm):
        with pytest.raises(ValueError, match=r"squared_norm.*shape \(2,\)"):
            GradientMeans(["a", "b"]).update(torch.ones(2), torch.zeros(2), 4, norm, torch.tensor([0, 1]))


class TestPlot:
    @pytest.fixture(autouse=True)
    def _without_a_screen(self):
        matplotlib = pytest.importorskip("matplotlib")
        matplotlib.use("Agg")
        yield
        matplotlib.pyplot.close("all")

    def test_present_values(self):
        metric = GradientMeans(["a", "b", "c"])
        metric.update(**step(0))
        figure, axes = metric.plot()
        figure.canvas.draw()
        drawn = {line.get_label(): line.get_ydata()[0] for line in axes.get_lines()}
        assert {name: pytest.approx(v.item()) for name, v in metric.compute().items()} == drawn

    def test_over_time(self):
        metric = GradientMeans()
        values = [metric(**step(seed)) for seed in range(4)]
        figure, axes = metric.plot(values)
        figure.canvas.draw()
        drawn = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
        assert drawn["mean_pre"] == pytest.approx([v["mean_pre"].item() for v in values])

    def test_on_a_given_axis(self):
        from matplotlib import pyplot

        metric = GradientMeans()
        metric.update(**step(0))
        _, given = pyplot.subplots()
        _, axes = metric.plot(ax=given)
        assert axes is given


def _sum_over_ranks(rank: int, init_file: str, results: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    metric = GradientMeans(["a", "b", "c"])
    for seed in ([0], [1, 2])[rank]:
        metric.update(**step(seed))
    values = {name: value.item() for name, value in metric.compute().items()}
    idle = GradientMeans()  # a rank that had nothing to measure
    if rank == 0:
        idle.update(**step(0))
    torch.save((values, set(idle.compute())), f"{results}-{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_ranks_are_summed(tmp_path):
    torch.multiprocessing.spawn(_sum_over_ranks, (str(tmp_path / "init"), str(tmp_path / "values")), nprocs=2)
    steps = [step(seed) for seed in range(3)]
    for rank in range(2):
        values, idle = torch.load(tmp_path / f"values-{rank}")
        assert idle == TOTALS
        for quantity, value in formulas(*steps).items():
            assert values[quantity] == pytest.approx(value, rel=1e-5)
        for index, name in enumerate("abc"):
            for quantity, value in formulas(*steps, only=index).items():
                assert values[f"{quantity}/{name}"] == pytest.approx(value, rel=1e-5)
