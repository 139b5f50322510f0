"""The command line: `lorafam finetune`, `lorafam doctor`."""
