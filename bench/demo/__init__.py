"""`make demo`: fine-tunes google/gemma-3-270m on the Python documentation with every method, beside PEFT +
bitsandbytes.
"""
