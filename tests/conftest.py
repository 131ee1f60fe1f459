"""What holds for every test: one thread, the same random numbers each time, GPU tests only where there is a GPU."""

import hypothesis
import pytest
import torch

# One thread, so that sums are added in the same order on every machine and two test runs do not fight for the cores.
torch.set_num_threads(1)

# No deadline: on a shared machine a slow example is no bug. Derandomised: a failure comes back on the next run.
hypothesis.settings.register_profile("dnigraph", deadline=None, derandomize=True)
hypothesis.settings.load_profile("dnigraph")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
