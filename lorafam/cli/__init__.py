"""The command line: `lorafam finetune`, `merge`, `doctor`, `tune`."""
