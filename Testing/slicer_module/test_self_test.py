"""Slicer's self test, as far as it runs without Slicer's window."""

import SAMFineTune


def test_the_self_test_passes(desktop):
    SAMFineTune.SAMFineTuneTest().runTest()
