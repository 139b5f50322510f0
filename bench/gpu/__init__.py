"""`make gpu`: what a GPU shows of lorafam, in order of worth, in slices of some minutes, without a network.

An *item* runs in a process of its own and leaves one small JSON; within it, *cases* are done one by one, each written
down as it ends. What a crash, a hang or the end of the time takes away is one case at most.
"""
