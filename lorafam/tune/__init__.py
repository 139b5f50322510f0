"""`lorafam tune`: measures launch configurations on the GPU there is and keeps those that beat the shipped ones."""
