"""Names of the encoders that are not merges."""

REFERENCES = ("f_b", "f_t", "multi_task", "random")
BASE, FINE_TUNED, MULTI_TASK, RANDOM = REFERENCES
