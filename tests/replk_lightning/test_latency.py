from replk_lightning.measure.latency import throughput


def test_nets_are_timed_side_by_side():
    tiny = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "kernel_sizes": (3, 3, 3, 3)}
    rates = throughput({"ours": ("replknet_3", 32, tiny), "baseline": ("resnet10t", 32, {})}, batch_size=1, rounds=1)
    assert set(rates) == {"ours", "baseline"}
    assert all(rate > 0 for rate in rates.values())
