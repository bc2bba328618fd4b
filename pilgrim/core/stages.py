"""The names of the stages that train, in the order of the journey.

All rooms that tell stages apart take them from here: the walk, the recipe, the chat that wants the last model
of a run, the report.
"""

TRAINED = ("pretrain", "midtrain", "sft", "dpo", "rl")
CHAT = ("sft", "dpo", "rl")  # what these leave behind answers; before, a model only continues a text
