"""A file an item's kind: `cases(context, **options)` gives what is to be done."""
