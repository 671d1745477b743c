"""The sentence that a user reads."""

import pickle

import pytest

from umamba_seg.errors import CasesFailed, UserError


def test_message_and_parts():
    error = UserError("a.nii.gz", "is empty", "copy it again")
    assert str(error) == "a.nii.gz: is empty; copy it again"
    assert (error.where, error.what, error.remedy) == ("a.nii.gz", "is empty", "copy it again")


@pytest.mark.parametrize("error", [UserError("a", "b", "c"), CasesFailed({"x": "broken"}, ["y.nii.gz"])])
def test_errors_cross_process_borders(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.result == error.result


def test_failed_cases_are_counted_and_named():
    message = str(CasesFailed({"x": "x.nii.gz: is empty; copy it again"}, ["a", "b", "c"]))
    assert message.startswith("1 of 4 cases failed: the others were finished")
    assert "x.nii.gz: is empty" in message
