"""What compiled GPU code does, counted: instructions, loops, traffic; every kernel as it is shipped."""
