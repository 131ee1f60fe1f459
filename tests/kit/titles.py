"""Names of test cases."""

import re


def titled(case):
    """The case as text, without addresses in memory: the name is the same in every process that runs the tests."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(case))
