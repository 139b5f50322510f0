"""An accelerated PEFT model in transformers' Trainer, in one process or several: docs/several_processes.md."""

from pathlib import Path

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments

import lorafam

parser = HfArgumentParser(TrainingArguments)
parser.add_argument("--model", required=True)
parser.add_argument("--text", required=True)
parser.add_argument("--adalora", action="store_true")
arguments, own = parser.parse_args_into_dataclasses()

text = Path(own.text).read_text()
ids = AutoTokenizer.from_pretrained(own.model)(text, return_tensors="pt")["input_ids"][0]
data = [{"input_ids": chunk, "labels": chunk} for chunk in torch.split(ids, 128) if len(chunk) == 128]
kind = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
dora, adalora = LoraConfig(use_dora=True, **kind), AdaLoraConfig(total_step=arguments.max_steps, **kind)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(own.model), adalora if own.adalora else dora)
lorafam.accelerate(model)
trainer = Trainer(model, arguments, train_dataset=data, callbacks=[lorafam.AdaLoraCallback()] if own.adalora else None)
trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
trainer.save_model()
