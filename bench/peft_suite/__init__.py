"""`make peft-suite`: PEFT's own tests, plain and with every layer accelerated."""
