"""`make faults`: training, scoring and evaluation, when processes die, disks fill, bits flip and data lie."""
