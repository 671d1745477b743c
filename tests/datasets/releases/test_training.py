"""What is converted can be trained: every release of volumes, from its makers' files to one iteration."""

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("brats", ()),
        ("acdc", ()),
        ("amos", ("--modality", "mr", "--labels", "umamba")),
        ("flare22", ()),
        ("btcv", ("--labels", "synapse8")),
        ("lits", ()),
        ("kits", ()),
        ("aiib", ()),
        ("promise12", ()),
        ("imagecas", ()),
    ],
)
def test_one_iteration(make_release, trains, name, options):
    trains(name, make_release(name, (32, 32, 32)), *options)
