"""Step 4: training. The name of the trainer is here because result folders are named after it."""

TRAINER_NAME = "UMambaSegTrainer"
